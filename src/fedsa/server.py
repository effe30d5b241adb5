"""The server's part of a round, as a state machine without I/O: an engine carries payloads and brings updates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, final

import numpy as np

from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.errors import ProtocolError
from fedsa.seeds import derive_seed
from fedsa.types import Payload, RoundRecord, Update, total_bytes

__all__ = ["Server", "sample_size"]


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
        held: client id to the newest version it has taken in; a client that is not in it holds the initial state.
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
        held: Mapping[str, int] | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.state = state
        self.clients = tuple(sorted(clients))
        self.held = dict(held or {})
        self._seed, self._fraction, self._weighting = seed, fraction_train, weighting
        self._open: dict[str, Payload] = {}

    def sample(self, round: int) -> tuple[str, ...]:
        """Return the clients that train in a round, sorted."""
        count = sample_size(self._fraction, len(self.clients))
        if count == len(self.clients):
            return self.clients
        rng = np.random.default_rng(derive_seed(self._seed, "clients", round))
        return tuple(self.clients[place] for place in sorted(rng.choice(len(self.clients), count, replace=False)))

    def payload(self, client: str, round: int) -> Payload:
        """Return what a client would need before it trains (or is evaluated) in a round."""
        return self.algorithm.broadcast(self.state, round, self.held.get(client, 0))

    def begin_round(self, round: int) -> Mapping[str, Payload]:
        """Return what each sampled client is sent, by client id in sorted order."""
        self._open = {client: self.payload(client, round) for client in self.sample(round)}
        return dict(self._open)

    def end_round(self, round: int, updates: Iterable[Update]) -> RoundRecord:
        """Aggregate and return the record of the round.

        Args:
            round: the round that `begin_round` began.
            updates: of the clients that finished, in any order; a sampled client may be missing.

        Raises:
            ProtocolError: an update that was not asked for, or whose tensors are not exactly what the plan declares.
        """
        by_client: dict[str, Update] = {}
        for update in updates:
            self._check(update, round, by_client)
            by_client[update.client] = update
        finished = tuple(sorted(by_client))
        ordered = [by_client[client] for client in finished]
        weights = [update.num_examples if self._weighting == "num_examples" else 1 for update in ordered]
        self.state = self.algorithm.aggregate(self.state, ordered, weights, round)
        for client in finished:
            self.held[client] = round - 1
        record = RoundRecord(
            round=round,
            clients=tuple(self._open),
            finished=finished,
            download_bytes={client: total_bytes(payload.tensors) for client, payload in self._open.items()},
            upload_bytes={client: total_bytes(by_client[client].tensors) for client in finished},
            train_metrics={client: by_client[client].metrics for client in finished},
        )
        self._open = {}
        return record

    def _check(self, update: Update, round: int, seen: Mapping[str, Update]) -> None:
        whose = f"update of client {update.client!r} for round {update.round}"
        if update.client not in self._open or update.round != round or update.client in seen:
            raise ProtocolError(f"{whose}: not asked for in round {round}, or sent twice")
        if update.num_examples < 1:
            raise ProtocolError(f"{whose}: num_examples is {update.num_examples}, must be at least 1")
        planned = {key for key in self.state.tensors if self.algorithm.plan(key, round).sent}
        if planned != set(update.tensors):
            wrong = ", ".join(str(key) for key in sorted(planned ^ set(update.tensors))[:3])
            raise ProtocolError(
                f"{whose}: its tensors are not exactly those that the plan declares sent ({wrong}, ...)"
            )
        for key, tensor in update.tensors.items():
            if tensor.shape != self.state.tensors[key].shape:
                raise ProtocolError(
                    f"{whose}: {key} has shape {tuple(tensor.shape)}, not {tuple(self.state.tensors[key].shape)}"
                )
            if tensor.dtype != self.state.tensors[key].dtype:
                raise ProtocolError(f"{whose}: {key} is of {tensor.dtype}, not {self.state.tensors[key].dtype}")
            if not bool(tensor.isfinite().all()):
                raise ProtocolError(f"{whose}: {key} is not finite")


def sample_size(fraction: float, clients: int) -> int:
    """Return how many of ``clients`` train in a round: the nearest whole number (.5 goes up), and at least one.

    >>> [sample_size(0.1, clients) for clients in (1, 14, 15, 25)]
    [1, 1, 2, 3]
    """
    return max(1, math.floor(fraction * clients + 0.5))
