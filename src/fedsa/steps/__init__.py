"""What happens to an update between client and server: a step is one file. What a step is: see `fedsa.steps.base`."""

from fedsa.steps.base import Chain
from fedsa.steps.from_recipe import PLAIN, chain, check_steps

__all__ = ["PLAIN", "Chain", "chain", "check_steps"]
