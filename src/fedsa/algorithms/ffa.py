"""FFA-LoRA: freeze A at one random value that all clients hold, train and average B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import FROZEN, SHARED, Algorithm, Plan
from fedsa.types import Key, Side


@final
@dataclass(frozen=True, kw_only=True)
class FFA(Algorithm):
    """Freeze the A side, average the B side.

        B ← Σ pᵢ·Bᵢ,  A = A₀,  so s·B·A₀ = Σ pᵢ·s·Bᵢ·A₀

    For LoRA the mean of the weight updates is then exact, because A is the same everywhere. For VeRA this freezes λ_d
    and averages λ_b. DoRA's update is not linear in the B side, so there only the B side is averaged, not the update.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2403.12313"
    exact: ClassVar[bool] = True

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Why the method cannot be used with an adapter variant; None if it can."""
        reason = super().refusal(variant, mixed_ranks=mixed_ranks)
        if reason is None and VARIANTS[variant].zero_side is Side.A:
            return f"it freezes the A side, which in {variant} is zero at the start: nothing would ever change"
        return reason

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A:
                return FROZEN
            case Side.B:
                return SHARED
            case _:
                return self.rest_plan(key)
