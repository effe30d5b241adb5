"""FedSA: send and average the A side, keep the B side and the head at the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class FedSA(Algorithm):
    """Selective aggregation: A learns what clients have in common and is averaged; B is personal and stays.

        A ← Σ pᵢ·Aᵢ,  Bᵢ stays at client i

    The A side is LoRA's A and VeRA's λ_d. The B side is LoRA's B, DoRA's magnitude and VeRA's λ_b. Each side has two of
    LoHa's four factors. With one client it is local training.
    """

    source: ClassVar[str] = "arXiv:2410.01463"
    mixed_ranks: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A:
                return SHARED
            case Side.B:
                return LOCAL
            case _:
                return self.rest_plan(key)
