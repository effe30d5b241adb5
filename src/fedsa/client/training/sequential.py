"""Local training of one client: short and obvious, the oracle that faster trainers are compared with."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsa.adapters.algebra import padded
from fedsa.client.training.job import (
    Job,
    TrainingResult,
    check_finite,
    dropout_seed,
    learning_rate_factor,
    local_batches,
    own_part,
    peak_rate,
    whole_slots,
)
from fedsa.models import AdaptedModel
from fedsa.recipe import TrainingSettings
from fedsa.seeds import seed_torch
from fedsa.tasks.base import Encoded, Task
from fedsa.types import Key, State

__all__ = ["train"]


def train(job: Job, *, model: AdaptedModel, task: Task, encoded: Encoded, settings: TrainingSettings) -> TrainingResult:
    """Return one client's tensors after its local training.

    Raises:
        TrainingError: the loss is not finite.
    """
    started = time.perf_counter()
    model.write(job.tensors)
    parameters = model.train_only(job.keys)
    anchors = {
        key: padded(job.tensors[key], parameters[key].shape).to(model.device)
        for key in job.received
        if key in parameters
    }
    optimizer = _optimizer(parameters, settings)
    _load_optimizer(optimizer, parameters, job)
    peaks = [group["lr"] for group in optimizer.param_groups]
    seed = dropout_seed(job)
    seed_torch(seed)
    steps = local_batches(job, settings, encoded.lengths)
    losses: list[Tensor] = []
    with model.training():
        for number, batches in enumerate(steps):
            factor = learning_rate_factor(settings, (job.round - 1 + number / len(steps)) / job.rounds)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            for rows in batches:
                batch = model.begin(encoded.batch(rows), [len(rows)], seeds=[seed], batches=[len(losses)])
                with model.autocast():
                    sums, counts = task.losses(model.model, batch)
                loss = sums.sum() / counts.sum()
                losses.append(loss.detach())
                if settings.proximal_mu and anchors:
                    loss = loss + settings.proximal_mu / 2 * _distance(parameters, anchors)
                (loss / len(batches)).backward()
            _add_penalty(job, parameters)
            if settings.max_grad_norm:
                nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    mean_loss = float(torch.stack(losses).mean())
    trained = {key: own_part(job, key, value).contiguous() for key, value in model.read(parameters).items()}
    check_finite(job, mean_loss, trained, settings)
    kept: dict[str, Tensor] = {}
    if settings.optimizer_state == "keep":  # also of what this round does not train, but another may
        kept = {**job.optimizer_state, **_dump_optimizer(optimizer, parameters, job)}
    metrics = {"loss": mean_loss, "steps": len(steps), "seconds": time.perf_counter() - started}
    return TrainingResult({**job.tensors, **trained}, kept, metrics)


def _distance(parameters: Mapping[Key, nn.Parameter], anchors: State) -> Tensor:
    """Return ‖w − w_received‖², FedProx's penalty before its factor."""
    return torch.stack([(parameters[key] - anchor).square().sum() for key, anchor in anchors.items()]).sum()


def _add_penalty(job: Job, parameters: Mapping[Key, nn.Parameter]) -> None:
    """Add the gradient of the method's own penalty, which is once in the loss of a step."""
    if job.penalty is None:
        return
    own = {key: own_part(job, key, parameter) for key, parameter in parameters.items()}
    penalty = job.penalty(own, {key: job.tensors[key].to(value) for key, value in own.items()})
    if penalty is not None and penalty.requires_grad:
        penalty.backward()


def _optimizer(parameters: Mapping[Key, nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    rates: dict[float, list[nn.Parameter]] = {}
    for key, value in parameters.items():
        rates.setdefault(peak_rate(key, settings), []).append(value)
    groups = [{"params": values, "lr": rate} for rate, values in rates.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def _dump_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[Key, nn.Parameter], job: Job
) -> dict[str, Tensor]:
    """Return the optimiser's tensors of the client's own rank, each named ``slot|key``."""
    return {
        f"{slot}|{key}": _own_slot(job, key, torch.as_tensor(value).detach()).to("cpu", copy=True).contiguous()
        for key, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
        if value is not None
    }


def _own_slot(job: Job, key: Key, value: Tensor) -> Tensor:
    return own_part(job, key, value) if value.dim() else value


def _load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[Key, nn.Parameter], job: Job) -> None:
    by_key = {str(key): parameter for key, parameter in parameters.items()}
    for name in job.optimizer_state:
        slot, _, key = name.partition("|")
        if key in by_key:
            device = "cpu" if slot == "step" else by_key[key].device
            optimizer.state[by_key[key]][slot] = whole_slots(job, name, by_key[key].shape).to(device, copy=True)
