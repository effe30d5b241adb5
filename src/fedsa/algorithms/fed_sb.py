"""Fed-SB: average the small R that is trained between a B and an A which all clients hold frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import Algorithm


@final
@dataclass(frozen=True, kw_only=True)
class FedSB(Algorithm):
    """FedAvg of R in ΔW = s·B·R·A, which is exact: B and A are the same everywhere.

        R ← Σ pᵢ·Rᵢ,  so s·B·R·A = Σ pᵢ·s·B·Rᵢ·A

    A client sends r² numbers per layer, whatever the layer's size. On ``lora_xs`` it equals ``fedit``, bit for bit;
    this method accepts no other adapter, and declares that it is exact. With one client it is local training.

    One thing in the paper is not done here: the paper takes B, R and A from the truncated SVD of the clients' averaged
    first gradient of the whole weight (LoRA-SB, arXiv:2411.19557). This needs a round in which clients send gradients
    of W's shape. Here they are LoRA-XS's: B and A from the SVD of W, and R is zero. The head is averaged, as in
    ``fedit``.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2502.15436"
    exact: ClassVar[bool] = True
    needs_sides: ClassVar[bool] = False
    needs_middle: ClassVar[bool] = True
