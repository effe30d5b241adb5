"""FRLoRA: the averaged adapter is added to the frozen weights; adapters begin anew each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.algorithms.base import Algorithm, Plan, ServerState, product
from fedsa.types import Factor, Key, Side, State


@final
@dataclass(frozen=True, kw_only=True)
class FRLoRA(Algorithm):
    """Average A and B, fold s·(B̄·Ā − B₀·A₀) into every client's weights, and begin the next round from A₀ and B₀.

    The sum over rounds is of a rank beyond the adapter's. The paper takes A₀ and B₀ from the principal singular vectors
    of the pre-trained weights: that is ``adapter.variant = "pissa"``; with others they are that variant's. The folded
    matrix is sent whole. With one client it is local training in pieces, each from a fresh adapter.
    """

    share_head: bool = True

    source: ClassVar[str] = "openreview:e0rQRMUhs7"
    export: ClassVar[str] = "merged model"
    folds: ClassVar[bool] = True
    restarts: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True
    needs_initial_values: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Return who trains, sends and receives a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return Plan(trained=True, sent=True, received=False)
            case _:
                return self.rest_plan(key)

    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        """Return the state with the averaged adapter's change folded."""
        new = {key: value for key, value in mean.items() if key.factor is Factor.HEAD}
        for key in mean:
            if key.factor is Factor.A:
                delta, module = key._replace(factor=Factor.DELTA), key.module
                change = product(state, mean, module) - product(state, state.tensors, module)
                new[delta] = state.tensors[delta].double() + change
        return self.renewed(state, new, round)
