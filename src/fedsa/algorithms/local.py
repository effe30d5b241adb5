"""Local training: nothing is shared; the baseline that federation must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import LOCAL, Algorithm, Plan
from fedsa.types import Key


@final
@dataclass(frozen=True, kw_only=True)
class Local(Algorithm):
    """Every client trains alone, from the same initial tensors; nothing is sent.

    Aᵢ, Bᵢ and the head stay at client i.
    """

    source: ClassVar[str] = "-"
    needs_sides: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.share_head:
            raise ValueError("local shares nothing: share_head = true does not go with it (use fedsa or fedit)")

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        return LOCAL
