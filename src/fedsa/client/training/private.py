"""Training with example-level differential privacy: DP-SGD, with the optimiser of the recipe.

In each step every row of a client is drawn by itself with probability q (Poisson sampling). The gradient of each drawn
row is clipped to C, over all trained tensors together: A, B and head. To their sum comes N(0, σ²C²), and the optimiser
gets it divided by the expected number of rows, q·n. All that the training comes to, and all that is made of it later,
tells about a row no more than that.

A row's gradient must not depend on which other rows there are, for whoever knows what is public. So with a secret all
dropout is drawn by it too: the masks of a pass come from one stream, and one row more moves those of the rows behind.

Sources: Abadi et al., arXiv:1607.00133; Li et al., arXiv:2110.05679 (with Adam).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from fedsa.accounting import noise_of, sampling_of, steps_of
from fedsa.adapters.algebra import padded
from fedsa.client.training.cohort import Optimizers, history_of
from fedsa.client.training.job import Job, TrainingResult, check_finite
from fedsa.client.training.row_gradients import OneByOne, RowGradients, RowsTogether, Values
from fedsa.models import AdaptedModel
from fedsa.recipe import ExamplePrivacySettings, TrainingSettings
from fedsa.seeds import derive_seed, seed_torch
from fedsa.steps.noise import Noise
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.types import Key

__all__ = ["Privacy", "train"]


@final
@dataclass(frozen=True)
class Privacy:
    """How rows are protected while clients train.

    Attributes:
        settings: the recipe's ``[privacy]``.
        secret: of this machine: what rows and dropout are drawn by, and noise is made from; None: the run's seed, as in
            a simulation.
    """

    settings: ExamplePrivacySettings
    secret: bytes | None = None


class _Piece(NamedTuple):
    """Rows that go through the model in one pass: the place of each one's client, its number, its dropout's seed."""

    owners: list[int]
    rows: IntArray
    seeds: list[int]


def train(
    jobs: Sequence[Job],
    privacy: Privacy,
    *,
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    settings: TrainingSettings,
) -> list[TrainingResult]:
    """Return the tensors of clients after their local training, in the order of the jobs.

    ``max_grad_norm`` is not used: rows are clipped one by one in its place.

    Args:
        jobs: of one round, with the same trained keys.
        privacy: bound and noise.
        model: the base with its adapter.
        task: gives losses.
        encoded: every row.
        settings: of the training; with ``trainer = "cohort"`` many rows go through the model in one pass, else one.

    Raises:
        TrainingError: a client's loss is not finite.
    """
    started = time.perf_counter()
    settings = settings.model_copy(update={"max_grad_norm": None})
    given = [(number, job, steps_of(settings, len(job.rows))) for number, job in enumerate(jobs)]
    ordered = sorted(given, key=lambda each: (each[2], history_of(each[1])))
    clients, steps = [job for _, job, _ in ordered], [count for _, _, count in ordered]
    values = _values(clients, model)
    optimizers = Optimizers(values, clients, steps, settings)
    seed_torch(_base_seed(jobs, privacy))
    together = settings.trainer == "cohort"
    most = len(clients) * settings.batch_size if together else 1
    losses: list[list[Tensor]] = [[] for _ in clients]
    with _gradients(model, task, encoded, clients[0].keys, most if together else 0) as gradients_of, model.training():
        for number in range(max(steps)):
            now = [job if number < count else None for job, count in zip(clients, steps, strict=True)]
            sums = {key: torch.zeros_like(values.values[key]) for key in clients[0].keys}
            for piece in _pieces(_drawn(now, privacy, settings, number), most):
                _add(sums, losses, piece, gradients_of, values, clients, privacy)
            _take(sums, values, now, privacy, settings, number)
            optimizers.add_gradients()
            optimizers.step(number)
    tensors = optimizers.tensors()
    states = optimizers.states() if settings.optimizer_state == "keep" else [{} for _ in clients]
    seconds = (time.perf_counter() - started) / len(jobs)
    results = {}
    for place, (number, job, count) in enumerate(ordered):
        # Without any row in a whole round there is no loss to tell, and nothing was learned but noise.
        loss = float(torch.stack(losses[place]).mean()) if losses[place] else 0.0
        check_finite(job, loss, tensors[place], settings)
        kept = {**job.optimizer_state, **states[place]} if settings.optimizer_state == "keep" else {}
        metrics = {"loss": loss, "steps": count, "seconds": seconds}
        results[number] = TrainingResult({**job.tensors, **tensors[place]}, kept, metrics)
    return [results[number] for number in range(len(jobs))]


@contextmanager
def _gradients(
    model: AdaptedModel, task: Task, encoded: Encoded, keys: Sequence[Key], together: int
) -> Iterator[RowGradients]:
    """A context with what gives rows' gradients: of so many rows in one pass, or of one after the other if 0."""
    if not together:
        yield OneByOne(model, task, encoded)
        return
    with model.stack(together, keys) as stack:
        yield RowsTogether(model, task, encoded, stack)


