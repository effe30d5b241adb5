"""Example-level differential privacy: each row's gradient, its clipping, the noise, and how rows are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsa.accounting import privacy_in_words
from fedsa.client.site import with_secret
from fedsa.client.training import private, row_gradients
from fedsa.client.training.job import Job, TrainingResult
from fedsa.client.training.private import Privacy
from fedsa.client.training.row_gradients import OneByOne, RowsTogether, Values, largest_difference
from fedsa.models import AdaptedModel
from fedsa.models.dropout import Streams
from fedsa.recipe import ExamplePrivacySettings, TrainingSettings
from fedsa.types import Key, Side
from support.cohorts import jobs_of
from support.extras import NEEDS_PRIVACY
from support.tiny_models import TASK, adapt, bert, gpt2, roberta, token_rows

SGD = TrainingSettings(local_steps=1, batch_size=100, optimizer="sgd", learning_rate=1.0, trainer="cohort")
"""One step with all rows: what it comes to is the sum of clipped gradients over their number."""


def loop(
    model: AdaptedModel, jobs: Sequence[Job], owners: Sequence[int], rows: Sequence[int], seeds: Sequence[int]
) -> Any:
    """Return each row's gradients by autograd alone, one row at a time."""
    found: dict[Key, list[Tensor]] = {key: [] for key in jobs[0].keys}
    for owner, row, seed in zip(owners, rows, seeds, strict=True):
        model.write(jobs[owner].tensors)
        parameters = model.train_only(jobs[0].keys)
        with model.training():
            batch = model.begin(token_rows().batch(np.array([row])), [1], seeds=[seed], batches=[0])
            sums, counts = TASK.losses(model.model, batch)
            gradients = torch.autograd.grad((sums / counts).sum(), [parameters[key] for key in jobs[0].keys])
        for key, gradient in zip(jobs[0].keys, gradients, strict=True):
            found[key].append(gradient)
    return {key: torch.stack(own) for key, own in found.items()}


def values_of(model: AdaptedModel, jobs: Sequence[Job]) -> Values:
    return Values({key: torch.stack([job.tensors[key] for job in jobs]) for key in model.keys})


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize(
    ("make", "variant"),
    [
        *((bert, variant) for variant in ("lora", "rslora", "vera", "dora", "lora_xs", "loha", "ia3")),
        (roberta, "lora"),
        (gpt2, "lora"),
    ],
)
def test_rows_together_have_the_gradients_of_each_alone(make: Any, variant: str, clients: int) -> None:
    dropout = {} if variant in ("loha", "ia3") else {"dropout": 0.3}
    model = adapt(make, variant, **dropout)
    jobs = jobs_of(model, (5, 4, 3)[:clients])
    owners = [place for place in range(clients) for _ in range(3)]
    rows = [row for job in jobs for row in job.rows[:3].tolist()]
    seeds = [7 * number for number in range(len(rows))]
    expected = loop(model, jobs, owners, rows, seeds)
    keys, values, numbers = jobs[0].keys, values_of(model, jobs), np.array(rows)
    with model.stack(len(rows) + 2, keys) as stack, model.training():
        _, together = RowsTogether(model, TASK, token_rows(), stack)(values, keys, owners, numbers, seeds)
    with model.training():
        _, one_by_one = OneByOne(model, TASK, token_rows())(values, keys, owners, numbers, seeds)
    assert largest_difference(expected, one_by_one) < 1e-12
    assert largest_difference(expected, together) < 1e-5
    assert min(float(gradient.flatten(1).norm(dim=1).max()) for gradient in expected.values()) > 0
    if "dropout" in dropout and variant == "lora":
        other = loop(model, jobs, owners, rows, [seed + 1 for seed in seeds])
        assert largest_difference(expected, other) > 1e-3, "each row has a dropout of its own"


def trained(
    model: AdaptedModel, jobs: Sequence[Job], settings: TrainingSettings, secret: bytes | None = None, **privacy: Any
) -> list[TrainingResult]:
    own = Privacy(ExamplePrivacySettings(**privacy), secret)
    return private.train(jobs, own, model=model, task=TASK, encoded=token_rows(), settings=settings)


def change(job: Job, result: TrainingResult) -> Tensor:
    """Return how all trained tensors have changed, as one."""
    return torch.cat([(result.tensors[key] - job.tensors[key]).flatten() for key in job.keys])


@pytest.mark.parametrize("trainer", ["cohort", "sequential"])
def test_a_step_is_the_mean_of_clipped_gradients(trainer: Any) -> None:
    model = adapt()
    jobs = jobs_of(model, (4, 7))
    results = trained(model, jobs, SGD.model_copy(update={"trainer": trainer}), noise_multiplier=0, clipping_norm=0.5)
    for place, (job, result) in enumerate(zip(jobs, results, strict=True)):
        rows = job.rows.tolist()
        gradients = loop(model, jobs, [place] * len(rows), rows, [0] * len(rows))
        flat = torch.cat([gradients[key].flatten(1) for key in job.keys], dim=1)
        assert float(flat.norm(dim=1).max()) > 0.5, "some row is clipped"
        clipped = flat * (0.5 / flat.norm(dim=1)).clamp(max=1)[:, None]
        assert torch.allclose(change(job, result), -clipped.sum(0) / len(rows), atol=1e-10)
        assert result.metrics["steps"] == 1


