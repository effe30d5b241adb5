"""Clients that start from an initial A of their own: what is drawn, what refuses it, and what is measured from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.adapters.similarity import cosine
from fedsa.algorithms import make_algorithm
from fedsa.client.state import initial_of_client
from fedsa.client.training import sequential
from fedsa.client.training.job import Job
from fedsa.errors import ConfigError
from fedsa.recipe import Recipe, apply_overrides, parse_recipe
from fedsa.runs.analysis import analyze
from fedsa.runs.personal import PersonalStates
from fedsa.types import Factor, Key

OWN = "adapter.own_initial_a=true"
LOCAL = ["algorithm=local", OWN]
A, B = Key("layer.query", Factor.A), Key("layer.query", Factor.B)
LOCAL_A = A._replace(adapter="local")
INITIAL = {A: torch.full((4, 64), 9.0), LOCAL_A: torch.full((4, 64), 9.0), B: torch.zeros(32, 4)}


def started(recipe: Recipe, client: str, method: str = "local", **options: Any) -> dict[Key, torch.Tensor]:
    own_a, algorithm = recipe.adapter.own_initial_a, make_algorithm(method, {})
    initial = options.pop("initial", INITIAL)
    return dict(initial_of_client(initial, algorithm, client, seed=recipe.seed, own_a=own_a, **options))


def test_each_client_draws_its_own_as_lora_does(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(*LOCAL)
    one, other = started(recipe, "one"), started(recipe, "other")
    assert torch.equal(one[A], started(recipe, "one")[A])
    assert abs(cosine(one[A], other[A])) < 0.3
    assert not torch.equal(one[A], one[LOCAL_A])
    assert not torch.equal(one[A], started(tiny_recipe(*LOCAL, "seed=1"), "one")[A])
    assert 0.11 < one[A].max() <= 1 / 8  # 1/√in
    assert -1 / 8 <= one[A].min() < -0.11
    assert torch.equal(one[B], INITIAL[B])
    assert (INITIAL[A] == 9).all()
    assert started(tiny_recipe("algorithm=local"), "one")[A] is INITIAL[A]


def test_a_lower_rank_has_the_first_rows(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(*LOCAL)
    low = started(recipe, "one", rank=1)
    assert low[B].shape == (32, 1)
    assert torch.equal(low[A], started(recipe, "one")[A][:1])


def test_what_is_shared_or_starts_at_zero_is_not_drawn(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(*LOCAL)
    mixed = started(recipe, "one", "feddpa")
    assert mixed[A] is INITIAL[A]
    assert not torch.equal(mixed[LOCAL_A], INITIAL[LOCAL_A])
    zero = {A: torch.zeros(4, 64), B: torch.ones(32, 4)}  # an adapted embedding
    assert not started(recipe, "one", initial=zero)[A].any()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["algorithm=fedsa"], "does not go with fedsa: no A stays at the client"),
        (["algorithm=ffa"], "does not go with ffa: no A stays at the client: sent, received or frozen"),
        (["algorithm=rolora"], "does not go with rolora: no A stays"),
        (
            ["algorithm=local", "adapter.variant=vera"],
            "vera has no A to draw: its vectors start from constants, and its random A and B are frozen",
        ),
        (["algorithm=local", "adapter.variant=pissa"], "pissa has no A to draw: its A starts from the base weights"),
        (["algorithm=local", "adapter.variant=ia3"], "ia3 has no A to draw: it trains no A"),
        (["algorithm=alora", "adaptation.share_personal=true"], "averages clients' A's"),
    ],
)
def test_where_it_would_have_no_meaning_it_is_refused(
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    settings: list[str],
    reason: str,
) -> None:
    path = recipe_file(*[text for text in settings if "ia3" not in text and "vera" not in text])
    words = [word for text in [OWN, *settings] for word in ("--set", text)]
    if {"adapter.variant=vera", "adapter.variant=ia3"} & set(settings):
        words += ["--set", f"adapter={{variant='{settings[1].rpartition('=')[2]}', own_initial_a=true}}"]
    out = tmp_path / "run"
    for command in (["run", path, "--out", out], ["plan", path]):
        outcome = fedsa_command(*command, *words)
        assert outcome.code == 2
        assert reason in " ".join(outcome.error.split())
    assert not out.exists()


def test_dora_and_alora_are_not_refused(tiny_data: dict[str, Any]) -> None:
    from fedsa.algorithms import check_algorithm

    for settings in (["algorithm=alora"], ["algorithm=local", "adapter.variant=dora"], ["algorithm=feddpa"]):
        parse_recipe(apply_overrides(tiny_data, [OWN, *settings]), checks=[check_algorithm])
    with pytest.raises(ConfigError, match="own_initial_a"):
        parse_recipe(apply_overrides(tiny_data, [OWN]), checks=[check_algorithm])


def test_training_begins_at_the_clients_own(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*LOCAL, "rounds=1", "training.trainer=sequential")
    federation = run.federation
    recipe, model = federation.recipe, federation.model
    for client in federation.clients:
        start = started(recipe, client, initial=model.initial)
        job = Job(client, 1, 1, 0, start, model.keys, (), {}, federation.rows.partition.clients[client].train)
        parts = {"task": federation.task, "encoded": federation.encoded, "settings": recipe.training}
        after = sequential.train(job, model=model, **parts).tensors
        kept = run.folder.client_states.load_client(client, 1).tensors
        assert kept.keys() == after.keys()
        assert all(torch.equal(kept[key], value) for key, value in after.items())


@pytest.mark.parametrize("method", ["local", "alora"])
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(
    tiny_run: Callable[..., Any], tiny_model_without_dropout: Path, method: str
) -> None:
    settings = [f"algorithm={method}", OWN, "rounds=2", f"model.path={tiny_model_without_dropout}", "adapter.dropout=0"]
    one, many = (tiny_run(*settings, f"training.trainer={name}") for name in ("sequential", "cohort"))
    assert many.federation.recipe.training.cohort_size > 1
    for client in one.federation.clients:
        expected, given = one.personal(client), many.personal(client)
        for key, value in expected.items():
            torch.testing.assert_close(given[key], value, atol=1e-4, rtol=1e-3)


def test_movement_and_distance_are_from_each_clients_own_start(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*LOCAL, "rounds=2", "keep_rounds=all")
    found, recipe = analyze(run.folder.path), run.federation.recipe
    key = next(key for key in run.federation.model.initial if key.factor is Factor.A)
    starts = [started(recipe, client, initial=run.folder.load_initial())[key] for client in found.clients]
    for round in (1, 2):
        ends = [run.folder.client_states.load_client(client, round).tensors[key] for client in found.clients]
        moved = [end - start for end, start in zip(ends, starts, strict=True)]
        assert found.matrices[round, "raw", "A", key.module][0, 1] == cosine(ends[0], ends[1])
        assert found.matrices[round, "moved", "A", key.module][0, 1] == cosine(moved[0], moved[1])
        expected = [float(move.norm() / start.norm()) for move, start in zip(moved, starts, strict=True)]
        assert found.distances[round, "A", key.module].tolist() == pytest.approx(expected, rel=1e-6)
        assert max(expected) < 1  # from the common start it would be about √2
    first = found.matrices[1, "moved", "A", key.module]
    assert (found.matrices[1, "within", "A", key.module] == first).all()


def test_one_that_has_not_trained_holds_its_own(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*LOCAL, "rounds=1", "fraction_train=0.34")
    states = PersonalStates(run.folder, run.federation.algorithm, 1)
    (idle, *_) = [
        client for client in run.federation.clients if run.folder.client_states.load_client(client, 1) is None
    ]
    own = started(run.federation.recipe, idle, initial=states.initial)
    assert all(torch.equal(value, own[key]) for key, value in states.of(idle).items())
    assert len(list(states.trained())) == 1


def test_a_held_out_client_draws_one_too(tiny_run: Callable[..., Any]) -> None:
    settings = ["holdout_clients=0.34", "adaptation={steps=1}", "training.learning_rate=1e-6"]
    run = tiny_run(*LOCAL, "rounds=1", *settings)
    (client,) = run.federation.held_out
    kept = run.folder.client_states.load_personal(client, run.summary["unseen"]["round"])
    own = started(run.federation.recipe, client, initial=run.federation.model.initial)
    for key in own:
        torch.testing.assert_close(kept[key], own[key], atol=1e-4, rtol=0)
    assert json.loads((run.folder.path / "summary.json").read_text())["unseen"]["clients"] == 1
