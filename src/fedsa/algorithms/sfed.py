"""SFed-LoRA: FedSA whose scale grows with the number of clients that are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class SFed(Algorithm):
    """Share A, keep B, with s = α·√(N/r) in place of α/r, N the clients of a round.

    Averaging N A's shrinks their movement by √N and a high rank r shrinks s: this keeps the size of the update. With
    one client it is local training with rsLoRA's scale α/√r.
    """

    source: ClassVar[str] = "arXiv:2603.08058"
    needs_product: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Return why the method does not go with an adapter variant, or None if it does."""
        if variant == "rslora":
            return "it brings a scale of its own: take variant = 'lora'"
        return super().refusal(variant, mixed_ranks=mixed_ranks)

    def scaling(self, scaling: float, rank: int, clients: int) -> float:
        """Return α·√(N/r), given α/r."""
        return float(scaling * (clients * rank) ** 0.5)

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        match key.factor.side:
            case Side.A:
                return SHARED
            case Side.B:
                return LOCAL
            case _:
                return self.rest_plan(key)
