"""One client's part of a round: take in what the server sent, train, and hand back what the plan says is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import nn

from fedsa.adapters.algebra import cropped, ranked
from fedsa.algorithms.base import Algorithm, Plan, ServerState
from fedsa.errors import TrainingError
from fedsa.memory import give_back
from fedsa.models import AdaptedModel
from fedsa.seeds import derive_seed
from fedsa.store import ClientState
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.training import cohort, heads, sequential
from fedsa.training.jobs import Job, Trained
from fedsa.types import Factor, Key, Payload, Side, State, Update
from fedsa.wire import WireDtype, on_wire

if TYPE_CHECKING:
    from torch import Tensor

    from fedsa.recipe import Recipe, TrainingSettings

__all__ = [
    "Client",
    "Memory",
    "head_warmed",
    "own_tensors",
    "personal_tensors",
    "reconstructed",
    "sent_to",
    "starting_tensors",
    "train_clients",
    "train_jobs",
]


class Memory(Protocol):
    """Where a client's state outlives a round. The run folder is one."""

    def load_client(self, client: str, round: int) -> ClientState | None:
        """Return the state as it was after ``round``, or None if the client had not trained by then."""
        ...

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        """Keep the state that ``round`` left; it may be changed afterwards."""
        ...


def starting_tensors(
    initial: State, algorithm: Algorithm, recipe: Recipe, client: str, rank: int | None = None
) -> State:
    """Return what a client starts the run from: the common initial tensors, or, by the recipe, an A of its own.

    Its own A is drawn as PEFT draws LoRA's, from U(-1/√in, 1/√in), by the run's seed, the client and the layer. An A
    that is zero at the start (of an adapted embedding, whose B is not) stays so.

    Args:
        initial: the common ones, of the full rank.
        algorithm: the method: where it sends or receives A, A is the common one.
        recipe: the run's.
        client: its id.
        rank: the client's; None: the full one.
    """
    if not recipe.adapter.own_initial_a:
        return ranked(initial, rank)
    drawn = {}
    for key, value in initial.items():
        if key.factor is Factor.A and algorithm.keeps(key) and value.any():
            seed = derive_seed(recipe.seed, "initial A", client, str(key))
            drawn[key] = torch.empty_like(value)
            nn.init.kaiming_uniform_(drawn[key], a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
    return ranked({**initial, **drawn}, rank)


def own_tensors(initial: State, state: ClientState | None) -> State:
    """Return what a client holds by itself: its kept tensors, and the initial ones for what it has never changed."""
    return {**initial, **(state.tensors if state else {})}


def personal_tensors(
    algorithm: Algorithm,
    initial: State,
    server: ServerState,
    client: str,
    state: ClientState | None,
    round: int,
    wire_dtype: WireDtype,
) -> State:
    """Return what a client would use after a round: its own state, and what the server would send it next.

    Args:
        algorithm: the method.
        initial: the tensors that the client started from, of its own rank.
        server: the server's state after the round.
        client: its id.
        state: the client's state after the round; None if it had not trained by then.
        round: the round that ended; 0 is before any.
        wire_dtype: in what it would get the server's tensors.
    """
    held = state.held if state else 0
    payload = sent_to(algorithm, server, client, round + 1, held, wire_dtype)
    own = {key: cropped(value, initial[key].shape) for key, value in payload.tensors.items()}
    return algorithm.absorb(own_tensors(initial, state), replace(payload, tensors=own), initial)


def sent_to(
    algorithm: Algorithm,
    server: ServerState,
    client: str,
    round: int,
    held: int,
    wire_dtype: WireDtype,
    *,
    rank: int | None = None,
) -> Payload:
    """Return what a client gets of a server's state before it trains in a round.

    Args:
        algorithm: the method.
        server: the server's state.
        client: its id; the method need not know it.
        round: the round that begins.
        held: the newest version that the client has taken in.
        wire_dtype: in what tensors travel.
        rank: the client's; None: the state's own.
    """
    payload = algorithm.broadcast(server, client, round, held)
    return replace(payload, tensors=on_wire(ranked(payload.tensors, rank), wire_dtype))


@final
@dataclass(frozen=True)
class Client:
    """A client. Many of them share one model, and use it in turn.

    Attributes:
        id: its name.
        rows: its training rows in ``encoded``.
        rank: its adapter's, where it is less than the model's.
    """

    id: str
    rows: IntArray
    algorithm: Algorithm
    model: AdaptedModel
    task: Task
    encoded: Encoded
    recipe: Recipe
    memory: Memory
    rank: int | None = None

    def prepare(self, payload: Payload) -> Job:
        """Return what the client trains in a round."""
        round = payload.round
        state = self.memory.load_client(self.id, round - 1)
        plans = self._plans(round)
        initial = starting_tensors(self.model.initial, self.algorithm, self.recipe, self.id, self.rank)
        return Job(
            client=self.id,
            round=round,
            rounds=self.recipe.rounds,
            seed=self.recipe.seed,
            tensors=self.algorithm.absorb(own_tensors(initial, state), payload, initial),
            trained=tuple(key for key, plan in plans.items() if plan.trained),
            received=tuple(key for key, plan in plans.items() if plan.received),
            optimizer_state=state.optimizer_state if state else {},
            rows=self.rows,
            stored=tuple(state.tensors) if state else (),
            penalty=self.algorithm.penalty,
        )

    def finish(self, job: Job, trained: Trained) -> Update:
        """Keep the state that the training left, and return what is sent."""
        plans = self._plans(job.round)
        tensors = self.algorithm.after_training(job.tensors, trained.tensors, job.round)
        changed = {
            key: tensors[key] for key, plan in plans.items() if plan.trained or plan.received or key in job.stored
        }
        if self.recipe.personal_state == "store":
            state = ClientState(changed, trained.optimizer_state, held=job.round - 1)
            self.memory.save_client(self.id, job.round, state)
        sent = {key: tensors[key] for key, plan in plans.items() if plan.sent}
        on_its_way = on_wire(sent, self.recipe.wire_dtype)
        return Update(self.id, job.round, len(self.rows), on_its_way, trained.metrics)

    def _plans(self, round: int) -> dict[Key, Plan]:
        return {key: self.algorithm.plan(key, round) for key in self.model.keys}


def train_clients(asked: Iterable[tuple[Client, Payload]]) -> Iterator[Update]:
    """Train clients for one round, each keeping its new state, and yield what they send.

    Args:
        asked: clients of one federation, and what the server sends each. They are taken as they are needed: as many
            at a time as go through the model at once by the recipe.

    Raises:
        TrainingError: the training went wrong; of the clients that trained together nothing is kept.
    """
    remaining = iter(asked)
    for first in remaining:
        group = [first, *islice(remaining, max(1, first[0].recipe.training.cohort_size) - 1)]
        jobs = _sharing([client.prepare(payload) for client, payload in group])
        for (client, _), job, trained in zip(group, *_trained(first[0], jobs), strict=True):
            yield client.finish(job, trained)
        give_back()


def _sharing(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs with one copy of what the server has added to the frozen weights, where they hold the same."""
    held: dict[Key, list[Tensor]] = {}

    def one(key: Key, tensor: Tensor) -> Tensor:
        if key.factor.side is not Side.BASE:
            return tensor
        known = held.setdefault(key, [])
        for other in known:
            if other is tensor or torch.equal(other, tensor):
                return other
        known.append(tensor)
        return tensor

    return [replace(job, tensors={key: one(key, tensor) for key, tensor in job.tensors.items()}) for job in jobs]


def _trained(client: Client, jobs: Sequence[Job]) -> tuple[Sequence[Job], Sequence[Trained]]:
    """Return the jobs, each from where its training begins, and what they come to."""
    recipe, settings = client.recipe, client.recipe.training
    model, task, encoded = client.model, client.task, client.encoded
    if recipe.personal_state == "store":
        first, what = head_warmed(jobs, model, task, encoded, settings), "head_warmup_loss"
        trained_keys = [job.trained for job in jobs]
    else:
        first, what = reconstructed(jobs, recipe, model, task, encoded), "reconstruction_loss"
        shared = {key for job in jobs[:1] for key in job.trained if key in job.received}
        every = not recipe.reconstruction.freeze_personal
        trained_keys = [tuple(key for key in job.trained if key in shared or every) for job in jobs]
    jobs = [
        replace(job, tensors=begun.tensors, trained=keys)
        for job, begun, keys in zip(jobs, first, trained_keys, strict=True)
    ]
    results = [
        replace(
            trained,
            metrics={
                **trained.metrics,
                "seconds": trained.metrics["seconds"] + begun.metrics.get("seconds", 0.0),
                **({what: begun.metrics["loss"]} if begun.metrics else {}),
            },
        )
        for trained, begun in zip(train_jobs(jobs, model, task, encoded, settings), first, strict=True)
    ]
    return jobs, results


def head_warmed(
    jobs: Sequence[Job], model: AdaptedModel, task: Task, encoded: Encoded, settings: TrainingSettings
) -> Sequence[Trained]:
    """Return clients' tensors with the head fitted alone, of those whose training begins (`fedsa.training.heads`).

    Raises:
        TrainingError: the training went wrong.
    """
    items = [replace(job, rows=task.training_items(encoded, job.rows)) for job in jobs]
    with _memory_told(jobs, model):
        return heads.warm_up(items, model=model, task=task, encoded=encoded, settings=settings)


def reconstructed(
    jobs: Sequence[Job], recipe: Recipe, model: AdaptedModel, task: Task, encoded: Encoded
) -> Sequence[Trained]:
    """Return clients' tensors with the personal ones (trained, not received) fitted anew, the others frozen.

    The batches have a seed of their own: they are not those that the round's training goes on with.

    Args:
        jobs: of one round, as a client that keeps nothing prepares them: its personal tensors at their initial values.
        recipe: says how long.
        model: the base with its adapter.
        task: gives losses.
        encoded: every row, as tokens.

    Returns:
        For each job its tensors; without metrics where nothing personal is trained in the round.

    Raises:
        TrainingError: the training went wrong.
    """
    personal = tuple(key for job in jobs[:1] for key in job.trained if key not in job.received)
    if not personal:
        return [Trained(job.tensors, {}, {}) for job in jobs]
    settings = recipe.training.model_copy(
        update={
            "local_steps": recipe.reconstruction.steps,
            "local_epochs": None,
            "learning_rate": recipe.reconstruction.learning_rate or recipe.training.learning_rate,
            "schedule": "constant",  # the evaluation after the last round is beyond any schedule
            "warmup_fraction": 0.0,
        }
    )
    refits = [
        replace(
            job,
            seed=derive_seed(job.seed, "reconstruction"),
            trained=personal,
            received=(),
            optimizer_state={},
            rate_setting="reconstruction.learning_rate" if recipe.reconstruction.learning_rate else job.rate_setting,
        )
        for job in jobs
    ]
    return train_jobs(refits, model, task, encoded, settings)


def train_jobs(
    jobs: Sequence[Job], model: AdaptedModel, task: Task, encoded: Encoded, settings: TrainingSettings
) -> Sequence[Trained]:
    """Return what jobs of one round come to, by the trainer that the settings name.

    Trained are the items that the task makes of their rows.

    Raises:
        TrainingError: a loss is not finite, or memory ran out.
    """
    common: Any = {"model": model, "task": task, "encoded": encoded, "settings": settings}
    jobs = [replace(job, rows=task.training_items(encoded, job.rows)) for job in jobs]
    with _memory_told(jobs, model):
        if settings.trainer == "cohort":
            return cohort.train(jobs, **common, pack=bool(settings.packing))
        return [sequential.train(job, **common) for job in jobs]


@contextmanager
def _memory_told(jobs: Sequence[Job], model: AdaptedModel) -> Iterator[None]:
    """A context in which it is told whose training ran out of memory, and what to lower.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        whose = f"client {jobs[0].client!r}" if len(jobs) == 1 else f"{len(jobs)} clients from {jobs[0].client!r} on"
        raise TrainingError(
            f"{whose}, round {jobs[0].round}: out of memory on {model.device}; lower "
            f"{'training.cohort_size, ' if len(jobs) > 1 else ''}training.batch_size or task.max_length, or set "
            "compute.gradient_checkpointing = true"
        ) from error
