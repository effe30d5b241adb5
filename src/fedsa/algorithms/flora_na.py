"""FLoRA-NA: averages of the A's and of the B's whose weights are chosen so that their product is the mean update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.algebra import pairs
from fedsa.algorithms.base import Algorithm, ServerState, weighted_mean
from fedsa.types import Factor, Key, Update

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class FLoRANA(Algorithm):
    """Send B̂ = Σ qᵢ·Bᵢ and Â = Σ aᵢ·Aᵢ, with q and a such that B̂·Â comes nearest to Σ pᵢ·Bᵢ·Aᵢ, layer by layer.

    Nothing more travels than with FedIT. The paper leaves open how q and a are found: here from p by turns, each the
    least-squares solution given the other, so the distance never grows. With one client it is local training.

    Attributes:
        turns: how often both are solved for; 0: FedIT.
    """

    share_head: bool = True
    turns: int = 20

    source: ClassVar[str] = "arXiv:2509.26399"
    needs_product: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.turns < 0:
            raise ValueError(f"turns must be at least 0 (got {self.turns})")

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """Return the averages."""
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
    """Return the weights of the sum of parts, shape (clients, out, in), that is nearest to a matrix."""
    rows = parts.flatten(1)
    weights: Tensor = torch.linalg.pinv(rows @ rows.T, hermitian=True) @ (rows @ target.flatten())
    return weights
