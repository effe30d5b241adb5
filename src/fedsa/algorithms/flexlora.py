"""FlexLoRA: average the weight updates, and cut the mean back to each client's rank by SVD."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fedsa.adapters.algebra import low_rank, pairs
from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.types import Factor, Key, Update


@final
@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Algorithm):
    """Factorise the mean update by singular value decomposition (SVD), cut to the adapter's rank.

        Σ pᵢ·Bᵢ·Aᵢ ≈ U·σ·Vᵀ (truncated SVD),  B ← U·σ,  A ← Vᵀ

    Singular values are in falling order, so the first r rows of A and columns of B give the best product of rank r; a
    client with a smaller rank gets these. It is exact if the mean's rank is not above the adapter's. With one client
    the product stays the same, but the factors turn.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2402.11505"
    needs_product: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the factors of the mean update."""
        sent = [(update.tensors, weight) for update, weight in updates]
        new = {key: mean for key, mean in weighted_mean(sent).items() if key.factor is Factor.HEAD}
        whole = sum(weight for _, weight in sent)
        by_client = [pairs(tensors) for tensors, _ in sent]
        for module in by_client[0] if by_client else ():
            rank = state.tensors[Key(module, Factor.A)].shape[0]
            weights = [weight / whole for _, weight in sent]
            b = torch.cat([own[module][0].double() * w for own, w in zip(by_client, weights, strict=True)], dim=1)
            a = torch.cat([own[module][1].double() for own in by_client])
            new[Key(module, Factor.B)], new[Key(module, Factor.A)] = low_rank(b, a, rank)
        return self.renewed(state, new, round)