def test_a_row_more_or_less_moves_the_sum_by_no_more_than_the_bound() -> None:
    """A, B and head together: each by itself would move it by up to the root of three times as much."""
    model = adapt()
    (job,) = jobs_of(model, (6,))
    bound = 0.05
    for left_out in range(3):
        fewer = replace(job, rows=np.delete(job.rows, left_out))
        (all_rows,) = trained(model, [job], SGD, noise_multiplier=0, clipping_norm=bound)
        (without,) = trained(model, [fewer], SGD, noise_multiplier=0, clipping_norm=bound)
        difference = 6 * change(job, all_rows) - 5 * change(fewer, without)
        assert float(difference.norm()) == pytest.approx(bound, rel=1e-6)
        sides = {key.factor.side for key in job.keys}
        assert sides == {Side.A, Side.B, Side.HEAD}


def test_noise_goes_to_every_trained_tensor_and_has_the_size_that_the_recipe_says() -> None:
    model = adapt()
    jobs = jobs_of(model, (10, 5), trained=lambda key: key.factor.side is not Side.A)
    results = trained(model, jobs, SGD, noise_multiplier=4.0, clipping_norm=1e-6)
    for job, result, rows in zip(jobs, results, (10, 5), strict=True):
        noise = change(job, result) * rows / 4e-6
        assert float(noise.std()) == pytest.approx(1.0, rel=0.1)
        untrained = [key for key in job.tensors if key not in job.keys]
        assert untrained
        assert all(torch.equal(result.tensors[key], job.tensors[key]) for key in untrained)
    one, two = (change(job, result)[:50] for job, result in zip(jobs, results, strict=True))
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.5, "each client has a noise of its own"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_clients_together_come_to_what_each_comes_to_alone(optimizer: Any) -> None:
    training = TrainingSettings(
        local_steps=4, batch_size=4, optimizer=optimizer, optimizer_state="keep", trainer="cohort"
    )
    model = adapt(dropout=0.2)
    jobs = jobs_of(model, (7, 20, 12))
    together = trained(model, jobs, training, noise_multiplier=0.8, clipping_norm=0.5)
    slow = training.model_copy(update={"trainer": "sequential"})
    alone = [trained(model, [job], slow, noise_multiplier=0.8, clipping_norm=0.5)[0] for job in jobs]
    for one, other in zip(alone, together, strict=True):
        assert all(torch.allclose(one.tensors[key], other.tensors[key], atol=1e-9) for key in one.tensors)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-9)
        assert one.optimizer_state.keys() == other.optimizer_state.keys()


def test_each_row_is_drawn_by_itself_with_the_probability_that_is_accounted_for() -> None:
    model = adapt()
    (job,) = jobs_of(model, (40,))
    settings, own = TrainingSettings(batch_size=10), Privacy(ExamplePrivacySettings(noise_multiplier=1))
    drawn = np.zeros((400, 40))
    for step in range(400):
        for _, row, _ in private._drawn([job], own, settings, step):
            drawn[step, row] += 1
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert np.all(np.abs(drawn.mean(0) - 0.25) < 0.12), "every row"
    assert drawn.sum(1).std() == pytest.approx((40 * 0.25 * 0.75) ** 0.5, rel=0.15), "and each by itself"
    seeds = [seed for _, _, seed in private._drawn([job], own, settings, 0)]
    assert len(set(seeds)) == len(seeds)


def test_a_secret_decides_noise_and_rows_and_the_shared_seed_does_not() -> None:
    model = adapt()
    (job,) = jobs_of(model, (30,))
    settings = TrainingSettings(local_steps=2, batch_size=5, trainer="cohort")
    noise = {"noise_multiplier": 1.0, "clipping_norm": 0.5}

    def result(secret: bytes | None, seed: int) -> Tensor:
        (only,) = trained(model, [replace(job, seed=seed)], settings, secret, **noise)
        return change(job, only)

    assert torch.equal(result(b"a" * 32, 0), result(b"a" * 32, 1))
    assert not torch.equal(result(b"a" * 32, 0), result(b"b" * 32, 0))
    assert not torch.equal(result(None, 0), result(None, 1))
    assert torch.equal(result(None, 0), result(None, 0))


