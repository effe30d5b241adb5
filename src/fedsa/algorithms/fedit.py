"""FedIT: plain FedAvg of everything that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import Algorithm


@final
@dataclass(frozen=True, kw_only=True)
class FedIT(Algorithm):
    """FedAvg of both sides: A and B are averaged separately, so the averaged product is not the mean of the products.

        A ← Σ pᵢ·Aᵢ,  B ← Σ pᵢ·Bᵢ

    With ``share_head = false`` it is the fair comparison for methods that keep the head at the client.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2305.05644"
    needs_sides: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True
