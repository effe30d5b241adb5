"""HetLoRA: clients of different ranks, zero-padded and weighed by the size of their updates; ranks may shrink."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.algebra import cropped, padded, pairs, rank_of, ranked
from fedsa.algorithms.base import Algorithm, Penalty, ServerState, weighted_mean
from fedsa.types import Factor, Key, State, Update

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class HetLoRA(Algorithm):
    """Average zero-padded A's and B's, each module weighed by ‖Bᵢ·Aᵢ‖ in place of the number of rows.

    A client gets the first rows and columns, as many as its rank. With ``decay`` below 1 a client drops its last
    directions, those beyond decay·rank, once ‖B‖·‖A‖ of them has fallen in a round; ``regularization`` adds that
    product to its loss, so that it falls. The head is weighed by rows. With one client it is local
    training.

    Attributes:
        decay: γ: what remains of the rank when it is cut; 1: never.
        regularization: λ: of the penalty; 0: none.
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
        """Return the client's tensors with what came, cut to the rank that it has by now."""
        taken = super().absorb(tensors, received, initial)
        return {key: cropped(value, tensors[key].shape) if key in tensors else value for key, value in taken.items()}

    def after_training(self, before: State, after: State, round: int) -> State:
        """Return what was trained, with the last directions dropped if they have shrunk."""
        rank = rank_of(after) or 1
        kept = max(1, int(self.decay * rank))
        return ranked(after, kept) if _tail(after, kept) < _tail(before, kept) else after

    @property
    def penalty(self) -> Penalty | None:
        """λ·Σ ‖B‖·‖A‖ of the last directions."""
        return self._penalty if self.regularization and self.decay < 1 else None

    def _penalty(self, tensors: State, before: State) -> Tensor:
        kept = max(1, int(self.decay * (rank_of(tensors) or 1)))
        return self.regularization * _tail(tensors, kept)

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """Return the averages, weighed by the size of the updates."""
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


def _tail(tensors: State, kept: int) -> Tensor:
    """Return Σ ‖B‖·‖A‖ over modules of the directions after the first ``kept``."""
    products = [b[:, kept:].norm() * a[kept:].norm() for b, a in pairs(tensors).values()]
    return torch.stack(products).sum()
