"""Warm-up of a head: fit it alone to what the frozen model makes of a client's rows, before they train together.

A head that is drawn at random sends the adapter gradients that mean nothing, so the first rounds are spent on the head
(Kumar et al., ICLR 2022, on the order of the two). Each row goes through the model once; what the base makes of it is
kept for every pass of the warm-up, which then take less time than that one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedsa.client.training.job import Job, TrainingResult, learning_rate_factor, local_batches
from fedsa.errors import TrainingError
from fedsa.models import AdaptedModel, EmptyModel
from fedsa.recipe import TrainingSettings
from fedsa.seeds import derive_seed
from fedsa.system.process import give_back
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.types import Key, Side

__all__ = ["obstacle", "warm_up"]

_BATCH = 32
"""Rows of a step: with as few as training takes, the steps would take longer than what they are made for."""

_MOST_BYTES = 2**29
"""Of what is kept of one client's rows: a head is fitted to as many of them as that takes."""

_READ = ("last_hidden_state", "pooler_output")
"""What heads read of what is under them; the rest (states of every layer, of an encoder) is not kept."""


def warm_up(
    jobs: Sequence[Job], *, model: AdaptedModel, task: Task, encoded: Encoded, settings: TrainingSettings
) -> list[TrainingResult]:
    """Return clients' tensors with the head fitted, of those whose training begins; the others' as they are.

    Training begins for a client that has never trained. A head that the server sends is fitted in the first round
    alone: later it is everyone's, and one client is not to begin it anew.

    AdamW with a peak rate of its own, falling linearly, in batches of 32 rows of like length,
    without dropout. Gradients are not clipped. The proximal term of the training that follows pulls a head to where it
    was fitted to.

    Args:
        jobs: of one round; rows are the items that are trained.
        model: the base with its adapter.
        task: gives losses.
        encoded: every row, as tokens.
        settings: say for how many passes over a client's rows.

    Returns:
        For each job its tensors; without metrics where nothing was fitted.

    Raises:
        TrainingError: the loss is not finite.
    """
    if not settings.head_warmup_epochs:
        return [TrainingResult(job.tensors, job.optimizer_state, {}) for job in jobs]
    return [_fitted(job, _heads(job), model, task, encoded, settings) for job in jobs]


def obstacle(model: AdaptedModel | EmptyModel, task: Task) -> str | None:
    """Why the model's head cannot be fitted alone; None if it can."""
    base: Any = model.model.get_base_model()
    if not task.has_head:
        return "the task has no head of its own"
    return f"{type(base).__name__} does not tell its head from the rest" if base.base_model is base else None


def _heads(job: Job) -> tuple[Key, ...]:
    """Return the tensors of the head that are to be fitted now."""
    if job.stored:
        return ()
    received = set(job.received) if job.round > 1 else set()
    return tuple(key for key in job.keys if key.factor.side is Side.HEAD and key not in received)


def _fitted(
    job: Job, heads: tuple[Key, ...], model: AdaptedModel, task: Task, encoded: Encoded, settings: TrainingSettings
) -> TrainingResult:
    """Return a client's tensors with its head fitted."""
    if not heads:
        return TrainingResult(job.tensors, job.optimizer_state, {})
    started = time.perf_counter()
    seed = derive_seed(job.seed, "head warm-up", job.client)
    random = np.random.default_rng(seed)
    rows = _kept(random.permutation(job.rows), model, encoded)
    alone = settings.model_copy(
        update={
            "batch_size": _BATCH,
            "local_epochs": 1,
            "local_steps": None,
            "gradient_accumulation_steps": 1,
            "group_by_length": True,
            "schedule": "linear",
            "warmup_fraction": 0.0,
        }
    )
    batches = [rows for (rows,) in local_batches(replace(job, round=1, seed=seed, rows=rows), alone, encoded.lengths)]
    model.write(job.tensors)
    parameters = model.train_only(heads)
    peak = settings.head_warmup_learning_rate
    optimizer = torch.optim.AdamW(parameters.values(), lr=peak, weight_decay=settings.weight_decay)
    steps = [place for _ in range(settings.head_warmup_epochs) for place in random.permutation(len(batches))]
    losses = []
    with _remembering(model, task, encoded, batches) as loss_of:
        for number, place in enumerate(steps):
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_factor(alone, number / len(steps))
            loss = loss_of(place)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
    last = float(torch.stack(losses[-len(batches) :]).mean())
    fitted = {key: value.contiguous() for key, value in model.read(heads).items()}
    if not math.isfinite(last) or not all(bool(value.isfinite().all()) for value in fitted.values()):
        raise TrainingError(
            f"client {job.client!r}: the warm-up of its head is not finite (loss: {last}); lower "
            f"training.head_warmup_learning_rate (now {settings.head_warmup_learning_rate:g})"
        )
    give_back()
    metrics = {"loss": last, "seconds": time.perf_counter() - started}
    return TrainingResult({**job.tensors, **fitted}, job.optimizer_state, metrics)


def _kept(rows: IntArray, model: AdaptedModel, encoded: Encoded) -> IntArray:
    """Return the first rows, as many as are kept: a batch at least."""
    base: Any = model.model.get_base_model()
    width = getattr(base.config, "hidden_size", None) or 1024
    taken = np.cumsum(encoded.lengths[rows]) * int(width) * 4
    return rows[: max(_BATCH, int(np.searchsorted(taken, _MOST_BYTES)))]


@contextmanager
def _remembering(model: AdaptedModel, task: Task, encoded: Encoded, batches: Sequence[IntArray]) -> Iterator[Any]:
    """A context that gives the loss of each batch, for which what is under the head is computed once."""
    base: Any = model.model.get_base_model()
    under = base.base_model
    own, compute = vars(under).get("forward"), under.forward
    kept: dict[int, Any] = {}
    now = 0

    def remember(*args: Any, **inputs: Any) -> Any:
        if now not in kept:
            with torch.no_grad():
                made = compute(*args, **inputs)
            if isinstance(made, dict):  # transformers' outputs are
                made = type(made)(**{name: value for name, value in made.items() if name in _READ})
            kept[now] = made
        return kept[now]

    def loss_of(place: int) -> torch.Tensor:
        nonlocal now
        now = place
        rows = batches[place]
        batch = model.begin(encoded.batch(rows), [len(rows)])
        with model.autocast():
            sums, counts = task.losses(model.model, batch)
        return sums.sum() / counts.sum().clamp(min=1)  # rows of like length may all be empty

    under.forward = remember
    model.model.eval()
    try:
        yield loss_of
    finally:
        del under.forward
        if own is not None:
            under.forward = own
        model.streams.end()
