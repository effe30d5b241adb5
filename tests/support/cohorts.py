"""Clients of one model with rows of their own, trained one at a time and all at once, and what may differ then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsa.client.training import cohort, sequential
from fedsa.client.training.job import Job, TrainingResult
from fedsa.models import AdaptedModel
from fedsa.recipe import TrainingSettings
from fedsa.types import Key
from support.tiny_models import TASK, token_rows

TWENTY = TrainingSettings(local_steps=20, batch_size=4, learning_rate=2e-3)

SETTINGS = {
    "epochs": TrainingSettings(local_epochs=2, batch_size=4),
    "epochs in large batches": TrainingSettings(local_epochs=1, batch_size=50),
    "accumulation": TrainingSettings(local_epochs=1, batch_size=3, gradient_accumulation_steps=3),
    "head at a rate of its own": TrainingSettings(local_steps=4, head_learning_rate=0.1),
    "LoRA+": TrainingSettings(local_steps=4, b_learning_rate_ratio=16.0),
    "LoRA+ with SGD, kept momentum and a head of its own": TrainingSettings(
        local_steps=4,
        b_learning_rate_ratio=4.0,
        head_learning_rate=0.1,
        optimizer="sgd",
        momentum=0.9,
        optimizer_state="keep",
    ),
    "schedule and decay": TrainingSettings(
        local_steps=5, schedule="cosine", warmup_fraction=0.3, weight_decay=0.1, batch_size=2
    ),
    "no clipping": TrainingSettings(local_steps=4, max_grad_norm=None),
    "clipping at a small norm": TrainingSettings(local_steps=4, max_grad_norm=0.01, optimizer="sgd"),
    "proximal": TrainingSettings(local_steps=4, proximal_mu=3.0, optimizer="sgd"),
    "momentum": TrainingSettings(local_steps=4, optimizer="sgd", momentum=0.9, weight_decay=0.01),
    "kept AdamW": TrainingSettings(local_steps=4, optimizer_state="keep"),
    "kept momentum": TrainingSettings(local_steps=4, optimizer="sgd", momentum=0.9, optimizer_state="keep"),
}
"""Every setting of the training by itself, under a name that a test can carry."""


def jobs_of(
    model: AdaptedModel,
    sizes: Sequence[int] = (7, 20, 12),
    *,
    round: int = 2,
    trained: Callable[[Key], bool] | None = None,
    states: Sequence[Mapping[str, Tensor]] | None = None,
) -> list[Job]:
    """Clients with tensors of their own, some of them not zero where they begin at zero."""
    generator = torch.Generator().manual_seed(3)
    jobs, start = [], 0
    for number, size in enumerate(sizes):
        tensors = {
            key: parameter + 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            for key, parameter in model.read(model.keys).items()
        }
        keys = tuple(key for key in model.keys if trained is None or trained(key))
        state = states[number] if states else {}
        jobs.append(Job(f"c{number}", round, 4, 0, tensors, keys, keys[:2], state, np.arange(start, start + size)))
        start += size
    return jobs


def both(
    model: AdaptedModel, jobs: Sequence[Job], settings: TrainingSettings, *, pack: bool = False, rows: Any = None
) -> list[list[TrainingResult]]:
    """The clients one at a time, and all at once."""
    encoded = rows or token_rows()
    options = {"model": model, "task": TASK, "encoded": encoded, "settings": settings}
    return [sequential.train(job, **options) for job in jobs], cohort.train(jobs, **options, pack=pack)


def largest_difference(alone: Sequence[TrainingResult], together: Sequence[TrainingResult]) -> float:
    """The largest difference of losses, trained tensors and optimiser states, which must be there for both."""
    assert len(alone) == len(together)
    differences = []
    for one, other in zip(alone, together, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert one.optimizer_state.keys() == other.optimizer_state.keys()
        assert one.metrics["steps"] == other.metrics["steps"]
        differences.append(abs(one.metrics["loss"] - other.metrics["loss"]))
        differences += [float((one.tensors[key] - other.tensors[key]).abs().max()) for key in one.tensors]
        differences += [
            float((one.optimizer_state[key] - other.optimizer_state[key]).abs().max()) for key in one.optimizer_state
        ]
    return max(differences)


def moved(jobs: Sequence[Job], results: Sequence[TrainingResult]) -> float:
    """The smallest, over clients and trained tensors, of the largest change."""
    return min(
        float((result.tensors[key] - job.tensors[key]).abs().max())
        for job, result in zip(jobs, results, strict=True)
        for key in job.keys
    )
