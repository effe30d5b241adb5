"""Fed-SB: average the small R that is trained between a B and an A which all clients hold frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import Algorithm, Plan
from fedsa.types import Factor, Key


@final
@dataclass(frozen=True, kw_only=True)
class FedSB(Algorithm):
    """FedAvg of R in ΔW = s·B·R·A, which is exact: B and A are the same everywhere, so s·B·R̄·A is the mean update.

    A client sends r² numbers a layer, whatever the layer's size. On ``lora_xs`` it is ``fedit``, bit for bit; this name
    takes no other adapter, and says that it is exact. With one client it is local training.

    What the paper does and this does not: it takes B, R and A from the truncated SVD of the clients' averaged first
    gradient of the whole weight (LoRA-SB, arXiv:2411.19557), which costs a round in which clients send gradients of W's
    shape. Here they are LoRA-XS's: B and A from the SVD of W, R zero. The head is averaged, as in ``fedit``.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2502.15436"
    exact: ClassVar[bool] = True
    needs_sides: ClassVar[bool] = False

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Return why the method does not go with an adapter variant, or None if it does."""
        if Factor.MIDDLE not in VARIANTS[variant].factors:
            return f"it averages the R of s·B·R·A, which {variant} has not: take adapter.variant = 'lora_xs'"
        return super().refusal(variant, mixed_ranks=mixed_ranks)

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor: R is shared, as all is that has no sides."""
        return self.rest_plan(key)
