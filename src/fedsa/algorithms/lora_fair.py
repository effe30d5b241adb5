"""LoRA-FAIR: FedAvg of both sides, with B̄ corrected on the server towards the mean update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fedsa.adapters.means import mean_update, product, weighted_mean
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.types import Factor, Key, Update


@final
@dataclass(frozen=True, kw_only=True)
class LoRAFair(Algorithm):
    """Average A and B, and correct B̄ so that s·B·Ā is nearer to the mean update.

        A ← Ā,  B ← B̄ + R·Āᵀ·(Ā·Āᵀ + λ·I)⁻¹ / s,  R = Σ pᵢ·s·Bᵢ·Aᵢ − s·B̄·Ā

    The correction ΔB minimises the squared distance of s·(B̄ + ΔB)·Ā to the mean update plus λ·‖s·ΔB‖². The paper
    minimises a similarity measure of the two plus λ·‖ΔB‖ by gradient steps. With a large λ, or with one client, it is
    FedIT.

    Attributes:
        regularization: λ: the larger it is, the smaller the correction of B.
    """

    share_head: bool = True
    regularization: float = 0.01

    source: ClassVar[str] = "arXiv:2411.14961"
    needs_product: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.regularization > 0:
            raise ValueError(f"regularization must be above 0 (got {self.regularization})")

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the means, with B corrected."""
        sent = [(update.tensors, weight) for update, weight in updates]
        means = weighted_mean(sent)
        for module, update in mean_update(state.tensors, state.scaling, sent).items():
            a = means[Key(module, Factor.A)]
            gram = a @ a.T + self.regularization * torch.eye(len(a), dtype=a.dtype)
            residual = update - product(means, state.scaling, module)
            means[Key(module, Factor.B)] += torch.linalg.solve(gram, a @ residual.T).T / state.scaling[module]
        return self.renewed(state, means, round)
