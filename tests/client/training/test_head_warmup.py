"""The head's warm-up: the head alone is fitted, by one pass through what is under it, when a client begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fedsa.client.training.head_warmup import warm_up
from fedsa.client.training.job import Job
from fedsa.errors import ConfigError, ModelError, TrainingError
from fedsa.federation import Federation
from fedsa.recipe import TrainingSettings
from fedsa.types import Side
from support.tiny_models import BASES, TASK, adapt, token_rows

pytestmark = pytest.mark.run


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.client.training.head_warmup._BATCH", 4)


@pytest.fixture(scope="module")
def federation(tiny_recipe: Callable[..., Any]) -> Federation:
    return Federation.from_recipe(tiny_recipe())


def heads_of(federation: Federation) -> list[Any]:
    return [key for key in federation.model.keys if key.factor.side is Side.HEAD]


def job_of(federation: Federation, **changes: Any) -> Job:
    client = federation.clients[0]
    rows = federation.rows.partition.clients[client].train
    tensors = federation.model.initial
    job = Job(client, 1, 4, 0, tensors, federation.model.keys, (), {}, rows)
    return replace(job, **changes)


def fitted(federation: Federation, job: Job, **settings: Any) -> Any:
    chosen = TrainingSettings(**{"head_warmup_epochs": 3, "head_warmup_learning_rate": 0.02, **settings})
    common = {"model": federation.model, "task": federation.task, "encoded": federation.encoded}
    (result,) = warm_up([job], **common, settings=chosen)
    return result


def pooled(federation: Federation, rows: Any) -> Any:
    """Return what the head gets of rows, by a hook on it."""
    seen: list[torch.Tensor] = []
    model = federation.model
    model.write(model.initial)
    with (
        model.model.get_base_model().classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        torch.no_grad(),
    ):
        federation.task.outputs(model.model, federation.encoded.batch(rows))
    return seen[0].float()


def loss_of_head(tensors: Any, features: torch.Tensor, labels: Any) -> float:
    weight, bias = (
        next(value for key, value in tensors.items() if key.factor.side is Side.HEAD and value.dim() == dim)
        for dim in (2, 1)
    )
    return float(torch.nn.functional.cross_entropy(features @ weight.T + bias, torch.from_numpy(labels)))


def test_the_head_alone_is_fitted(federation: Federation) -> None:
    job = job_of(federation)
    result = fitted(federation, job)
    changed = {key for key, value in result.tensors.items() if not torch.equal(value, job.tensors[key])}
    assert changed == set(heads_of(federation))
    assert set(result.metrics) == {"loss", "seconds"}


def test_a_long_warm_up_comes_to_the_regression_on_what_the_base_makes_of_the_rows(federation: Federation) -> None:
    """The oracle is scikit-learn's, with hardly any penalty, on the rows' features that a hook on the head saw."""
    job = job_of(federation)
    features, labels = pooled(federation, job.rows), federation.encoded.labels[job.rows]
    expected = LogisticRegression(C=1e4, max_iter=10_000).fit(features.numpy(), labels)
    best = -torch.tensor(expected.predict_log_proba(features.numpy()))[torch.arange(len(labels)), labels].mean()
    result = fitted(federation, job, head_warmup_epochs=300, head_warmup_learning_rate=0.1)
    before, after = (loss_of_head(tensors, features, labels) for tensors in (job.tensors, result.tensors))
    assert after == pytest.approx(float(best), abs=0.02)
    assert before > float(best) + 0.05


def test_what_is_under_the_head_is_computed_once(federation: Federation) -> None:
    under = federation.model.model.get_base_model().base_model
    calls = []
    with under.encoder.register_forward_pre_hook(lambda *_: calls.append(1)):
        fitted(federation, job_of(federation), head_warmup_epochs=5)
    rows = len(job_of(federation).rows)
    assert len(calls) == -(-rows // 4)
    assert "forward" not in vars(under)
    again = []
    with under.encoder.register_forward_pre_hook(lambda *_: again.append(1)):
        for _ in range(2):
            federation.task.outputs(federation.model.model, federation.encoded.batch(job_of(federation).rows[:2]))
    assert len(again) == 2  # nothing is remembered any more


def test_who_has_trained_before_keeps_its_head_and_what_the_server_sends_is_fitted_once(federation: Federation) -> None:
    heads = tuple(heads_of(federation))
    for changes, expected in (
        ({"stored": federation.model.keys}, False),
        ({"round": 3}, True),  # a client's own, of one that comes late
        ({"round": 3, "received": heads}, False),
        ({"received": heads}, True),
        ({"keys": tuple(key for key in federation.model.keys if key not in heads)}, False),
    ):
        job = job_of(federation, **changes)
        result = fitted(federation, job)
        assert any(not torch.equal(result.tensors[key], job.tensors[key]) for key in heads) is expected, changes
        assert bool(result.metrics) is expected


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_every_kind_of_model_gives_the_loss_that_it_gives_without_the_memory(make: Callable[..., Any]) -> None:
    model, encoded = adapt(make, dtype=torch.float32), token_rows(40)
    heads = tuple(key for key in model.keys if key.factor.side is Side.HEAD)
    start = {key: value.float() for key, value in model.initial.items()}
    rows = np.arange(40)

    def whole(tensors: Any) -> float:
        model.write(tensors)
        with model.evaluating():
            sums, _ = TASK.losses(model.model, model.begin(encoded.batch(rows), [len(rows)]))
        return float(sums.mean())

    def warmed(rate: float, epochs: int) -> Any:
        settings = TrainingSettings(head_warmup_epochs=epochs, head_warmup_learning_rate=rate)
        job = Job("one", 1, 4, 0, start, model.keys, (), {}, rows)
        return warm_up([job], model=model, task=TASK, encoded=encoded, settings=settings)[0]

    assert heads
    still, moved = warmed(1e-12, 1), warmed(1e-2, 10)
    assert still.metrics["loss"] == pytest.approx(whole(start), rel=1e-4)
    assert whole(moved.tensors) < whole(start) - 0.05
    assert all(torch.equal(moved.tensors[key], start[key]) is (key not in heads) for key in start)


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_a_run_warms_up_in_its_first_round_alone(tiny_run: Callable[..., Any], trainer: str) -> None:
    run = tiny_run("training.head_warmup_epochs=2", f"training.trainer={trainer}", "rounds=2")
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    by_round = {
        round: ["head_warmup_loss" in line["train"] for line in lines if line["round"] == round] for round in (1, 2)
    }
    assert by_round[1]
    assert all(by_round[1])
    assert by_round[2]
    assert not any(by_round[2])


def test_heads_that_are_fitted_anew_in_every_round_are_not_warmed_up(tiny_recipe: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"training\.head_warmup_epochs.*reconstruct"):
        tiny_recipe("training.head_warmup_epochs=1", "personal_state=reconstruct")


def test_a_model_that_does_not_tell_its_head_is_refused_before_anything_is_trained(
    tiny_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.BertForSequenceClassification.base_model_prefix", "nothing")
    with pytest.raises(ModelError, match="BertForSequenceClassification does not tell its head"):
        Federation.from_recipe(tiny_recipe("training.head_warmup_epochs=1"))


@pytest.mark.parametrize(("share", "refused"), [("true", True), ("false", False)])
def test_a_server_optimizer_is_not_to_carry_the_warm_up_on(
    tiny_recipe: Callable[..., Any], share: str, refused: bool
) -> None:
    settings = ("algorithm=fedit", f"share_head={share}", "server.optimizer=fedavgm", "training.head_warmup_epochs=1")
    if refused:
        with pytest.raises(ModelError, match=r"server\.optimizer = 'fedavgm' where the head is sent"):
            Federation.from_recipe(tiny_recipe(*settings))
    else:
        Federation.from_recipe(tiny_recipe(*settings))


def test_what_is_not_finite_names_the_warm_up(federation: Federation) -> None:
    infinite = {
        key: value + (torch.inf if key.factor.side is Side.HEAD else 0)
        for key, value in federation.model.initial.items()
    }
    with pytest.raises(TrainingError, match=r"warm-up of its head is not finite.*head_warmup_learning_rate"):
        fitted(federation, job_of(federation, tensors=infinite))


def test_memory_that_runs_out_is_told(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(federation.task), "losses", none_left)
    learner = replace(federation.learner, training=TrainingSettings(head_warmup_epochs=1))
    with pytest.raises(TrainingError, match="out of memory on cpu"):
        learner.warm_heads([job_of(federation)])


def test_only_as_many_rows_are_kept_as_memory_is_meant_for(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = federation.model.model.get_base_model().base_model
    rows, lengths = job_of(federation).rows, federation.encoded.lengths
    width = federation.model.model.get_base_model().config.hidden_size
    monkeypatch.setattr("fedsa.client.training.head_warmup._MOST_BYTES", int(lengths[rows].mean()) * width * 4 * 8)
    seen = []
    with under.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(len((args or list(inputs.values()))[0])), with_kwargs=True
    ):
        fitted(federation, job_of(federation), head_warmup_epochs=1)
    assert 4 <= sum(seen) <= 12 < len(rows)


def test_a_batch_without_a_single_term_is_no_loss(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tagging, say, where rows without words are of like length and meet in one batch."""
    losses = type(federation.task).losses

    def none(task: Any, model: Any, batch: Any) -> Any:
        sums, counts = losses(task, model, batch)
        return sums * 0, counts * 0

    monkeypatch.setattr(type(federation.task), "losses", none)
    assert fitted(federation, job_of(federation)).metrics["loss"] == 0.0
