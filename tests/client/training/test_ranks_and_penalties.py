"""Clients of lower ranks than the model's, deltas, several adapters and penalties, in both trainers."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from fedsa.adapters.algebra import RANK_DIMENSION, rank_of, ranked
from fedsa.client.training import cohort, sequential
from fedsa.client.training import job as jobs_module
from fedsa.client.training.job import Job, TrainingResult
from fedsa.models import AdaptedModel
from fedsa.recipe import TrainingSettings
from fedsa.types import Factor, Gating
from support.cohorts import SETTINGS, both, jobs_of, largest_difference, moved
from support.methods import Pulled
from support.tiny_models import BASES, TASK, adapt, token_rows

pytestmark = pytest.mark.run

RANKS = (2, 4, 8)
BOTH = {"folds": True, "adapters": ("default", "local")}


def of_rank(rank: int, variant: str = "lora", *, scale_of: int = 8, **options) -> AdaptedModel:
    """A model of a rank, with the s that rank ``scale_of`` has."""
    divide = {"lora": lambda r: r, "rslora": lambda r: r**0.5}[variant]
    return adapt(
        variant=variant,
        r=rank,
        method={"scaling": lambda own, r: own * divide(r) / divide(scale_of), **options.pop("method", {})},
        **options,
    )


def mixed(model: AdaptedModel, ranks=RANKS, **options) -> list[Job]:
    jobs = jobs_of(model, (7, 20, 12, 9)[: len(ranks)], **options)
    return [
        replace(job, tensors={key: value.contiguous() for key, value in ranked(job.tensors, rank).items()})
        for job, rank in zip(jobs, ranks, strict=True)
    ]


def trained(jobs, model, settings, *, together: bool) -> list[TrainingResult]:
    options = {"model": model, "task": TASK, "encoded": token_rows(), "settings": settings}
    return cohort.train(jobs, **options) if together else [sequential.train(job, **options) for job in jobs]


@pytest.mark.parametrize("together", [False, True], ids=["sequential", "cohort"])
@pytest.mark.parametrize("variant", ["lora", "rslora"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_lower_rank_trains_as_in_a_model_of_that_rank(settings, variant, together):
    large, small = of_rank(8, variant), of_rank(4, variant)
    assert large.scaling == pytest.approx(small.scaling)
    settings = settings.model_copy(update={"weight_decay": 0.1})
    jobs = mixed(large, (4, 4, 4))
    in_large, in_small = (trained(jobs, model, settings, together=together) for model in (large, small))
    assert {rank_of(result.tensors) for result in in_large} == {4}
    assert moved(jobs, in_small) > 1e-8
    assert largest_difference(in_large, in_small) <= 1e-10
    for job, result in zip(jobs, in_large, strict=True):
        assert all(value.shape == job.tensors[key].shape for key, value in result.tensors.items())
        assert all(value.is_contiguous() for value in [*result.tensors.values(), *result.optimizer_state.values()])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_cohort_of_different_ranks(settings):
    model = of_rank(8, dropout=0.1)
    jobs = mixed(model)
    alone, together = both(model, jobs, settings, pack=True)
    assert [rank_of(result.tensors) for result in together] == list(RANKS)
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize("together", [False, True], ids=["sequential", "cohort"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_behind_a_lower_rank_stays_zero(settings, together, monkeypatch):
    model, seen = of_rank(8), []

    def own_part(job, key, value):
        seen.append((job, key, value.clone()))
        return jobs_module.own_part(job, key, value)

    monkeypatch.setattr(cohort if together else sequential, "own_part", own_part)
    settings = settings.model_copy(update={"weight_decay": 0.1, "optimizer_state": "keep"})
    trained(mixed(model, (2, 3, 5)), model, settings, together=together)
    behind = [
        value.narrow(RANK_DIMENSION[key.factor], rank_of(job.tensors), 8 - rank_of(job.tensors))
        for job, key, value in seen
        if key.factor in RANK_DIMENSION
    ]
    assert behind
    assert not any(value.any() for value in behind)


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_kept_optimiser_states_of_different_ranks_go_on(optimizer):
    settings = TrainingSettings(local_steps=3, batch_size=4, optimizer_state="keep", weight_decay=0.1, **optimizer)
    model = of_rank(8)
    first, _ = both(model, mixed(model), settings)
    # the last was cut down since: what the optimiser remembers of the rows that went must not come back
    jobs = mixed(model, (2, 4, 3), states=[result.optimizer_state for result in first])
    alone, together = both(model, jobs, settings)
    assert largest_difference(alone, together) <= 1e-10
    small = of_rank(3)
    assert largest_difference([alone[2]], trained([jobs[2]], small, settings, together=False)) <= 1e-10


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_deltas_and_two_adapters_in_both_trainers(name, pack):
    attention = "sdpa" if name in ("llama", "modernbert") else "eager"
    model = adapt(BASES[name], method=BOTH, attention=attention, dropout=0.1, r=8)
    jobs = [
        replace(job, keys=tuple(key for key in job.keys if key.factor is not Factor.DELTA))
        for job in mixed(model, (2, 8, 4))
    ]
    jobs[1] = replace(
        jobs[1], tensors={**jobs[1].tensors, **{k: v for k, v in jobs[0].tensors.items() if k.factor is Factor.DELTA}}
    )
    alone, together = both(model, jobs, TrainingSettings(local_steps=10, batch_size=4, learning_rate=2e-3), pack=pack)
    assert moved(jobs, alone) > 1e-4
    assert largest_difference(alone, together) <= 1e-10
    for job, result in zip(jobs, together, strict=True):
        assert all(result.tensors[key] is job.tensors[key] for key in job.tensors if key.factor is Factor.DELTA)


# -- penalties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gating", get_args(Gating))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gates_in_both_trainers(settings, gating):
    model = adapt(method={"gated": gating, "adapters": ("default", "rest")}, dropout=0.1)
    jobs = [
        replace(job, keys=tuple(key for key in job.keys if key.adapter != "rest"))
        for job in jobs_of(model, (7, 20, 12))
    ]
    alone, together = both(model, jobs, settings, pack=True)
    gates = [key for key in jobs[0].keys if key.factor is Factor.GATE]
    assert gates
    assert all(not torch.equal(alone[0].tensors[key], jobs[0].tensors[key]) for key in gates)
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_methods_penalty_is_in_every_step_of_each_client(settings):
    model = of_rank(8)
    plain = mixed(model)
    penalty = Pulled(mu=0.3).penalty
    alone, together = both(model, [replace(job, penalty=penalty) for job in plain], settings)
    assert largest_difference(alone, together) <= 1e-10
    without, _ = both(model, plain, settings)
    assert largest_difference(alone, without) > 1e-6


@pytest.mark.parametrize("together", [False, True], ids=["sequential", "cohort"])
def test_the_penalty_sees_the_clients_own_trained_tensors(together):
    model, seen = of_rank(8), []

    def penalty(tensors, before):
        seen.append(({key: value.detach().clone() for key, value in tensors.items()}, before))
        return None if len(seen) % 2 else torch.zeros(())

    jobs = [replace(job, penalty=penalty, keys=job.keys[:3]) for job in mixed(model)]
    settings = TrainingSettings(local_steps=2, batch_size=4, optimizer="sgd", learning_rate=0.1)
    trained(jobs, model, settings, together=together)
    assert len(seen) == 6
    order = [0, 1, 2, 0, 1, 2] if together else [0, 0, 1, 1, 2, 2]
    for number, (tensors, before) in zip(order, seen, strict=True):
        assert set(tensors) == set(before) == set(jobs[number].keys)
        assert all(torch.equal(value, jobs[number].tensors[key]) for key, value in before.items())
    firsts, lasts = (seen[:3], seen[3:]) if together else (seen[::2], seen[1::2])
    assert all(torch.equal(value, before[key]) for tensors, before in firsts for key, value in tensors.items())
    assert not any(torch.equal(value, before[key]) for tensors, before in lasts for key, value in tensors.items())


def test_the_gradient_of_a_penalty_by_hand():
    """Without clipping, one step of SGD moves by the rate times the penalty's gradient more."""
    model = of_rank(8)
    settings = TrainingSettings(local_steps=1, batch_size=4, optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
    jobs = mixed(model)

    def penalty(tensors, before):
        return torch.stack([3 * value.square().sum() for value in tensors.values()]).sum()

    for together in (False, True):
        plain = trained(jobs, model, settings, together=together)
        more = trained([replace(job, penalty=penalty) for job in jobs], model, settings, together=together)
        for job, one, other in zip(jobs, plain, more, strict=True):
            for key in job.keys:
                expected = one.tensors[key] - 0.1 * 6 * job.tensors[key]
                torch.testing.assert_close(other.tensors[key], expected, atol=1e-12, rtol=0)
