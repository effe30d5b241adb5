"""Methods that use what the contract offers beyond one shared adapter, each as small as can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsa.adapters.algebra import pairs
from fedsa.algorithms.base import LOCAL, SHARED, Algorithm, Penalty, Plan, ServerState
from fedsa.types import Factor, Key, Side, State, Update


@dataclass(frozen=True, kw_only=True)
class Folding(Algorithm):
    """The server adds the mean update to the frozen weights, and everyone begins anew with the initial adapter."""

    source: ClassVar[str] = "-"
    folds: ClassVar[bool] = True
    needs_product: ClassVar[bool] = True
    mixed_ranks: ClassVar[bool] = True
    export: ClassVar[str] = "merged model"

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED if key.factor.side in (Side.A, Side.B) else self.rest_plan(key)

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        products, whole = dict.fromkeys(state.scaling, 0.0), 0
        for update, weight in updates:
            whole += weight
            for module, (b, a) in pairs(update.tensors).items():
                products[module] = products[module] + weight * state.scaling[module] * (b.double() @ a.double())
        renewed = {key: tensor for key, tensor in state.tensors.items() if self.plan(key, round).received}
        if whole:
            for module, product in products.items():
                key = Key(module, Factor.DELTA)
                renewed[key] = state.tensors[key].double() + product / whole
        return self.renewed(state, renewed, round)


@dataclass(frozen=True, kw_only=True)
class Alternating(Algorithm):
    """One side in odd rounds and the other in even ones: what is newer differs from client to client."""

    source: ClassVar[str] = "-"
    first: Side = Side.A

    def plan(self, key: Key, round: int) -> Plan:
        if key.factor.side is Side.HEAD:
            return self.rest_plan(key)
        turn = (round % 2 == 1) == (key.factor.side is self.first)
        return Plan(trained=turn, sent=turn, received=True)


@dataclass(frozen=True, kw_only=True)
class Median(Algorithm):
    """The server needs all updates at once, so the method is not additive."""

    source: ClassVar[str] = "-"

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        all_of_them = [update.tensors for update, _ in updates]
        median = {key: torch.stack([each[key] for each in all_of_them]).median(0).values for key in state.tensors}
        return ServerState(median, dict.fromkeys(median, round))


@dataclass(frozen=True, kw_only=True)
class Two(Algorithm):
    """Two adapters, of which one is shared and one stays; and a scale of the method's own."""

    source: ClassVar[str] = "-"
    adapters: ClassVar[tuple[str, ...]] = ("default", "local")
    export: ClassVar[str] = "stacked adapter"
    mixed_ranks: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        if key.factor.side is Side.HEAD:
            return self.rest_plan(key)
        return SHARED if key.adapter == "default" else LOCAL

    def scaling(self, scaling: float, rank: int, clients: int) -> float:
        return scaling * 0.3 * clients**0.5


@dataclass(frozen=True, kw_only=True)
class FoldingTwo(Folding):
    """Both at once: what the shared adapter learns goes into the weights, the local one stays."""

    adapters: ClassVar[tuple[str, ...]] = ("default", "local")

    def plan(self, key: Key, round: int) -> Plan:
        return LOCAL if key.adapter == "local" else super().plan(key, round)


@dataclass(frozen=True, kw_only=True)
class Pulled(Algorithm):
    """A penalty of the method's own: A and B are pulled towards where they began, and A's rows towards unit length."""

    source: ClassVar[str] = "-"
    mixed_ranks: ClassVar[bool] = True
    mu: float = 0.5

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED if key.factor.side in (Side.A, Side.B) else self.rest_plan(key)

    @property
    def penalty(self) -> Penalty:
        return self._penalty

    def _penalty(self, tensors: State, before: State) -> torch.Tensor:
        terms = [(tensor - before[key]).square().sum() for key, tensor in tensors.items()]
        for key, tensor in tensors.items():
            if key.factor is Factor.A:
                terms.append((tensor @ tensor.T - torch.eye(len(tensor)).to(tensor)).square().sum())
        return self.mu * torch.stack(terms).sum()


@dataclass(frozen=True, kw_only=True)
class Halving(Algorithm):
    """A client keeps and sends only the first half of the rows of A and columns of B that it has trained."""

    source: ClassVar[str] = "-"
    mixed_ranks: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED if key.factor.side in (Side.A, Side.B) else self.rest_plan(key)

    def after_training(self, before: State, after: State, round: int) -> State:
        kept = dict(after)
        for key, tensor in after.items():
            if key.factor is Factor.A:
                kept[key] = tensor[: max(1, len(tensor) // 2)].clone()
            elif key.factor is Factor.B:
                kept[key] = tensor[:, : max(1, tensor.shape[1] // 2)].clone()
        return kept
