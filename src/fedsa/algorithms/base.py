"""The contract of an algorithm: who trains, sends and receives which tensor, and how updates are put together.

An algorithm is one file in this folder: a frozen dataclass whose fields are its options. All of it is pure: state goes
in, state comes out. What it does not say is FedAvg: the weighted mean of what clients sent, one update at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
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
    additive: ClassVar[bool] = True
    """The server needs no more of the updates than Σ wᵢxᵢ and Σ wᵢ. Then its memory does not depend on the number of
    clients, and a protocol that shows it the sums alone (secure aggregation) does."""
    export: ClassVar[str] = "adapter"
    """What a client's result is: a plain ``adapter`` (all that exists so far)."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "aggregate" in vars(cls) and "additive" not in vars(cls):
            raise TypeError(f"{cls.__name__} overrides aggregate, so it must say whether it is additive")

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
        """Return a client's tensors after it took in what the server sent; in fp32, whatever the wire's dtype is."""
        return {**tensors, **{key: value.float() for key, value in payload.tensors.items()}}

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """Return the server's state after a round.

        Args:
            state: the state before.
            updates: each with its weight, a count > 0 of which only the ratios matter; in the order of client ids. They
                come one at a time, each when it is asked for, as the client has trained: whoever needs all of them at
                once calls ``list(updates)``. None at all leaves every value as it was.
            round: the round that ends.
        """
        sent = [key for key in state.tensors if self.plan(key, round).sent]
        means = weighted_mean((update.tensors, weight) for update, weight in updates)
        rounded = {key: mean.to(state.tensors[key].dtype) for key, mean in means.items()}
        # Clients changed their own copy of what they sent: it is newer here even when nobody's update arrived.
        return ServerState({**state.tensors, **rounded}, {**state.versions, **dict.fromkeys(sent, round)})

    def head_plan(self) -> Plan:
        """Return the plan of the classification head, as ``share_head`` says."""
        return SHARED if self.share_head else LOCAL


def weighted_mean(states: Iterable[tuple[State, int]]) -> dict[Key, Tensor]:
    """Return Σ wᵢxᵢ / Σ wᵢ of each tensor, in float64; nothing if there are no states.

    Only the sums are held, whatever the number of states. A product wᵢxᵢ is exact for x of 24 bits (fp32, bf16) and
    weights below 2²⁹; what is left is the rounding of a float64 sum. Rounded to x's own dtype, the mean of one state is
    that state, bit for bit.

    Args:
        states: of the same keys, each with its weight, a count > 0.
    """
    sums: dict[Key, Tensor] = {}
    whole = 0
    for tensors, weight in states:
        whole += weight
        for key, tensor in tensors.items():
            term = tensor.double() * weight
            sums[key] = sums[key].add_(term) if key in sums else term
    return {key: total / whole for key, total in sums.items()}