def _values(clients: Sequence[Job], model: AdaptedModel) -> Values:
    """All tensors of the clients, side by side, where the model computes."""
    return Values(
        {
            key: torch.stack([padded(job.tensors[key], value.shape) for job in clients]).to(model.device)
            for key, value in model.initial.items()
        }
    )


def _drawn(
    now: Sequence[Job | None], privacy: Privacy, settings: TrainingSettings, step: int
) -> Iterator[tuple[int, int, int]]:
    """Yield the rows of a step: the place of each one's client, its number, and its dropout's seed."""
    for place, job in enumerate(now):
        if job is None:
            continue
        random = _noise("rows", job, privacy, step)
        drawn = (random.uniform(len(job.rows)) < sampling_of(settings, len(job.rows))).numpy()
        seeds = _row_seeds(job, privacy, step)
        for number in np.flatnonzero(drawn).tolist():
            yield place, int(job.rows[number]), int(seeds[number])


def _row_seeds(job: Job, privacy: Privacy, step: int) -> IntArray:
    """The seed of the adapters' dropout for each of a client's rows in a step, shape (rows,)."""
    if privacy.secret is not None:
        return _noise("dropout", job, privacy, step).seeds(len(job.rows))
    seed = derive_seed(job.seed, "dropout", job.client, job.round, step)
    return np.array([(seed + number) % 2**63 for number in range(len(job.rows))], dtype=np.int64)


def _base_seed(jobs: Sequence[Job], privacy: Privacy) -> int:
    """The seed of the base model's own dropout, one stream for all who train together."""
    purpose: list[str | int] = ["base dropout", jobs[0].round, *[job.client for job in jobs]]
    if privacy.secret is None:
        return derive_seed(jobs[0].seed, *purpose)
    begun = [job.beginning for job in jobs]
    return int(Noise(jobs[0].seed, privacy.secret, *purpose, *begun).seeds(1)[0])


def _noise(what: str, job: Job, privacy: Privacy, step: int) -> Noise:
    """The random numbers of a step: with a secret, those of what the training begins with and of nothing else."""
    begun = () if privacy.secret is None else (job.beginning,)
    return Noise(job.seed, privacy.secret, what, job.client, job.round, step, *begun)


def _pieces(drawn: Iterator[tuple[int, int, int]], most: int) -> Iterator[_Piece]:
    """Yield the rows of a step in pieces of at most ``most``."""
    rows = list(drawn)
    for start in range(0, len(rows), most):
        owners, numbers, seeds = zip(*rows[start : start + most], strict=True)
        yield _Piece(list(owners), np.array(numbers, dtype=np.int64), list(seeds))


def _add(
    sums: dict[Key, Tensor],
    losses: Sequence[list[Tensor]],
    piece: _Piece,
    gradients_of: RowGradients,
    values: Values,
    clients: Sequence[Job],
    privacy: Privacy,
) -> None:
    """Add each row's clipped gradient to the sum of its client, and its loss to those of its client."""
    row_losses, gradients = gradients_of(values, clients[0].keys, piece.owners, piece.rows, piece.seeds)
    with torch.no_grad():
        norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0).sqrt()
        factors = (privacy.settings.clipping_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        share = torch.zeros(len(clients), len(piece.owners), device=factors.device, dtype=factors.dtype)
        share[torch.tensor(piece.owners), torch.arange(len(piece.owners))] = factors
        for key, gradient in gradients.items():
            sums[key] += (share @ gradient.flatten(1)).view_as(sums[key])
    for place, loss in zip(piece.owners, row_losses, strict=True):
        losses[place].append(loss)


def _take(
    sums: dict[Key, Tensor],
    values: Values,
    now: Sequence[Job | None],
    privacy: Privacy,
    settings: TrainingSettings,
    step: int,
) -> None:
    """Add the noise of each client, and leave what its optimiser gets at the values, as a backward pass would."""
    for place, job in enumerate(now):
        if job is None:
            continue
        count = len(job.rows)
        deviation = privacy.settings.clipping_norm * noise_of(privacy.settings, settings, count, job.rounds)
        noise = _noise("gradients", job, privacy, step)
        for key in job.keys:
            own = padded(deviation * noise.normal(job.tensors[key].shape), sums[key].shape[1:])
            sums[key][place] += own.to(sums[key])
            sums[key][place] /= sampling_of(settings, count) * count
    for key, total in sums.items():
        values.values[key].grad = total
