"""FRLoRA: the averaged adapter is added to the frozen weights; each round begins from the initial adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.adapters.means import product
from fedsa.algorithms.base import Algorithm, Plan, ServerState
from fedsa.types import Factor, Key, Side, State


@final
@dataclass(frozen=True, kw_only=True)
class FRLoRA(Algorithm):
    """Average A and B, add the product's change to every client's weights, and begin the next round from A₀ and B₀.

        W ← W + s·(B̄·Ā − B₀·A₀),  A ← A₀,  B ← B₀

    The sum over rounds can have a higher rank than the adapter. The paper takes A₀ and B₀ from the principal singular
    vectors of the pre-trained weights; this is ``adapter.variant = "pissa"``. With another variant they are that
    variant's initial values. The matrix that is added is sent whole. With one client it is local training in pieces,
    each from a fresh adapter.
    """

    share_head: bool = True

    source: ClassVar[str] = "openreview:e0rQRMUhs7"
    export: ClassVar[str] = "merged model"
    folds: ClassVar[bool] = True
    restarts: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True
    needs_initial_values: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A | Side.B:
                return Plan(trained=True, sent=True, received=False)
            case _:
                return self.rest_plan(key)

    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        """The state with the averaged adapter's change added to the weights."""
        new = {key: value for key, value in mean.items() if key.factor is Factor.HEAD}
        for key in mean:
            if key.factor is Factor.A:
                delta, module = key._replace(factor=Factor.DELTA), key.module
                change = product(mean, state.scaling, module) - product(state.tensors, state.scaling, module)
                new[delta] = state.tensors[delta].double() + change
        return self.renewed(state, new, round)
