"""One client's part of a round: take in what the server sent, train, and hand back what the plan says is sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, final

import torch

from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.errors import TrainingError
from fedsa.models import AdaptedModel
from fedsa.store import ClientState
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.training.sequential import Job, train
from fedsa.types import Payload, State, Update
from fedsa.wire import WireDtype, on_wire

if TYPE_CHECKING:
    from fedsa.recipe import Recipe

__all__ = ["Client", "Memory", "own_tensors", "personal_tensors"]


class Memory(Protocol):
    """Where a client's state outlives a round. The run folder is one."""

    def load_client(self, client: str, round: int) -> ClientState | None:
        """Return the state as it was after ``round``, or None if the client had not trained by then."""
        ...

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        """Keep the state that ``round`` left; it may be changed afterwards."""
        ...


def own_tensors(initial: State, state: ClientState | None) -> State:
    """Return what a client holds by itself: its kept tensors, and the initial ones for what it has never changed."""
    return {**initial, **(state.tensors if state else {})}


def personal_tensors(
    algorithm: Algorithm,
    initial: State,
    server: ServerState,
    state: ClientState | None,
    round: int,
    wire_dtype: WireDtype,
) -> State:
    """Return what a client would use after a round: its own state, and what the server would send it next.

    Args:
        algorithm: the method.
        initial: the tensors that every client started from.
        server: the server's state after the round.
        state: the client's state after the round; None if it had not trained by then.
        round: the round that ended; 0 is before any.
        wire_dtype: in what it would get the server's tensors.
    """
    payload = algorithm.broadcast(server, round + 1, state.held if state else 0)
    payload = replace(payload, tensors=on_wire(payload.tensors, wire_dtype))
    return algorithm.absorb(own_tensors(initial, state), payload)


@final
@dataclass(frozen=True)
class Client:
    """A client. Many of them share one model, and use it in turn.

    Attributes:
        id: its name.
        rows: its training rows in ``encoded``.
    """

    id: str
    rows: IntArray
    algorithm: Algorithm
    model: AdaptedModel
    task: Task
    encoded: Encoded
    recipe: Recipe
    memory: Memory

    def train(self, payload: Payload) -> Update:
        """Train for one round, keep the new state, and return what is sent.

        Raises:
            TrainingError: the training went wrong; nothing is kept.
        """
        round = payload.round
        state = self.memory.load_client(self.id, round - 1)
        tensors = self.algorithm.absorb(own_tensors(self.model.initial, state), payload)
        plans = {key: self.algorithm.plan(key, round) for key in self.model.keys}
        job = Job(
            client=self.id,
            round=round,
            rounds=self.recipe.rounds,
            seed=self.recipe.seed,
            tensors=tensors,
            trained=tuple(key for key, plan in plans.items() if plan.trained),
            received=tuple(key for key, plan in plans.items() if plan.received),
            optimizer_state=state.optimizer_state if state else {},
            rows=self.rows,
        )
        try:
            trained = train(job, model=self.model, task=self.task, encoded=self.encoded, settings=self.recipe.training)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"client {self.id!r}, round {round}: out of memory on {self.model.device}; lower "
                "training.batch_size or task.max_length"
            ) from error
        kept = state.tensors if state else {}
        changed = {
            key: trained.tensors[key] for key, plan in plans.items() if plan.trained or plan.received or key in kept
        }
        self.memory.save_client(self.id, round, ClientState(changed, trained.optimizer_state, held=round - 1))
        sent = {key: trained.tensors[key] for key, plan in plans.items() if plan.sent}
        return Update(self.id, round, len(self.rows), on_wire(sent, self.recipe.wire_dtype), trained.metrics)
