"""The server's part of a round, as a state machine without I/O: an engine carries payloads and brings updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

import numpy as np

from fedsa.adapters.algebra import fits, ranked
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.errors import DataError, ProtocolError
from fedsa.recipe import ServerSettings
from fedsa.seeds import derive_seed
from fedsa.server_optimizers import stepped
from fedsa.types import Key, Payload, RoundRecord, State, Update, total_bytes
from fedsa.wire import WIRE_DTYPES, WireDtype, on_wire

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Server", "Shelf", "held_out", "load_state", "sample_clients", "sample_size", "save_state"]


class Shelf(Protocol):
    """Where the server's state outlives a round. The run folder is one."""

    def save_server(
        self,
        round: int,
        tensors: State,
        versions: Mapping[Key, int],
        held: Mapping[str, int],
        slots: Mapping[str, Tensor],
        about: Mapping[str, Any],
    ) -> None:
        """Keep the state that a round left."""
        ...

    def load_server(self, round: int) -> tuple[dict[Key, Tensor], dict[Key, int], dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, their versions, further tensors and further values after a round that is kept."""
        ...


def save_state(shelf: Shelf, round: int, state: ServerState, held: Mapping[str, int]) -> None:
    """Keep the server's state after a round."""
    about = {"scaling": dict(state.scaling), "groups": dict(state.groups)}
    shelf.save_server(round, state.tensors, state.versions, held, state.slots, about)


def load_state(shelf: Shelf, round: int) -> ServerState:
    """Return the server's state as it was after a round > 0 that is kept."""
    tensors, versions, slots, about = shelf.load_server(round)
    return ServerState(tensors, versions, about["scaling"], about["groups"], slots)


@final
class Server:
    """Who trains when, what each gets, and what becomes of the updates.

    Args:
        algorithm: the method.
        state: its server state.
        clients: every registered client's id.
        seed: the run's; which clients are sampled depends on it and on the round alone.
        fraction_train: part of the clients that trains in a round; at least one does.
        weighting: clients' weights in the average.
        wire_dtype: in what tensors travel; the state itself keeps its own dtype.
        held: client id to the newest version it has taken in; a client that is not in it holds the initial state.
        ranks: client id to its rank, where it is less than that of the state's tensors.
        stateless: clients keep nothing between rounds, so each payload has all that is not initial.
        optimizer: what is made of a round's mean.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        state: ServerState,
        clients: Sequence[str],
        *,
        seed: int,
        fraction_train: float = 1.0,
        weighting: Literal["num_examples", "uniform"] = "num_examples",
        wire_dtype: WireDtype = "fp32",
        held: Mapping[str, int] | None = None,
        ranks: Mapping[str, int] | None = None,
        stateless: bool = False,
        optimizer: ServerSettings | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.state = state
        self.clients = tuple(sorted(clients))
        self.held = dict(held or {})
        self._ranks, self._stateless = dict(ranks or {}), stateless
        self._optimizer = optimizer or ServerSettings()
        self._seed, self._fraction, self._weighting, self._wire_dtype = seed, fraction_train, weighting, wire_dtype
        self._open: dict[str, int] = {}  # the round's clients, each with the bytes it was sent

    def sample(self, round: int) -> tuple[str, ...]:
        """Return the clients that train in a round, sorted."""
        return sample_clients(self.clients, self._fraction, derive_seed(self._seed, "clients", round))

    def begin_round(self, round: int) -> tuple[str, ...]:
        """Begin a round, and return the clients that train in it, sorted: each is to be sent its `payload`."""
        self._open = dict.fromkeys(self.sample(round), 0)
        return tuple(self._open)

    def payload(self, client: str, round: int) -> Payload:
        """Return what a client is sent before it trains in a round, or would be sent if it did."""
        payload = self.algorithm.broadcast(self.state, client, round, self.held.get(client, 0))
        own = ranked(payload.tensors, self._ranks.get(client))
        payload = replace(payload, tensors=on_wire(own, self._wire_dtype))
        if client in self._open:
            self._open[client] = total_bytes(payload.tensors)
        return payload

    def end_round(self, round: int, updates: Iterable[Update]) -> RoundRecord:
        """Aggregate and return the record of the round.

        Args:
            round: the round that `begin_round` began.
            updates: of the clients that finished, in the order of their ids, so that equal rounds give equal bits; a
                sampled client may be missing. They are asked for one by one and each is checked as it comes; none is
                kept, unless the method keeps it. What they raise goes through, and the state is as it was before.

        Raises:
            ProtocolError: an update that was not asked for or came out of order, or whose tensors are not exactly what
                the plan declares; the state is as it was before.
        """
        planned = {key for key in self.state.tensors if self.algorithm.plan(key, round).sent}
        upload_bytes: dict[str, int] = {}
        train_metrics: dict[str, Mapping[str, float]] = {}

        def arriving() -> Iterator[tuple[Update, int]]:
            for update in updates:
                self._check(update, round, planned, upload_bytes)
                upload_bytes[update.client] = total_bytes(update.tensors)
                train_metrics[update.client] = update.metrics
                yield update, update.num_examples if self._weighting == "num_examples" else 1

        arrivals = arriving()
        state = self.algorithm.aggregate(self.state, arrivals, round)
        for _ in arrivals:  # of a method that does not look at every update: the clients are to train all the same
            pass
        self.state = stepped(self.state, state, planned, self._optimizer) if upload_bytes else state
        for client in () if self._stateless else upload_bytes:
            self.held[client] = round - 1
        record = RoundRecord(
            round=round,
            clients=tuple(self._open),
            finished=tuple(upload_bytes),
            download_bytes=self._open,
            upload_bytes=upload_bytes,
            train_metrics=train_metrics,
        )
        self._open = {}
        return record

    def _check(self, update: Update, round: int, planned: set[Key], seen: dict[str, int]) -> None:
        """Refuse an update that does not fit the round; ``seen`` are the clients whose updates came, in order."""
        last = next(reversed(seen), "")
        whose = f"update of client {update.client!r} for round {update.round}"
        if update.client not in self._open or update.round != round or update.client in seen:
            raise ProtocolError(f"{whose}: not asked for in round {round}, or sent twice")
        if update.client < last:
            raise ProtocolError(f"{whose}: came after that of {last!r}; bring updates in the order of client ids")
        if update.num_examples < 1:
            raise ProtocolError(f"{whose}: num_examples is {update.num_examples}, must be at least 1")
        if planned != set(update.tensors):
            wrong = ", ".join(str(key) for key in sorted(planned ^ set(update.tensors))[:3])
            raise ProtocolError(
                f"{whose}: its tensors are not exactly those that the plan declares sent ({wrong}, ...)"
            )
        dtype = WIRE_DTYPES[self._wire_dtype]
        expected = ranked(self.state.tensors, self._ranks.get(update.client))
        for key, tensor in update.tensors.items():
            if not fits(key, tensor.shape, expected[key].shape):
                raise ProtocolError(f"{whose}: {key} has shape {tuple(tensor.shape)}, not {tuple(expected[key].shape)}")
            if tensor.dtype != dtype:
                raise ProtocolError(f"{whose}: {key} is of {tensor.dtype}, not {dtype}, the wire's")
            if not bool(tensor.isfinite().all()):
                raise ProtocolError(f"{whose}: {key} is not finite")


def sample_clients(clients: Sequence[str], fraction: float, seed: int) -> tuple[str, ...]:
    """Return a part of the clients, drawn without replacement, in the order in which they are given."""
    count = sample_size(fraction, len(clients))
    if count == len(clients):
        return tuple(clients)
    places = np.random.default_rng(seed).choice(len(clients), count, replace=False)
    return tuple(clients[place] for place in sorted(places))


def held_out(clients: Sequence[str], fraction: float, seed: int) -> tuple[str, ...]:
    """Return the clients that are never in the federation, sorted: at least one of a fraction above 0.

    Args:
        clients: every client's id.
        fraction: the recipe's ``holdout_clients``.
        seed: the run's.

    Raises:
        DataError: nobody would be left.
    """
    if not fraction:
        return ()
    drawn = sample_clients(sorted(clients), fraction, derive_seed(seed, "held-out clients"))
    if len(drawn) == len(clients):
        raise DataError(
            f"holdout_clients = {fraction:g} of {len(clients)} clients leaves none for the federation: lower it, or "
            "share the rows out over more clients"
        )
    return drawn


def sample_size(fraction: float, clients: int) -> int:
    """Return how many of ``clients`` train in a round: the nearest whole number (.5 goes up), and at least one.

    >>> [sample_size(0.1, clients) for clients in (1, 14, 15, 25)]
    [1, 1, 2, 3]
    """
    return max(1, math.floor(fraction * clients + 0.5))
