"""HetLoRA: clients of different ranks, zero-padded and weighed by the size of their updates; ranks may shrink."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.algebra import cropped, padded, pairs, rank_of, ranked
from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import Algorithm, Penalty, ServerState
from fedsa.types import Factor, Key, State, Update

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class HetLoRA(Algorithm):
    """Average zero-padded A's and B's; in each module, a client's weight is ‖Bᵢ·Aᵢ‖ instead of its number of rows.

        A ← Σ hᵢ·Aᵢ,  B ← Σ hᵢ·Bᵢ,  hᵢ = ‖Bᵢ·Aᵢ‖ / Σⱼ ‖Bⱼ·Aⱼ‖

    A client gets the first rows of A and columns of B, as many as its rank. With ``decay`` γ below 1, a client drops
    its last directions, those beyond γ·rank, when their ‖B‖·‖A‖ has become smaller in a round. ``regularization`` adds
    this product to the client's loss, so that it becomes smaller. The head is weighed by rows. With one client it is
    local training.

    Attributes:
        decay: γ: the part of the rank that remains when it is cut; 1: the rank is never cut.
        regularization: λ: the factor of the penalty; 0: no penalty.
    """

    share_head: bool = True
    decay: float = 1.0
    regularization: float = 0.0

    source: ClassVar[str] = "arXiv:2401.06432"
    needs_product: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.regularization < 0:
            raise ValueError("decay must be above 0 and at most 1, regularization at least 0")

    def absorb(self, tensors: State, received: State, initial: State) -> State:
        """The client's tensors with the received ones, cut to the client's current rank."""
        full = super().absorb(tensors, received, initial)
        return {key: cropped(value, tensors[key].shape) if key in tensors else value for key, value in full.items()}

    def cuts_ranks(self) -> bool:
        """Whether ranks are cut."""
        return self.decay < 1

    def after_training(self, before: State, after: State, round: int) -> State:
        """The trained tensors, without the last directions if these have become smaller."""
        rank = max(1, int(self.decay * (rank_of(after) or 1)))
        return ranked(after, rank) if _tail(after, rank) < _tail(before, rank) else after

    @property
    def penalty(self) -> Penalty | None:
        """λ·Σ ‖B‖·‖A‖ of the last directions."""
        return self._penalty if self.regularization and self.decay < 1 else None

    def _penalty(self, tensors: State, before: State) -> Tensor:
        rank = max(1, int(self.decay * (rank_of(tensors) or 1)))
        return self.regularization * _tail(tensors, rank)

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the means, weighed by the size of the updates."""
        sent = [(update.tensors, weight) for update, weight in updates]
        new = {key: mean for key, mean in weighted_mean(sent).items() if key.factor is Factor.HEAD}
        by_client = [pairs(tensors) for tensors, _ in sent]
        for module in by_client[0] if by_client else ():
            sizes = torch.stack([(own[module][0].double() @ own[module][1].double()).norm() for own in by_client])
            shares = sizes / sizes.sum() if sizes.sum() > 0 else torch.full_like(sizes, 1 / len(sizes))
            for place, factor in enumerate((Factor.B, Factor.A)):
                key = Key(module, factor)
                whole = [padded(own[module][place].double(), state.tensors[key].shape) for own in by_client]
                new[key] = torch.einsum("k,kij->ij", shares, torch.stack(whole))
        return self.renewed(state, new, round)


def _tail(tensors: State, rank: int) -> Tensor:
    """The sum over modules of ‖B‖·‖A‖ for the directions after the first ``rank``."""
    products = [b[:, rank:].norm() * a[rank:].norm() for b, a in pairs(tensors).values()]
    return torch.stack(products).sum()
