"""Clients of a federation with tensors of their own, one at a time and together: what must be the same."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from fedsa.client.evaluation import evaluate
from fedsa.client.training import cohort, sequential
from fedsa.client.training.job import Job
from fedsa.federation import Federation
from fedsa.recipe import TrainingSettings
from support.cohorts import TWENTY, largest_difference, moved


def jobs_of(federation: Federation, dtype: torch.dtype = torch.float32) -> list[Job]:
    """Return each client's training on its own rows, from tensors of which none is zero."""
    generator, model = torch.Generator().manual_seed(3), federation.model
    jobs = []
    for client in federation.clients:
        noise = {key: 0.3 * torch.randn(value.shape, generator=generator) for key, value in model.initial.items()}
        tensors = {key: (value + noise[key]).to(dtype) for key, value in model.initial.items()}
        rows = federation.rows.partition.clients[client].train
        jobs.append(Job(client, 1, 2, 0, tensors, tuple(model.keys), (), {}, rows))
    return jobs


def check_training(
    federation: Federation,
    *,
    dtype: torch.dtype = torch.float64,
    settings: TrainingSettings = TWENTY,
    packs: tuple[bool, ...] = (False, True),
    least: float = 1e-3,
    most: float = 1e-10,
) -> None:
    """Assert that clients who train together come to what each comes to alone.

    Args:
        federation: its model is changed to ``dtype``.
        dtype: what is computed in.
        settings: of the training.
        packs: with which layouts of the rows.
        least: by how much every trained tensor has changed, at the least.
        most: by how much results may differ, at the most.
    """
    federation.model.model.to(dtype)
    jobs = jobs_of(federation, dtype)
    common = {
        "model": federation.model, "task": federation.task, "encoded": federation.encoded, "settings": settings
    }  # fmt: skip
    alone = [sequential.train(job, **common) for job in jobs]
    assert moved(jobs, alone) > least
    for pack in packs:
        assert largest_difference(alone, cohort.train(jobs, **common, pack=pack)) <= most


def figures_of_all(federation: Federation, *, pack: bool) -> Mapping[str, Mapping[str, float]]:
    """Return each client's figures on its rows, and assert that they are the same for clients measured together."""
    clients = [(job.client, job.tensors, job.rows) for job in jobs_of(federation)]
    given = (federation.model, federation.task, federation.encoded, clients)
    alone, together = dict(evaluate(*given, batch_size=64)), dict(evaluate(*given, batch_size=7, together=2, pack=pack))
    for client, figures in alone.items():
        assert together[client] == pytest.approx(figures, rel=1e-5)
    return alone
