"""What a client is given to train in a round, and what comes out; its batches and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsa.adapters.algebra import cropped, padded
from fedsa.errors import TrainingError
from fedsa.messages import digest_of
from fedsa.recipe import DEFAULT_LOCAL_STEPS, TrainingSettings
from fedsa.seeds import derive_seed
from fedsa.tasks.base import IntArray
from fedsa.types import Key, Side, State

__all__ = [
    "Job",
    "TrainingResult",
    "check_finite",
    "check_start",
    "dropout_seed",
    "highest_rate",
    "learning_rate_factor",
    "local_batches",
    "own_part",
    "peak_rate",
    "whole_slots",
]


@dataclass(frozen=True)
class Job:
    """What one client trains in one round.

    Attributes:
        client: its id.
        round: counted from 1.
        rounds: of the whole run: schedules span it.
        seed: the run's.
        tensors: the client's tensors after it took in what the server sent.
        keys: the tensors that are trained; the others stay as they are.
        received: the server's values that the proximal term pulls towards.
        optimizer_state: from the client's last round, named ``slot|key``, or empty.
        rows: the client's training rows; for a trainer, the items that the task makes of them.
        stored: the keys that its state held before.
        penalty: of the trained tensors and of the same as they began; what it returns is added to the loss.
        rate_setting: the setting that ``learning_rate`` of the trainer's settings comes from, for messages.
        version: the server's version that the client trains from.
        before: the client's value of each tensor that will be sent, before it learns anything in this round, and what
            the server's steps have noted for it.
        step_state: what the steps on its updates kept in its last round.
    """

    client: str
    round: int
    rounds: int
    seed: int
    tensors: State
    keys: tuple[Key, ...]
    received: tuple[Key, ...]
    optimizer_state: Mapping[str, Tensor]
    rows: IntArray
    stored: tuple[Key, ...] = ()
    penalty: Callable[[State, State], Tensor | None] | None = None
    rate_setting: str = "training.learning_rate"
    version: int = 0
    before: State = field(default_factory=dict)
    step_state: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def beginning(self) -> str:
        """A digest of what the training begins with: tensors, optimiser state, rows, and what is trained."""
        tensors = {f"tensor|{key}": tensor for key, tensor in self.tensors.items()}
        tensors |= {f"optimizer|{name}": tensor for name, tensor in self.optimizer_state.items()}
        tensors["rows"] = torch.from_numpy(np.asarray(self.rows, dtype=np.int64))
        return digest_of(" ".join(map(str, self.keys)), tensors)


@dataclass(frozen=True)
class TrainingResult:
    """What came out of a job.

    Attributes:
        tensors: all of the client's tensors.
        optimizer_state: named ``slot|key``.
        metrics: ``loss`` (mean over the round), ``steps``, ``seconds``.
        halves: where the client trained on each half of its rows: the tensors that each came to.
    """

    tensors: State
    optimizer_state: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    halves: tuple[State, ...] = ()


def peak_rate(key: Key, settings: TrainingSettings) -> float:
    """Return the peak learning rate of a tensor: the head and the B side may have rates of their own."""
    match key.factor.side:
        case Side.HEAD:
            return settings.head_learning_rate or settings.learning_rate
        case Side.B:
            return settings.learning_rate * settings.b_learning_rate_ratio
        case _:
            return settings.learning_rate


def highest_rate(keys: Iterable[Key], settings: TrainingSettings, setting: str = "training.learning_rate") -> str:
    """Return the setting, with its value, that gives the highest peak rate: what to lower where a loss is not finite.

    Args:
        keys: the tensors that are trained.
        settings: the training's.
        setting: where its ``learning_rate`` comes from.
    """
    name, value = setting, settings.learning_rate
    for key in keys:
        if peak_rate(key, settings) > settings.learning_rate:
            if key.factor.side is Side.HEAD and settings.head_learning_rate:
                name, value = "training.head_learning_rate", settings.head_learning_rate
            else:
                name, value = "training.b_learning_rate_ratio", settings.b_learning_rate_ratio
    return f"{name} (now {value:g})"


def own_part(job: Job, key: Key, value: Tensor) -> Tensor:
    """The client's part of a tensor of the model's shape, if the client's rank is lower; the rest of it is zero."""
    return cropped(value, job.tensors[key].shape)


def whole_slots(job: Job, name: str, shape: Sequence[int]) -> Tensor:
    """Return a tensor of the job's optimiser state, of the shape of the model's tensor where it has a shape.

    Args:
        job: the client's.
        name: ``slot|key``.
        shape: the model's.
    """
    value = job.optimizer_state[name]
    if value.dim() != len(shape):
        return value
    own = job.tensors[Key.parse(name.partition("|")[2])].shape  # the rank may have become lower since
    return padded(cropped(value, own), shape)


