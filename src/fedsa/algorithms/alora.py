"""Fed-ALoRA: send and average the B side, keep the A side and the head at the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class ALoRA(Algorithm):
    """Share B, keep A: FedSA with the sides exchanged.

        B ← Σ pᵢ·Bᵢ,  Aᵢ stays at client i

    The paper argues that A's stay similar only because of their common start, and that B carries the knowledge. With
    one client it is local training.
    """

    source: ClassVar[str] = "arXiv:2509.25414"
    mixed_ranks: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A:
                return LOCAL
            case Side.B:
                return SHARED
            case _:
                return self.rest_plan(key)
