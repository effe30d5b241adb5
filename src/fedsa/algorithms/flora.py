"""FLoRA: the clients' updates, stacked, are added to the frozen weights; adapters begin anew each round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import Algorithm, Plan, ServerState, mean_update, product, weighted_mean
from fedsa.types import Factor, Key, Side, Update


@final
@dataclass(frozen=True, kw_only=True)
class FLoRA(Algorithm):
    """Stack the clients' A's and B's, so that their product is Σ pᵢ·s·Bᵢ·Aᵢ, and fold it into every client's weights.

    Ranks may differ. The paper draws a new A each round; here each round begins from the run's initial A and B, which
    every client has, so nothing of them travels down. The folded updates of all rounds are one matrix on the server,
    sent whole to whoever trains. With one client it is local training in pieces, each from a fresh adapter.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2409.05976"
    exact: ClassVar[bool] = True
    export: ClassVar[str] = "merged model"
    folds: ClassVar[bool] = True
    restarts: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True
    needs_initial_values: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return Plan(trained=True, sent=True, received=False)
            case _:
                return self.rest_plan(key)

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """Return the state with the mean update folded, less that of the adapters that begin anew."""
        sent = [(update.tensors, weight) for update, weight in updates]
        head = [({key: value for key, value in own.items() if key.factor is Factor.HEAD}, w) for own, w in sent]
        new = weighted_mean(head)
        for module, update in mean_update(state, sent).items():
            delta = Key(module, Factor.DELTA)
            new[delta] = state.tensors[delta].double() + update - product(state, state.tensors, module)
        return self.renewed(state, new, round)