def test_with_a_secret_another_beginning_has_other_noise_and_other_rows() -> None:
    """The same client, round and step: two answers would else differ by no more than what was trained."""
    model = adapt()
    (job,) = jobs_of(model, (400,))
    other = replace(job, tensors={key: value + 1e-9 for key, value in job.tensors.items()})
    settings = TrainingSettings(batch_size=200)

    def drawn(job: Job, secret: bytes | None) -> tuple[list[int], Tensor]:
        privacy = Privacy(ExamplePrivacySettings(noise_multiplier=1), secret)
        rows = [row for _, row, _ in private._drawn([job], privacy, settings, 0)]
        return rows, private._noise("gradients", job, privacy, 0).normal((8,))

    def same(one: tuple[list[int], Tensor], two: tuple[list[int], Tensor]) -> list[bool]:
        return [one[0] == two[0], torch.equal(one[1], two[1])]

    secret = b"s" * 32
    assert same(drawn(job, secret), drawn(replace(job), secret)) == [True, True]
    assert same(drawn(job, secret), drawn(other, secret)) == [False, False]
    state = {"step|x": torch.ones(1)}
    assert same(drawn(job, secret), drawn(replace(job, optimizer_state=state), secret)) == [False, False]
    assert same(drawn(job, None), drawn(other, None)) == [True, True], "a simulation is as it was"


@pytest.mark.parametrize("dropout", ["of the base", "of the adapter"])
def test_with_a_secret_all_dropout_comes_from_it(dropout: str) -> None:
    """Masks from a public seed: one row more moves those of the rows behind it, in a way that can be worked out."""
    model = adapt(base={"hidden_dropout_prob": 0.3}) if dropout == "of the base" else adapt(dropout=0.3)
    (job,) = jobs_of(model, (30,))

    def result(secret: bytes | None, seed: int) -> Tensor:
        all_rows = SGD.model_copy(update={"local_steps": 2})
        (only,) = trained(model, [replace(job, seed=seed)], all_rows, secret, noise_multiplier=0.0, clipping_norm=0.5)
        return change(job, only)

    assert torch.equal(result(b"a" * 32, 0), result(b"a" * 32, 1)), "the public seed plays no part"
    assert not torch.equal(result(b"a" * 32, 0), result(b"b" * 32, 0))
    assert torch.equal(result(None, 0), result(None, 0))
    assert not torch.equal(result(None, 0), result(None, 1)), "a simulation's comes from the recipe's seed"


def test_what_gives_wrong_gradients_together_is_found_when_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt()
    before = model.read(model.keys)

    def found() -> str | None:
        return row_gradients.obstacle(model, TASK, token_rows(), np.arange(4), agree=1e-3, keys=model.keys)

    assert found() is None
    assert all(torch.equal(value, before[key]) for key, value in model.read(model.keys).items())
    begin = Streams.begin

    def shifted(self: Streams, layout: Any, *arguments: Any, **options: Any) -> None:
        begin(self, layout, *arguments, **options)
        if layout.tokens.single_rows:  # each row goes through its neighbour's adapter
            object.__setattr__(layout.tokens, "single_rows", 0)
            object.__setattr__(layout.tokens, "counts", (0, *layout.tokens.counts[:-1]))

    monkeypatch.setattr(Streams, "begin", shifted)
    why = found()
    assert why is not None
    assert "together differ" in why


@NEEDS_PRIVACY
@pytest.mark.run
def test_a_run_spends_what_it_was_told_to_client_by_client(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("privacy={kind='example', target_epsilon=8.0}", "training.trainer=auto")
    assert run.federation.recipe.training.trainer == "cohort"
    assert run.federation.recipe.training.packing is False
    told = run.summary["privacy"]
    assert (told["kind"], told["delta"], told["clipping_norm"]) == ("example", 1e-5, 1.0)
    for client, entry in told["per_client"].items():
        rows = len(run.federation.rows.partition.clients[client].train)
        assert (entry["rounds"], entry["steps"], entry["sampling"]) == (2, 6, 4 / rows)
        assert 7.8 < entry["epsilon"] <= 8.0
    assert told["epsilon"] == max(entry["epsilon"] for entry in told["per_client"].values())


@NEEDS_PRIVACY
@pytest.mark.run
def test_without_noise_there_is_no_bound(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("privacy={kind='example', noise_multiplier=0}", "training.trainer=sequential", "rounds=1")
    assert run.summary["privacy"]["epsilon"] is None


@NEEDS_PRIVACY
@pytest.mark.run
def test_a_site_with_a_secret_makes_all_its_noise_from_it(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("privacy={kind='example', noise_multiplier=0}", "training.trainer=sequential", "rounds=1")
    plain = run.federation.site(run.folder.client_states)
    site = with_secret(plain, b"s" * 32)
    assert plain.learner.privacy.secret is None
    assert site.learner.privacy.secret == site.steps.secret == b"s" * 32
    assert replace(site, learner=plain.learner, steps=plain.steps) == plain


def test_a_sentence_says_what_was_spent() -> None:
    spent = {"kind": "client", "epsilon": 7.951, "delta": 1e-5, "noise_multiplier": 1.25, "clipping_norm": 0.3}
    assert privacy_in_words(spent) == (
        "Differential privacy of each client: ε ≤ 7.95 with δ = 1e-05 (noise multiplier 1.25, clipping norm 0.3)."
    )
    assert "no bound, for there is no noise" in privacy_in_words({**spent, "epsilon": None})
