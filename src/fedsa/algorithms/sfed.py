"""SFed-LoRA: FedSA with a scale that grows with the number of averaged clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class SFed(Algorithm):
    """Share A, keep B, with a larger scale of the update; N is the number of clients in a round.

        A ← Σ pᵢ·Aᵢ,  Bᵢ stays at client i,  ΔWᵢ = s·Bᵢ·A with s = α·√(N/r) instead of α/r

    Averaging N A's makes their movement smaller by √N, and a high rank r makes s smaller. The larger scale keeps the
    size of the update. With one client it is local training with rsLoRA's scale α/√r.
    """

    source: ClassVar[str] = "arXiv:2603.08058"
    needs_product: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Why the method cannot be used with an adapter variant; None if it can."""
        if variant == "rslora":
            return "it has a scale of its own: use variant = 'lora'"
        return super().refusal(variant, mixed_ranks=mixed_ranks)

    def scaling(self, scaling: float, rank: int, clients: int) -> float:
        """The scale α·√(N/r), from α/r."""
        return float(scaling * (clients * rank) ** 0.5)

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A:
                return SHARED
            case Side.B:
                return LOCAL
            case _:
                return self.rest_plan(key)
