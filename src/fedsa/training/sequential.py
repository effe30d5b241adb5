"""Local training of one client: short and obvious, the oracle that faster trainers are compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsa.errors import TrainingError
from fedsa.models import AdaptedModel
from fedsa.recipe import DEFAULT_LOCAL_STEPS, TrainingSettings
from fedsa.seeds import derive_seed
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.types import Key, Side, State

__all__ = ["Job", "Trained", "learning_rate_factor", "local_batches", "train"]


@dataclass(frozen=True)
class Job:
    """What one client trains in one round.

    Attributes:
        client: its id.
        round: counted from 1.
        rounds: of the whole run: schedules span it.
        seed: the run's.
        tensors: the client's tensors after it took in what the server sent.
        trained: the keys that are trained; the others stay as they are.
        received: the server's values that the proximal term pulls towards.
        optimizer_state: from the client's last round, or empty.
        rows: the client's training rows.
    """

    client: str
    round: int
    rounds: int
    seed: int
    tensors: State
    trained: tuple[Key, ...]
    received: tuple[Key, ...]
    optimizer_state: Mapping[str, Tensor]
    rows: IntArray


@dataclass(frozen=True)
class Trained:
    """What came out of a job.

    Attributes:
        tensors: all of the client's tensors.
        optimizer_state: named ``slot|key``.
        metrics: ``loss`` (mean over the round), ``steps``, ``seconds``.
    """

    tensors: State
    optimizer_state: Mapping[str, Tensor]
    metrics: Mapping[str, float]


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


def local_batches(job: Job, settings: TrainingSettings) -> list[list[IntArray]]:
    """Return the row numbers of a round: for each optimiser step, its batches.

    A client goes through its rows in shuffled passes, one after the other. With ``local_epochs`` a round is whole
    passes; with ``local_steps`` it begins where the round before ended, as if the client had trained in every round. So
    a batch depends on seed, client and round alone.
    """
    count, accumulate = len(job.rows), settings.gradient_accumulation_steps
    size = min(settings.batch_size, count)
    if settings.local_epochs:
        first = (job.round - 1) * settings.local_epochs
        passes = [
            _rows(job, number * count, (number + 1) * count) for number in range(first, first + settings.local_epochs)
        ]
        batches = [rows[start : start + size] for rows in passes for start in range(0, count, size)]
    else:
        span = (settings.local_steps or DEFAULT_LOCAL_STEPS) * accumulate * size
        rows = _rows(job, (job.round - 1) * span, job.round * span)
        batches = [rows[start : start + size] for start in range(0, span, size)]
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def _rows(job: Job, start: int, stop: int) -> IntArray:
    """Return the rows at positions start to stop of the client's endless row of shuffled passes."""
    count = len(job.rows)
    passes = range(start // count, (stop - 1) // count + 1)
    shuffled = [
        np.random.default_rng(derive_seed(job.seed, "rows", job.client, number)).permutation(count) for number in passes
    ]
    return job.rows[np.concatenate(shuffled)[start - passes[0] * count : stop - passes[0] * count]]


def train(job: Job, *, model: AdaptedModel, task: Task, encoded: Encoded, settings: TrainingSettings) -> Trained:
    """Return one client's tensors after its local training.

    Raises:
        TrainingError: the loss is not finite.
    """
    started = time.perf_counter()
    model.write(job.tensors)
    parameters = model.train_only(job.trained)
    anchors = {key: job.tensors[key].to(model.device) for key in job.received if key in parameters}
    optimizer = _optimizer(parameters, settings)
    _load_optimizer(optimizer, parameters, job.optimizer_state)
    peaks = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(derive_seed(job.seed, "dropout", job.client, job.round))
    steps = local_batches(job, settings)
    model.model.train()
    losses = []
    for number, batches in enumerate(steps):
        factor = learning_rate_factor(settings, (job.round - 1 + number / len(steps)) / job.rounds)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        for rows in batches:
            batch = {name: value.to(model.device) for name, value in encoded.batch(rows).items()}
            with model.autocast():
                loss = task.loss(model.model, batch)
            losses.append(loss.detach())
            if settings.proximal_mu and anchors:
                loss = loss + settings.proximal_mu / 2 * _distance(parameters, anchors)
            (loss / len(batches)).backward()
        if settings.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    model.model.eval()
    mean_loss = float(torch.stack(losses).mean())
    tensors = {**job.tensors, **model.read(parameters)}
    if not math.isfinite(mean_loss) or not all(bool(tensors[key].isfinite().all()) for key in parameters):
        raise TrainingError(
            f"client {job.client!r}, round {job.round}: the loss is not finite (mean over the round: {mean_loss}); "
            f"lower training.learning_rate (now {settings.learning_rate:g}) or set training.max_grad_norm"
        )
    kept: dict[str, Tensor] = {}
    if settings.optimizer_state == "keep":  # also of what this round does not train, but another may
        kept = {**job.optimizer_state, **_dump_optimizer(optimizer, parameters)}
    metrics = {"loss": mean_loss, "steps": len(steps), "seconds": time.perf_counter() - started}
    return Trained(tensors, kept, metrics)


def _distance(parameters: Mapping[Key, nn.Parameter], anchors: State) -> Tensor:
    """Return ‖w − w_received‖², FedProx's penalty before its factor."""
    return torch.stack([(parameters[key] - anchor).square().sum() for key, anchor in anchors.items()]).sum()


def _optimizer(parameters: Mapping[Key, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    head = [value for key, value in parameters.items() if key.factor.side is Side.HEAD]
    rest = [value for key, value in parameters.items() if key.factor.side is not Side.HEAD]
    groups = [
        {"params": values, "lr": rate}
        for values, rate in (
            (rest, settings.learning_rate),
            (head, settings.head_learning_rate or settings.learning_rate),
        )
        if values
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def _dump_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[Key, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimiser's tensors, each named ``slot|key``."""
    return {
        f"{slot}|{key}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for key, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
        if value is not None
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[Key, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    by_key = {str(key): parameter for key, parameter in parameters.items()}
    for name, value in state.items():
        slot, _, key = name.partition("|")
        if key in by_key:
            device = "cpu" if slot == "step" else by_key[key].device
            optimizer.state[by_key[key]][slot] = value.to(device, copy=True)
