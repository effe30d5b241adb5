"""What happens to an update between client and server: a step is one file. What a step is: see `fedsa.steps.base`."""

from fedsa.steps.chain import Chain
from fedsa.steps.from_recipe import CHECKS, PLAIN, check_steps, make_chain
from fedsa.steps.secure_sum import SecureSum
from fedsa.steps.staleness import Staleness

__all__ = ["CHECKS", "PLAIN", "Chain", "SecureSum", "Staleness", "check_steps", "make_chain"]
