"""FedEx-LoRA: FedAvg of both sides; the difference to the mean update is added to the frozen weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.adapters.means import mean_update, product, weighted_mean
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.types import Factor, Key, Update


@final
@dataclass(frozen=True, kw_only=True)
class FedEx(Algorithm):
    """Average A and B, and add the residual of the mean update to every client's weights.

        A ← Ā,  B ← B̄,  W ← W + Σ pᵢ·s·Bᵢ·Aᵢ − s·B̄·Ā

    The residuals of all rounds add up in one matrix on the server, so a client that missed rounds gets all of their
    residuals. The server sends this matrix; the paper sends one round's residual in factors. With one client the
    residual is zero, so it is local training.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2410.09432"
    exact: ClassVar[bool] = True
    export: ClassVar[str] = "merged model"
    folds: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the means of A and B, and with the residual added to the sum of residuals."""
        sent = [(update.tensors, weight) for update, weight in updates]
        means = weighted_mean(sent)
        for module, update in mean_update(state.tensors, state.scaling, sent).items():
            delta = Key(module, Factor.DELTA)
            means[delta] = state.tensors[delta].double() + update - product(means, state.scaling, module)
        return self.renewed(state, means, round)
