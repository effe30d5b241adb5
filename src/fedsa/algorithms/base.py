"""The contract of an algorithm: who trains, sends and receives which tensor, and how updates are put together.

An algorithm is one file in this folder: a frozen dataclass whose fields are its options. All of it is pure: state goes
in, state comes out. What it does not say is FedAvg: the weighted mean of what clients sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fedsa.types import Key, Payload, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FROZEN",
    "LOCAL",
    "SHARED",
    "Algorithm",
    "Plan",
    "ServerState",
    "weighted_mean",
]


class Plan(NamedTuple):
    """What happens to one tensor in one round.

    Attributes:
        trained: the client's optimiser changes it.
        sent: the client sends it to the server after training.
        received: the server's value replaces the client's before training, whenever the server's is newer.
    """

    trained: bool
    sent: bool
    received: bool


SHARED = Plan(trained=True, sent=True, received=True)
LOCAL = Plan(trained=True, sent=False, received=False)
FROZEN = Plan(trained=False, sent=False, received=False)


@dataclass(frozen=True)
class ServerState:
    """All that the server knows about tensors.

    Attributes:
        tensors: the server's value of every adapter tensor; of those that are never sent, the initial value.
        versions: the round that last gave a tensor a new value; 0 is the initial value, which every client holds.
    """

    tensors: State
    versions: Mapping[Key, int]


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """A federated method. Fields are its options.

    Attributes:
        share_head: send and average the classification head too; each method's default is its paper's.
    """

    share_head: bool = False

    source: ClassVar[str]
    """The paper, e.g. ``arXiv:2410.01463``."""
    export: ClassVar[str] = "adapter"
    """What a client's result is: a plain ``adapter`` (all that exists so far)."""

    @abstractmethod
    def plan(self, key: Key, round: int) -> Plan:
        """Return what happens to the tensor ``key`` in ``round`` (counted from 1). Depends on nothing else.

        ``received`` must be the same in all rounds: the server knows one version of each client, not one a tensor.
        """

    def init(self, initial: State) -> ServerState:
        """Return the server's first state, made of the initial tensors that every client starts from."""
        return ServerState(dict(initial), dict.fromkeys(initial, 0))

    def broadcast(self, state: ServerState, round: int, held: int) -> Payload:
        """Return what a client needs before it trains in ``round``.

        Args:
            state: the server's state.
            round: the round that begins.
            held: the newest version that the client has taken in; 0 is the initial state.
        """
        newer = {
            key: tensor
            for key, tensor in state.tensors.items()
            if state.versions[key] > held and self.plan(key, round).received
        }
        return Payload(round, newer)

    def absorb(self, tensors: State, payload: Payload) -> State:
        """Return a client's tensors after it took in what the server sent."""
        return {**tensors, **payload.tensors}

    def aggregate(
        self, state: ServerState, updates: Sequence[Update], weights: Sequence[int], round: int
    ) -> ServerState:
        """Return the server's state after a round.

        Args:
            state: the state before.
            updates: in canonical client order; none at all leaves every value as it was.
            weights: one count > 0 per update; only their ratios matter.
            round: the round that ends.
        """
        sent = [key for key in state.tensors if self.plan(key, round).sent]
        tensors = dict(state.tensors)
        if updates:
            tensors |= {key: weighted_mean([update.tensors[key] for update in updates], weights) for key in sent}
        # Clients changed their own copy of what they sent: it is newer here even when nobody's update arrived.
        return ServerState(tensors, {**state.versions, **dict.fromkeys(sent, round)})

    def head_plan(self) -> Plan:
        """Return the plan of the classification head, as ``share_head`` says."""
        return SHARED if self.share_head else LOCAL


def weighted_mean(tensors: Iterable[Tensor], weights: Sequence[int]) -> Tensor:
    """Return Σ wᵢxᵢ / Σ wᵢ, summed in the order given.

    Args:
        tensors: of one shape and floating dtype.
        weights: one count > 0 per tensor. As whole numbers their ratios are exact: a common factor changes no bit, and
            a single tensor comes back as it is.

    Returns:
        A new tensor of the same shape and dtype.
    """
    whole = sum(weights)
    first, *rest = (tensor * (weight / whole) for tensor, weight in zip(tensors, weights, strict=True))
    for term in rest:
        first += term
    return first
