"""FFA-LoRA: freeze A at one random value that all clients hold, train and average B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import FROZEN, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class FFA(Algorithm):
    """Freeze the A side, average the B side.

    The mean of the weight updates is then exact, because A is the same everywhere. For VeRA this freezes λ_d and
    averages λ_b.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2403.12313"
    exact: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        match key.factor.side:
            case Side.A:
                return FROZEN
            case Side.B:
                return SHARED
            case _:
                return self.rest_plan(key)
