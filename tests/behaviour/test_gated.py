"""Whole runs of methods whose layers weigh their adapters as each client has learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.cost.plan import plan_run
from fedsa.errors import UserError
from fedsa.recipe import Recipe
from fedsa.runs.export import export
from fedsa.types import Factor, Key
from support.tiny_runs import MEASURED, SETTINGS, states_of

FEDALT = ["algorithm=fedalt", *SETTINGS]
RAVAN = ["algorithm=ravan", "adapter.variant=lora_xs", *SETTINGS]
TREE = ["algorithm=fedtreelora", *SETTINGS]
METHODS = pytest.mark.parametrize("method", [FEDALT, RAVAN, TREE], ids=lambda settings: settings[0])


@METHODS
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(
    tiny_run: Callable[..., Any], tiny_model_without_dropout: Path, method: list[str]
) -> None:
    settings = [*method, f"model.path={tiny_model_without_dropout}", "fraction_train=0.6"]
    one, other = (tiny_run(*settings, f"training.trainer={name}") for name in ("sequential", "cohort"))
    assert other.federation.recipe.training.cohort_size > 1
    given = states_of(other)
    for name, tensor in states_of(one).items():
        torch.testing.assert_close(given[name], tensor, atol=2e-4, rtol=1e-3)
    tests = [run.summary["per_client"] for run in (one, other)]
    for client, figures in tests[0].items():
        assert figures["test"]["loss"] == pytest.approx(tests[1][client]["test"]["loss"], abs=1e-3)


@METHODS
def test_what_is_sent_is_what_was_planned(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], method: list[str]
) -> None:
    partition = "data.partition={kind='iid', clients=5}"
    settings = [*method, partition, "fraction_train=0.4", "training.local_steps=1", "rounds=6"]
    plan, summary = plan_run(tiny_recipe(*settings)), tiny_run(*settings).summary
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}


def test_each_client_holds_the_mean_of_the_others(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*FEDALT)
    rows = {client: len(parts.train) for client, parts in run.federation.rows.partition.clients.items()}
    own = {client: run.personal(client) for client in rows}
    for key in run.federation.model.initial:
        if key.adapter == "rest":
            mine = Key(key.module, key.factor)
            for client in rows:
                others = [other for other in rows if other != client]
                mean = sum(rows[other] * own[other][mine].double() for other in others) / sum(rows[o] for o in others)
                torch.testing.assert_close(own[client][key].double(), mean, atol=1e-6, rtol=1e-5)
        if key.factor is Factor.GATE:
            assert not torch.equal(own["site 0"][key], own["site 1"][key])


def test_the_numbers_of_cores_are_learned_and_are_1_after_the_mean(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*RAVAN)
    (client, *_) = run.federation.clients
    state = run.folder.client_states.load_client(client, 3)
    learned = {key: value for key, value in state.tensors.items() if key.factor is Factor.GATE}
    assert learned
    assert all(value.shape == (4,) and (value - 1).abs().min() > 1e-4 for value in learned.values())
    assert all(run.personal(client)[key].tolist() == [1, 1, 1, 1] for key in learned)


@pytest.mark.parametrize("merge", [False, True])
def test_nothing_is_exported(tiny_run: Callable[..., Any], tmp_path: Path, merge: bool) -> None:
    with pytest.raises(UserError, match="fedalt weighs its adapters for each token"):
        export(tiny_run(*FEDALT).folder.path, tmp_path / "out", merge=merge)
    assert not (tmp_path / "out").exists()


@pytest.mark.run
def test_no_export_is_offered(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    offers = {"fedalt": [], "flora": ["--all --to DIR --merge"], "fedsa": ["--all --to DIR"]}
    for method, expected in offers.items():
        out = tmp_path / method
        lines = fedsa_command("run", recipe_file("rounds=1", f"algorithm={method}"), "--out", out).out
        assert [
            line.partition(str(out))[2].strip() for line in lines.splitlines() if "fedsa export" in line
        ] == expected
        report = (out / "report.html").read_text(encoding="utf-8")
        assert ("fedsa export" in report) is bool(expected)
        assert (f"fedsa export {method} --all --to models --merge" in report) is (method == "flora")
