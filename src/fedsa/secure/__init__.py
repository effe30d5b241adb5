"""Secure aggregation: the server learns the sum of what sites send, and nothing else of it.

The protocol is that of Bonawitz et al. 2017 (CCS '17, ePrint 2017/281) with one graph of all sites. Numbers become
integers of 64 bits (`fixed_point`), which a site hides behind masks that cancel in the sum (`party`, `opening`). Key
agreement, secret sharing and pseudo-random streams come from libraries (`primitives`). Why it is as it is:
docs/decisions/0023-what-the-server-sees-is-a-sum.md.
"""

from fedsa.secure.fixed_point import LARGEST, FixedPoint, fixed_point_for
from fedsa.secure.opening import Opening
from fedsa.secure.party import FEWEST, Party, threshold
from fedsa.secure.primitives import require_secure

__all__ = ["FEWEST", "LARGEST", "FixedPoint", "Opening", "Party", "fixed_point_for", "require_secure", "threshold"]
