"""FLoRA-NA: weighted means of A and of B; the weights are chosen so that their product is near the mean update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.algebra import pairs
from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.types import Factor, Key, Update

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class FLoRANA(Algorithm):
    """Average A and B with other weights, so that their product is nearest to the mean update, layer by layer.

        B ← Σ qᵢ·Bᵢ,  A ← Σ aᵢ·Aᵢ,  where q and a minimise ‖(Σ qᵢ·Bᵢ)·(Σ aᵢ·Aᵢ) − Σ pᵢ·Bᵢ·Aᵢ‖

    It sends no more than FedIT. The paper does not say how q and a are found. Here they start from p and are solved in
    turns, each by least squares with the other fixed, so the distance never grows. With one client it is local
    training.

    Attributes:
        turns: number of times that both are solved; 0: FedIT.
    """

    share_head: bool = True
    turns: int = 20

    source: ClassVar[str] = "arXiv:2509.26399"
    needs_product: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.turns < 0:
            raise ValueError(f"turns must be at least 0 (got {self.turns})")

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the weighted means."""
        sent = [(update.tensors, weight) for update, weight in updates]
        new = weighted_mean(sent)
        by_client = [pairs(tensors) for tensors, _ in sent]
        shares = torch.tensor([weight for _, weight in sent], dtype=torch.float64)
        for module in by_client[0] if len(sent) > 1 else ():
            b, a = (torch.stack([own[module][place].double() for own in by_client]) for place in (0, 1))
            target = torch.einsum("k,kor,kri->oi", shares / shares.sum(), b, a)
            whole_b, whole_a = new[Key(module, Factor.B)], new[Key(module, Factor.A)]
            for _ in range(self.turns):
                whole_b = torch.einsum("k,kor->or", _nearest(b @ whole_a, target), b)
                whole_a = torch.einsum("k,kri->ri", _nearest(whole_b @ a, target), a)
            new[Key(module, Factor.B)], new[Key(module, Factor.A)] = whole_b, whole_a
        return self.renewed(state, new, round)


def _nearest(parts: Tensor, target: Tensor) -> Tensor:
    """The weights with which the sum of ``parts``, shape (clients, out, in), is nearest to ``target``."""
    rows = parts.flatten(1)
    weights: Tensor = torch.linalg.pinv(rows @ rows.T, hermitian=True) @ (rows @ target.flatten())
    return weights
