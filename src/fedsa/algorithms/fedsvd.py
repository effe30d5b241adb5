"""FedSVD: train and average B, then turn B·A into factors with orthonormal A on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.adapters.algebra import low_rank, pairs
from fedsa.algorithms.base import RECEIVED, SHARED, Algorithm, Plan, ServerState
from fedsa.types import Factor, Key, Side, State


@final
@dataclass(frozen=True, kw_only=True)
class FedSVD(Algorithm):
    """FFA with a new A in each round: the server factorises the mean product with orthonormal rows of A.

        B̄·A = U·σ·Vᵀ (singular value decomposition),  B ← U·σ,  A ← Vᵀ

    The product does not change and no client trains A, so differential privacy costs no more than with FFA. But A turns
    towards the directions that were learned. Round 1 has the run's initial A. With one client it is local training of
    B.
    """

    share_head: bool = True

    source: ClassVar[str] = "arXiv:2505.12805"
    exact: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True
    needs_initial_values: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        match key.factor.side:
            case Side.A:
                return RECEIVED
            case Side.B:
                return SHARED
            case _:
                return self.rest_plan(key)

    def renews(self, key: Key, round: int) -> bool:
        """Whether the server gives a tensor a new value: also A, which no client sends."""
        return key.factor.side is Side.A or super().renews(key, round)

    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        """The state with the factors of the mean product."""
        new = dict(mean)
        if new:
            for module, (b, a) in pairs({**state.tensors, **new}).items():
                factors = low_rank(b.double(), a.double(), a.shape[0])
                new[Key(module, Factor.B)], new[Key(module, Factor.A)] = factors
        return self.renewed(state, new, round)
