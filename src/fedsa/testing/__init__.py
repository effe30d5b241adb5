"""The laws that every method and every step obeys: a plug-in's own test is one call of `check_laws` or `check_step`."""

from fedsa.testing import laws as _laws
from fedsa.testing.checking import LAWS, cases, check_laws
from fedsa.testing.laws import *  # noqa: F403
from fedsa.testing.steps import STEP_LAWS, check_step
from fedsa.testing.world import Case, initial_tensors, layer_effects

__all__ = [
    *_laws.__all__,
    "LAWS",
    "STEP_LAWS",
    "Case",
    "cases",
    "check_laws",
    "check_step",
    "initial_tensors",
    "layer_effects",
]
