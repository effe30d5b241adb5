"""RoLoRA: train and average B in odd rounds, A in even ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import RECEIVED, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class RoLoRA(Algorithm):
    """Alternate: all clients train one side while the other side, which is the same for all, is frozen.

        B ← Σ pᵢ·Bᵢ in odd rounds,  A ← Σ pᵢ·Aᵢ in even rounds

    So the mean of the sent side gives the mean of the weight updates. B is first, because it is zero at the start and A
    would get no gradient. With one client it is alternating local training.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2502.01755"
    exact: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A:
                return SHARED if round % 2 == 0 else RECEIVED
            case Side.B:
                return SHARED if round % 2 == 1 else RECEIVED
            case _:
                return self.rest_plan(key)
