"""FLoRA: the clients' updates, stacked, are added to the frozen weights; adapters begin anew each round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.adapters.means import mean_update, product, weighted_mean
from fedsa.algorithms.base import Algorithm, Plan, ServerState
from fedsa.types import Factor, Key, Side, Update


@final
@dataclass(frozen=True, kw_only=True)
class FLoRA(Algorithm):
    """Add the clients' mean update to every client's weights, and begin each round from the initial A and B.

        W ← W + Σ pᵢ·s·Bᵢ·Aᵢ − s·B₀·A₀,  A ← A₀,  B ← B₀

    The sum is the product of the clients' stacked A's and B's, so ranks may differ. The paper draws a new A in each
    round. Here each round begins from the run's initial A and B, which every client has, so the server need not send
    them. The updates of all rounds add up in one matrix on the server, which is sent whole to each client that trains.
    With one client it is local training in pieces, each from a fresh adapter.
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
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return Plan(trained=True, sent=True, received=False)
            case _:
                return self.rest_plan(key)

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the mean update added to the weights, less the update of the initial adapters."""
        sent = [(update.tensors, weight) for update, weight in updates]
        head = [({key: value for key, value in own.items() if key.factor is Factor.HEAD}, w) for own, w in sent]
        new = weighted_mean(head)
        for module, update in mean_update(state.tensors, state.scaling, sent).items():
            delta = Key(module, Factor.DELTA)
            new[delta] = state.tensors[delta].double() + update - product(state.tensors, state.scaling, module)
        return self.renewed(state, new, round)
