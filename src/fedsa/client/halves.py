"""Training on each half of a client's rows: what both come to is not owed to the rows that it happens to have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fedsa.client.training.job import Job, TrainingResult
from fedsa.seeds import derive_seed
from fedsa.tasks.base import IntArray

__all__ = ["in_halves", "mean_of_halves"]


def in_halves(job: Job) -> tuple[Job, Job]:
    """A client's training on each half of its rows, drawn anew in each round. A single row is in both.

    Each has a seed of its own: with the same dropout in both, what comes of chance would be taken for what was learned.
    """
    one, two = _rows_in_halves(job)
    return replace(job, rows=one), replace(job, rows=two, seed=derive_seed(job.seed, "other half"))


def _rows_in_halves(job: Job) -> tuple[IntArray, IntArray]:
    random = np.random.default_rng(derive_seed(job.seed, "halves", job.client, job.round))
    shuffled = job.rows[random.permutation(len(job.rows))]
    half = len(shuffled) // 2
    return (shuffled[:half], shuffled[half:]) if half else (shuffled, shuffled)


def mean_of_halves(one: TrainingResult, two: TrainingResult) -> TrainingResult:
    """The mean of two trainings from the same start, of their optimisers' states and of their losses."""
    tensors = {
        key: value if value is two.tensors[key] else (value + two.tensors[key]) / 2
        for key, value in one.tensors.items()
    }
    kept = {
        name: torch.maximum(value, other) if name.startswith("step|") else (value + other) / 2
        for name, value, other in (
            (name, value, two.optimizer_state[name]) for name, value in one.optimizer_state.items()
        )
    }
    metrics = {
        "loss": (one.metrics["loss"] + two.metrics["loss"]) / 2,
        "steps": one.metrics["steps"] + two.metrics["steps"],
        "seconds": one.metrics["seconds"] + two.metrics["seconds"],
    }
    return TrainingResult(tensors, kept, metrics, (one.tensors, two.tensors))
