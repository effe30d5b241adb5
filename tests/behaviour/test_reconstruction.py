"""Clients that keep nothing: their personal tensors are fitted anew from their rows whenever they are needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.client.evaluation import evaluate
from fedsa.client.training import sequential
from fedsa.cost.traffic import count_traffic
from fedsa.federation import Federation
from fedsa.runs.export import personal_state
from fedsa.seeds import derive_seed
from fedsa.server import load_state
from fedsa.types import Factor, Side

RECONSTRUCT = ("personal_state=reconstruct", "reconstruction.steps=2", "training.learning_rate=0.05")


class Nothing:
    """States of clients, of which none must be kept."""

    def load_client(self, client: str, round: int) -> None:
        return None

    def save_client(self, client: str, round: int, state: object) -> None:
        raise AssertionError("the client keeps something")

    save_personal = save_client

    def load_ahead(self, clients: object, round: int) -> None:
        pass


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_nothing_of_a_client_is_kept_between_rounds(tiny_run: Callable[..., Any], trainer: str) -> None:
    run = tiny_run(*RECONSTRUCT, f"training.trainer={trainer}", "rounds=3")
    chosen, last = run.summary["chosen_round"], run.summary["rounds"]
    names = {path.name for path in (run.folder.path / "clients").rglob("*.safetensors")}
    assert names == {f"personal-{round:06d}.safetensors" for round in (chosen, last)}  # what was tested, for the export
    assert run.folder.server_states.client_versions(3) == {}
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert all("reconstruction_loss" in line["train"] for line in lines if line["train"])


@pytest.mark.run
@pytest.mark.parametrize("freeze", [True, False])
def test_a_round_refits_what_is_personal_and_then_trains_what_is_shared(
    tiny_recipe: Callable[..., Any], freeze: bool
) -> None:
    recipe = tiny_recipe(
        *RECONSTRUCT, "training.trainer=sequential", f"reconstruction.freeze_personal={str(freeze).lower()}"
    )
    federation = Federation.from_recipe(recipe)
    site = federation.site(Nothing())
    server = federation.initial_state()
    server = replace(
        server,
        tensors={key: value + 0.1 if key.factor is Factor.A else value for key, value in server.tensors.items()},
        versions={key: 1 if key.factor is Factor.A else 0 for key in server.tensors},
    )
    payloads = federation.server(server, {}).payloads(["site 1"], 2)
    (update,) = site.train(payloads)
    # the same by hand
    job = site.prepare(payloads["site 1"])
    assert all(
        torch.equal(job.tensors[key], federation.model.initial[key])
        for key in job.tensors
        if key.factor is not Factor.A
    )
    common = {"model": federation.model, "task": federation.task, "encoded": federation.encoded}
    settings = federation.recipe.training
    personal = tuple(key for key in job.keys if key.factor.side is not Side.A)
    assert personal
    refit = sequential.train(
        replace(job, keys=personal, seed=derive_seed(0, "reconstruction")),
        settings=settings.model_copy(update={"local_steps": 2}),
        **common,
    )
    assert all(torch.equal(refit.tensors[key], job.tensors[key]) for key in job.keys if key.factor is Factor.A)
    shared = tuple(key for key in job.keys if key.factor is Factor.A)
    after = sequential.train(
        replace(job, tensors=refit.tensors, keys=shared if freeze else job.keys), settings=settings, **common
    )
    assert set(update.tensors) == set(shared)
    assert all(torch.equal(update.tensors[key], after.tensors[key]) for key in shared)


def test_a_client_is_measured_with_tensors_fitted_to_its_training_rows(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*RECONSTRUCT, "training.trainer=sequential", "rounds=3")
    federation, last = run.federation, run.summary["rounds"]
    server = federation.server(load_state(run.folder.server_states, last), {})
    for name in federation.clients:
        job = federation.site(Nothing()).prepare(server.payload(name, last + 1))
        (fitted,) = federation.learner.fit_personal([job], federation.recipe.reconstruction)
        exported = personal_state(run.folder, federation.algorithm, name, last)
        assert exported.keys() == fitted.tensors.keys()
        assert all(torch.equal(exported[key], value) for key, value in fitted.tensors.items())
        assert any(bool(value.any()) for key, value in exported.items() if key.factor is Factor.B)
        rows = federation.rows.partition.clients[name].test
        model, task, encoded = federation.model, federation.task, federation.encoded
        ((_, metrics),) = evaluate(model, task, encoded, [(name, fitted.tensors, rows)], batch_size=64)
        assert run.summary["per_client"][name]["test_final"] == metrics


def test_its_rate_is_that_of_the_head_too(tiny_run: Callable[..., Any]) -> None:
    rates = "training.head_learning_rate=0.1", "reconstruction.learning_rate=1e-12"
    run = tiny_run(*RECONSTRUCT, "training.trainer=sequential", "rounds=1", *rates)
    federation = run.federation
    server = federation.server(load_state(run.folder.server_states, 1), {})
    job = federation.site(Nothing()).prepare(server.payload(federation.clients[0], 2))
    (fitted,) = federation.learner.fit_personal([job], federation.recipe.reconstruction)
    assert {key.factor.side for key in fitted.tensors} >= {Side.B, Side.HEAD}
    for key, value in fitted.tensors.items():
        torch.testing.assert_close(value, job.tensors[key], atol=1e-9, rtol=0)


def test_both_trainers_come_to_the_same(tiny_run: Callable[..., Any], tiny_model_without_dropout: Path) -> None:
    settings = (*RECONSTRUCT, f"model.path={tiny_model_without_dropout}", "adapter.dropout=0")
    one, many = (tiny_run(*settings, f"training.trainer={trainer}") for trainer in ("sequential", "cohort"))
    for name in one.federation.clients:
        states = [personal_state(run.folder, run.federation.algorithm, name, 2) for run in (one, many)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, atol=1e-4, rtol=1e-3)


def test_a_client_is_sent_all_that_is_shared_whenever_it_trains(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*RECONSTRUCT, "rounds=4", "fraction_train=0.4")
    kept = tiny_run("rounds=4", "fraction_train=0.4", "training.learning_rate=0.05")
    assert run.summary["total_download_bytes"] >= kept.summary["total_download_bytes"]
    counted = count_traffic(run.federation.algorithm, run.federation.model.initial, run.federation.recipe, 3)
    assert counted == (run.summary["total_upload_bytes"], run.summary["total_download_bytes"])
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    size = run.summary["download_bytes"]
    assert {(line["round"] > 1, line["download_bytes"]) for line in lines if line["train"]} == {
        (False, 0),
        (True, size),
    }


def test_export_writes_the_tensors_that_were_tested(
    fedsa_command: Callable[..., Any], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    run = tiny_run(*RECONSTRUCT, "training.trainer=sequential", "rounds=3")
    outcome = fedsa_command("export", run.folder.path, "--client", "site 1", "--to", tmp_path / "to")
    assert outcome.code == 0, outcome
    metrics = run.summary["per_client"]["site 1"]["test"]
    assert f"aggregate: {metrics['accuracy']:.4f} (" in (tmp_path / "to" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["training.optimizer_state=keep"], "training.optimizer_state must be 'reset'"),
        (["evaluation.evaluate_after=both"], "evaluation.evaluate_after must be 'aggregate'"),
        (["algorithm=local"], "local shares nothing in some round"),
        (["algorithm=fedit", "share_head=true"], "fedit keeps nothing at the client"),
        (["algorithm=flora"], "flora keeps nothing at the client"),  # its A and B begin anew, but they are sent
    ],
)
def test_what_does_not_go_with_it_is_refused(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path, settings: list[str], part: str
) -> None:
    outcome = fedsa_command("run", recipe_file("personal_state=reconstruct", *settings), "--out", tmp_path / "run")
    assert outcome.code == 2
    assert part in outcome.error
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_store_is_the_default_and_keeps_clients(finished_run: Path) -> None:
    assert list((finished_run / "clients").rglob("round-*.safetensors"))
    assert not list(finished_run.rglob("personal-*"))