def learning_rate_factor(settings: TrainingSettings, progress: float) -> float:
    """Return the factor on the peak rate.

    Args:
        settings: schedule and warm-up.
        progress: part of the whole run that is done, 0 <= progress < 1.

    >>> settings = TrainingSettings(schedule="linear", warmup_fraction=0.5)
    >>> [learning_rate_factor(settings, progress) for progress in (0.0, 0.25, 0.5, 0.75)]
    [0.0, 0.5, 1.0, 0.5]
    """
    warmup = settings.warmup_fraction
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / (1 - warmup)
    match settings.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))


def local_batches(job: Job, settings: TrainingSettings, lengths: IntArray) -> list[list[IntArray]]:
    """Return the row numbers of a round: for each optimiser step, its batches.

    A client goes through its rows in shuffled passes, one after the other. With ``local_epochs`` a round is whole
    passes; with ``local_steps`` it begins where the round before ended, as if the client had trained in every round. So
    a batch depends on seed, client and round alone.

    With ``group_by_length`` the same rows of each pass are trained in the round, in batches of the same sizes, but rows
    of like length meet in a batch, and the batches come in random order: a batch is no random sample any more. Each
    pass is sorted by itself: at most a batch across two of them has a row twice.

    Args:
        job: the client's.
        settings: sizes and numbers.
        lengths: tokens of every row, by row number.
    """
    count, accumulate = len(job.rows), settings.gradient_accumulation_steps
    size = min(settings.batch_size, count)
    if settings.local_epochs:
        first = (job.round - 1) * settings.local_epochs
        batches = []
        for number in range(first, first + settings.local_epochs):
            rows = _rows(job, number * count, (number + 1) * count)
            batches += _cut(job, rows, size, settings, lengths, order=("pass", number))
    else:
        span = (settings.local_steps or DEFAULT_LOCAL_STEPS) * accumulate * size
        rows = _rows(job, (job.round - 1) * span, job.round * span)
        batches = _cut(job, rows, size, settings, lengths, order=("round", job.round))
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def _cut(
    job: Job,
    passes: list[IntArray],
    size: int,
    settings: TrainingSettings,
    lengths: IntArray,
    *,
    order: tuple[str, int],
) -> list[IntArray]:
    """Return the batches of consecutive pieces of passes; their order, where it is drawn, is seeded by ``order``."""
    if settings.group_by_length:
        passes = [piece[np.argsort(lengths[piece], kind="stable")] for piece in passes]
    rows = np.concatenate(passes)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    if not settings.group_by_length:
        return batches
    random = np.random.default_rng(derive_seed(job.seed, "length groups", job.client, *order))
    return [batches[place] for place in random.permutation(len(batches))]


def _rows(job: Job, start: int, stop: int) -> list[IntArray]:
    """Return the rows at positions start to stop of the client's endless row of shuffled passes, pass by pass."""
    count = len(job.rows)
    pieces = []
    for number in range(start // count, (stop - 1) // count + 1):
        shuffled = np.random.default_rng(derive_seed(job.seed, "rows", job.client, number)).permutation(count)
        first = number * count
        pieces.append(job.rows[shuffled[max(start - first, 0) : stop - first]])
    return pieces


def dropout_seed(job: Job) -> int:
    """Return the seed of the client's own dropout in the round."""
    return derive_seed(job.seed, "dropout", job.client, job.round)


def check_start(job: Job, settings: TrainingSettings) -> None:
    """Refuse tensors that no training can begin from. In a cohort they would spoil the neighbours' (0 · ∞ is nan).

    What the server has added to the frozen weights is not looked at: it is as large as the model, and made of updates
    that the server has checked.

    Args:
        job: the client's.
        settings: named in the error.

    Raises:
        TrainingError: a tensor is not finite.
    """
    for key, tensor in job.tensors.items():
        if key.factor.side is not Side.BASE and not bool(tensor.isfinite().all()):
            mend = "the base model gives it: take another"
            if job.round > 1:
                mend = f"lower {highest_rate(job.keys, settings, job.rate_setting)}, and start the run again"
            raise TrainingError(
                f"client {job.client!r}, round {job.round}: {key} is not finite before the training begins; {mend}"
            )


def check_finite(job: Job, loss: float, tensors: State, settings: TrainingSettings) -> None:
    """Refuse what a client's training came to if it is no use.

    Args:
        job: the client's.
        loss: mean over the round.
        tensors: that were trained.
        settings: named in the error.

    Raises:
        TrainingError: the loss or a tensor is not finite.
    """
    if not math.isfinite(loss) or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise TrainingError(
            f"client {job.client!r}, round {job.round}: the loss is not finite (mean over the round: {loss}); "
            f"lower {highest_rate(job.keys, settings, job.rate_setting)} or set training.max_grad_norm"
        )
