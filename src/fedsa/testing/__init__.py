"""The laws that every method obeys: a plug-in's own test is one call of `check_laws`."""

from fedsa.testing.laws import *  # noqa: F403
from fedsa.testing.laws import __all__ as __all__
