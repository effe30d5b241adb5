"""Potara: each client uses a merge of the federated model and its own, weighed by how uncertain each of the two is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

import torch
from pydantic import Field

from fedsa.algorithms.base import FROZEN, LOCAL, Algorithm, Plan
from fedsa.types import Factor, Key, Side, State

if TYPE_CHECKING:
    from torch import Tensor

_FEDERATED = "federated"
_PRECISION = Key("potara", Factor.NOTE, "precision")


@final
@dataclass(frozen=True, kw_only=True)
class Potara(Algorithm):
    """FedIT, and each client uses a merge of its mean and of the client's own model: the more uncertain counts less.

        A, B, head ← Σ pᵢ·(Aᵢ, Bᵢ, headᵢ),  θᵢ for use = w·θ + (1 - w)·θᵢ,  w = vᵢ / (v + vᵢ)

    θ are the means, with which every client begins a round, so they are those of ``fedit``. θᵢ is what client i's last
    training has left of them. Let both be independent and spread around what is best for the client, with v and vᵢ the
    traces of their covariances. Then w²·v + (1 - w)²·vᵢ, the expected squared distance of the merge from it, is least
    for this w. A client that has not trained yet has w = 1, and so has a newcomer. It sends all that it trains.

    Of the paper only the abstract was at hand: a merge of a federated and a local model, with closed-form weights that
    minimise a bound by traces of variances, and diagonal Fisher information. The formula above was derived from it.
    Two things differ: the paper's traces come from Fisher information, which no client here computes. A client trains
    twice in each round, on two random halves of its rows, and with Uᵢ and Vᵢ what they come to (its own part in the
    mean is not taken out),

        vᵢ = ‖Uᵢ - Vᵢ‖² / 4,  v = ‖θ - θᵢ‖² - vᵢ,  so w = vᵢ / ‖θ - θᵢ‖², at most 1

    And the local model is not trained by itself from the start to the end: it is the federated one, trained on the
    client's rows. With one client it is local training.

    Attributes:
        federated_weight: w: a number from 0 to 1, or closed_form. With a number clients train once.
    """

    federated_weight: Literal["closed_form"] | Annotated[float, Field(ge=0, le=1)] = "closed_form"

    source: ClassVar[str] = "arXiv:2602.18658"
    needs_sides: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor, and those beside the model."""
        if not self.in_model(key):
            return FROZEN if key == _PRECISION else Plan(trained=False, sent=True, received=True)
        return LOCAL if self._merges(key) else self.rest_plan(key)

    def trains_halves(self, round: int) -> bool:
        """Whether the variance of a client's own model is estimated."""
        return self.federated_weight == "closed_form"

    def beside(self, initial: State) -> dict[Key, Tensor]:
        """The federated value of each tensor, and 1 / vᵢ: zero where the client has not trained."""
        merged = {key: value for key, value in initial.items() if self._merges(key)}
        return {**{_federated(key): value.clone() for key, value in merged.items()}, _PRECISION: torch.zeros(1)}

    def absorb(self, tensors: State, received: State, initial: State) -> State:
        """The client's tensors for use: the merge."""
        taken = dict(super().absorb(tensors, received, initial))
        pairs = {key: (tensors[key].double(), taken[_federated(key)].double()) for key in self._merged(tensors)}
        weight = self._weight(taken[_PRECISION].double(), pairs.values())
        for key, (own, federated) in pairs.items():
            taken[key] = torch.lerp(own, federated, weight).to(tensors[key].dtype)  # exact at both ends
        return taken

    def begin(self, tensors: State, received: State, initial: State) -> State:
        """The client's tensors before its training: the federated ones."""
        taken = super().absorb(tensors, received, initial)
        return {**taken, **{key: taken[_federated(key)].clone() for key in self._merged(tensors)}}

    def outgoing(self, before: State, kept: State, halves: Sequence[State], round: int) -> State:
        """The client's own values, sent as what the federated ones have become; and how certain they are."""
        merged = self._merged(kept)
        sent = {**kept, **{_federated(key): kept[key] for key in merged}}
        precision = torch.ones(1, dtype=torch.float64)
        if halves:
            one, two = halves
            precision = 4 / _distance((one[key].double(), two[key].double()) for key in merged)
        return {**sent, _PRECISION: precision.float().clamp(max=torch.finfo(torch.float32).max)}

    def _weight(self, precision: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """w, shape (1,): 1 before the client has trained."""
        if self.federated_weight == "closed_form":
            return (1 / (precision * _distance(pairs))).nan_to_num(1.0, posinf=1.0).clamp(max=1)
        return torch.where(precision == 0, 1.0, float(self.federated_weight)).double()

    def _merges(self, key: Key) -> bool:
        return self.in_model(key) and not (self.share_head and key.factor.side is Side.HEAD)

    def _merged(self, tensors: State) -> list[Key]:
        return sorted(key for key in tensors if self._merges(key))


def _federated(key: Key) -> Key:
    return key._replace(adapter=_FEDERATED)


def _distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The squared distance over all tensors, shape (1,)."""
    return torch.stack([(one - two).square().sum() for one, two in pairs]).sum().reshape(1)
