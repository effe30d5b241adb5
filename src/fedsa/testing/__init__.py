"""The laws that every method and every step obeys: a plug-in's own test is one call of `check_laws` or `check_step`."""

from fedsa.testing.laws import *  # noqa: F403
from fedsa.testing.laws import __all__ as __all__
from fedsa.testing.steps import STEP_LAWS as STEP_LAWS
from fedsa.testing.steps import check_step as check_step
