"""Clients that have not trained yet: their heads are fitted before they are measured, where the recipe says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsa
from fedsa.callbacks import Callback
from fedsa.client.evaluation import evaluate
from fedsa.client.learner import Learner
from fedsa.client.state import personal_tensors
from fedsa.client.training.head_warmup import warm_up
from fedsa.client.training.job import Job
from fedsa.engines.membership import check_only_measured
from fedsa.errors import ConfigError, ModelError, RunFolderError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.export import export, personal_state
from fedsa.runs.personal import PersonalStates
from fedsa.server import load_state, received_by
from fedsa.store import RunFolder
from fedsa.texts.words import counted
from fedsa.types import Key, Payload, Payloads, Side, State

SAMPLED = (
    "data.partition={kind='iid', clients=6}",
    "fraction_train=0.34",
    "rounds=3",
    "seed=1",
    "keep_rounds=all",
    "training.learning_rate=0.05",
    "training.head_warmup_learning_rate=0.05",
    "training.trainer=sequential",
)
FITTED = (*SAMPLED, "evaluation.fit_head_epochs=8")


def untrained(run: Any, round: int) -> list[str]:
    """The clients that have not trained by the end of a round."""
    states = run.folder.client_states
    return [client for client in run.federation.clients if states.load_client(client, round) is None]


def held(run: Any, client: str, round: int) -> State:
    """What an untrained client would hold after a round: its initial tensors, and what the server sends."""
    federation = run.federation
    server = load_state(run.folder.server_states, round) if round else federation.initial_state()
    received = received_by(federation.algorithm, server, client, round + 1)
    return personal_tensors(federation.algorithm, federation.model.initial, None, received)


def with_fitted_head(federation: Federation, client: str, tensors: State) -> State:
    """The tensors after a warm-up of every head tensor on the client's training rows, as a first round would do it."""
    heads = tuple(key for key in tensors if key.factor.side is Side.HEAD)
    job = Job(
        client, 1, 1, federation.recipe.seed, tensors, heads, (), {}, federation.rows.partition.clients[client].train
    )
    settings = federation.recipe.training.model_copy(
        update={"head_warmup_epochs": federation.recipe.evaluation.fit_head_epochs}
    )
    common = {"model": federation.model, "task": federation.task, "encoded": federation.encoded}
    (result,) = warm_up([job], settings=settings, **common)
    return result.tensors


def metrics_with(federation: Federation, client: str, tensors: State, split: str = "test") -> dict[str, float]:
    rows = getattr(federation.rows.partition.clients[client], split)
    model, task, encoded = federation.model, federation.task, federation.encoded
    ((_, metrics),) = evaluate(model, task, encoded, [(client, tensors, rows)], batch_size=64)
    return metrics


def validation(run: Any, name: str = "validation") -> dict[tuple[int, str], dict[str, float]]:
    lines = map(json.loads, (run.folder.path / "metrics.jsonl").read_text("utf-8").splitlines())
    return {(line["round"], line["client"]): line[name] for line in lines}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("algorithm", ["fedsa", "fedit"])
def test_a_client_that_has_not_trained_is_measured_with_a_head_of_its_own_rows(
    tiny_run: Callable[..., Any], algorithm: str
) -> None:
    """By hand, for a head that stays and for one that the server sends: everything else is what the client holds."""
    run = tiny_run(*FITTED, f"algorithm={algorithm}")
    federation, last, found = run.federation, 3, validation(run)
    assert untrained(run, last)
    for round in range(last + 1):
        for client in untrained(run, round):
            tensors = held(run, client, round)
            fitted = with_fitted_head(federation, client, tensors)
            changed = {key.factor.side for key in fitted if not torch.equal(fitted[key], tensors[key])}
            assert changed == {Side.HEAD}
            expected = metrics_with(federation, client, fitted, "validation")
            assert {name: found[round, client][name] for name in expected} == expected
            assert expected["loss"] != metrics_with(federation, client, tensors, "validation")["loss"]
            if round == last:
                assert run.summary["per_client"][client]["test_final"] == metrics_with(federation, client, fitted)
    received = any(federation.algorithm.plan(key, 1).received for key in federation.model.keys if is_head(key))
    assert received is (algorithm == "fedit")


def is_head(key: Key) -> bool:
    return key.factor.side is Side.HEAD


@pytest.mark.parametrize("more", [(), ("training.head_warmup_epochs=2",), ("algorithm=fedit",)], ids=str)
def test_measuring_changes_nothing_of_what_clients_do_later(
    tiny_run: Callable[..., Any], more: tuple[str, ...]
) -> None:
    """A client that was measured with a fitted head, and is drawn afterwards, begins as if it had not been."""
    plain, fitted = (tiny_run(*settings, *more) for settings in (SAMPLED, FITTED))
    late = [client for client in untrained(plain, 1) if client not in untrained(plain, 3)]
    assert late, "some client must be drawn after it was measured"
    files = [
        {
            str(path.relative_to(run.folder.path)): path.read_bytes()
            for pattern in ("server/*.safetensors", "clients/*/round-*.safetensors")
            for path in run.folder.path.glob(pattern)
        }
        for run in (plain, fitted)
    ]
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) > 6
    for name, content in files[0].items():
        assert tensors_in(content) == tensors_in(files[1][name]), name
    before, after = validation(plain), validation(fitted)
    for (round, client), figures in before.items():
        assert (after[round, client] == figures) is (client not in untrained(plain, round)), (round, client)
    untouched = [client for client in plain.federation.clients if client not in untrained(plain, 3)]
    tested = [{c: run.summary["per_client"][c]["test_final"] for c in untouched} for run in (plain, fitted)]
    assert tested[0] == tested[1]


def tensors_in(content: bytes) -> dict[str, bytes]:
    """The tensors of a file; two runs' files differ in what they say of their run."""
    from safetensors.torch import load

    return {name: tensor.numpy().tobytes() for name, tensor in load(content).items()}


def test_without_the_setting_no_head_is_fitted_and_nothing_is_kept(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_run(*SAMPLED)
    assert not list(plain.folder.path.glob("clients/*/personal-*"))
    for client in untrained(plain, 3):
        expected = metrics_with(plain.federation, client, held(plain, client, 3))
        assert plain.summary["per_client"][client]["test_final"] == expected
    assert tiny_recipe().evaluation.fit_head_epochs == 0
    monkeypatch.setattr(Learner, "fit_head", lambda *_: pytest.fail("a head was fitted"))
    site = plain.federation.site(plain.folder.client_states)
    nothing = Payloads(4, plain.federation.clients, lambda client: Payload(client, 4, 3, {}))
    assert len(list(site.evaluate(nothing, "validation", "aggregate"))) == 6


@pytest.mark.parametrize("algorithm", ["fedsa", "fedit"])
def test_what_is_exported_is_what_was_measured(tiny_run: Callable[..., Any], tmp_path: Path, algorithm: str) -> None:
    from safetensors.torch import load_file

    run = tiny_run(*FITTED, f"algorithm={algorithm}")
    federation = run.federation
    for name, round in (("test", run.summary["chosen_round"]), ("test_final", 3)):
        assert untrained(run, round)
        for client in federation.clients:
            tensors = personal_state(run.folder, federation.algorithm, client, round)
            assert tensors.keys() == federation.model.initial.keys()
            assert metrics_with(federation, client, tensors) == run.summary["per_client"][client][name]
    client = untrained(run, 3)[0]
    export(run.folder.path, tmp_path / "out", clients=[client], round="final", base=federation.model)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    (weight,) = (value for name, value in written.items() if "classifier" in name and name.endswith("weight"))
    tensors = personal_state(run.folder, federation.algorithm, client, 3)
    assert any(torch.equal(weight, value) for key, value in tensors.items() if is_head(key))
    assert not any(torch.equal(weight, value) for value in held(run, client, 3).values())


def test_a_fitted_head_that_is_gone_is_not_replaced_by_the_initial_one(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    run = tiny_run(*FITTED)
    client = untrained(run, 3)[0]
    shutil.copytree(run.folder.path, tmp_path / "run")
    for path in (tmp_path / "run" / "clients").rglob("personal-000003.safetensors"):
        path.unlink()
    with pytest.raises(
        RunFolderError, match=f"client '{client}' after round 3, which were fitted for the test, are miss"
    ):
        personal_state(RunFolder.open(tmp_path / "run"), run.federation.algorithm, client, 3)


class Cut(Callback):
    """Ends a run after its second round."""

    def on_round_end(self, round: int, *_: object) -> None:
        if round == 2:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_off_comes_to_the_same_heads(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    run, path = tiny_run(*FITTED), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fedsa.run(run.federation, path, callbacks=[Cut()])
    summary = fedsa.resume(run.federation, path).summary
    assert summary["per_client"] == run.summary["per_client"]
    for client in run.federation.clients:
        here, there = (
            personal_state(folder, run.federation.algorithm, client, 3) for folder in (RunFolder.open(path), run.folder)
        )
        assert same(here, there)


@pytest.mark.parametrize("more", [(), ("algorithm=fedit", "share_head=false")], ids=str)
def test_a_head_that_was_fitted_for_a_test_is_no_training(tiny_run: Callable[..., Any], more: tuple[str, ...]) -> None:
    """Means of what clients keep are over those that trained, and a training begins with the head of before."""
    run = tiny_run(*FITTED, *more)
    states = PersonalStates(run.folder, run.federation.algorithm, 3)
    away = untrained(run, 3)
    assert len(list(states.trained())) == len(list(states.own())) == len(run.federation.clients) - len(away)
    for client in away:
        assert same(states.of(client, for_training=True), held(run, client, 3))
        assert not same(states.of(client), held(run, client, 3))


@pytest.mark.parametrize("method", ["fedsa", "fedit", "partial_pooling", "potara", "ravan"])
def test_a_client_that_was_never_drawn_has_not_trained(tiny_run: Callable[..., Any], method: str) -> None:
    """Whatever the server sent it: means of what clients keep are over those that trained."""
    variant = ("adapter.variant=lora_xs",) if method == "ravan" else ()
    run = tiny_run(*FITTED, "evaluation.fit_head_epochs=0", f"algorithm={method}", *variant)
    states = PersonalStates(run.folder, run.federation.algorithm, 3)
    away = untrained(run, 3)
    assert away
    assert len(list(states.trained())) == len(list(states.own())) == len(run.federation.clients) - len(away)


def test_both_moments_fit_a_head(tiny_run: Callable[..., Any]) -> None:
    """What its own training left is, of a client without any, what it began with."""
    run = tiny_run(*FITTED, "evaluation.evaluate_after=both")
    client = untrained(run, 3)[0]
    own = with_fitted_head(run.federation, client, run.federation.model.initial)
    entry = run.summary["per_client"][client]
    assert entry["test_final_after_training"] == metrics_with(run.federation, client, own)
    received = with_fitted_head(run.federation, client, held(run, client, 3))
    assert entry["test_final"] == metrics_with(run.federation, client, received)
    found = validation(run, "validation_after_training")[3, client]
    expected = metrics_with(run.federation, client, own, "validation")
    assert {name: found[name] for name in expected} == expected


def test_both_trainers_come_to_the_same(tiny_run: Callable[..., Any], tiny_model_without_dropout: Path) -> None:
    settings = (*FITTED, f"model.path={tiny_model_without_dropout}", "adapter.dropout=0")
    one, many = (tiny_run(*settings, f"training.trainer={trainer}") for trainer in ("sequential", "cohort"))
    assert many.federation.recipe.training.cohort_size > 1
    for client in untrained(one, 3):
        heads = [run.folder.client_states.load_personal(client, 3) for run in (one, many)]
        for key, value in heads[0].items():
            torch.testing.assert_close(heads[1][key], value, atol=1e-4, rtol=1e-3)
        losses = [run.summary["per_client"][client]["test_final"]["loss"] for run in (one, many)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_site_that_exports_keeps_all_that_it_tested(tiny_recipe: Callable[..., Recipe]) -> None:
    federation = Federation.from_recipe(tiny_recipe("evaluation.fit_head_epochs=3"))
    kept: dict[str, State] = {}

    class States:
        def load_client(self, client: str, round: int) -> None:
            return None

        def load_ahead(self, clients: object, round: int) -> None:
            pass

        def save_personal(self, client: str, round: int, tensors: State) -> None:
            assert round == 2
            kept[client] = tensors

    site = replace(federation.site(States()), keeps_tested=True)
    payloads = Payloads(3, ["site 1"], lambda client: Payload(client, 3, 2, {}))
    ((_, metrics),) = site.evaluate(payloads, "test", "aggregate")
    assert kept["site 1"].keys() == federation.model.initial.keys()
    assert metrics_with(federation, "site 1", kept["site 1"]) == metrics
    assert not same(kept["site 1"], federation.model.initial)


@pytest.mark.run
def test_a_client_that_is_only_measured_may_fit_its_head(tiny_recipe: Callable[..., Recipe]) -> None:
    def agreed(*settings: str) -> Any:
        return Federation.from_recipe(tiny_recipe("algorithm=fedit", "share_head=false", *settings)).agreement

    with pytest.raises(ConfigError, match="head stays at the client"):
        check_only_measured(agreed())
    check_only_measured(agreed("evaluation.fit_head_epochs=1"))
    with pytest.raises(ConfigError, match="B stays at the client"):
        check_only_measured(agreed("evaluation.fit_head_epochs=1", "algorithm=fedsa"))


@pytest.mark.run
@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        (("personal_state=reconstruct",), ConfigError, "evaluation.fit_head_epochs.*fits its personal tensors before"),
        (("algorithm=pooled",), ConfigError, "evaluation.fit_head_epochs.*pooled trains one head on the rows of all"),
        (
            ("privacy={kind='example', noise_multiplier=1.0}",),
            ConfigError,
            "evaluation.fit_head_epochs.*without noise",
        ),
    ],
    ids=["reconstruct", "pooled", "privacy"],
)
def test_where_it_makes_no_sense_it_is_refused(
    tiny_recipe: Callable[..., Recipe], settings: tuple[str, ...], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=f"(?s){why}"):
        Federation.from_recipe(tiny_recipe("evaluation.fit_head_epochs=1", *settings))


@pytest.mark.run
def test_a_task_without_a_head_is_refused(tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.tasks.classification.Classification.has_head", False)
    with pytest.raises(
        ModelError, match=r"evaluation\.fit_head_epochs = 2 does not go with task\.kind = .*has no head.*set it to 0"
    ):
        Federation.from_recipe(tiny_recipe("evaluation.fit_head_epochs=2"))


# -- what the results say of them --------------------------------------------------------------------------------------


def test_the_results_tell_who_has_not_trained_and_how_they_do(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*FITTED)
    summary, chosen = run.summary, run.summary["chosen_round"]
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    for name, round, count in (("test", chosen, "rounds_trained_until_chosen"), ("test_final", 3, "rounds_trained")):
        away, per_client = untrained(run, round), summary["per_client"]
        for client, entry in per_client.items():
            rounds = {line["round"] for line in lines if line["client"] == client and line["train"]}
            assert entry[count] == len([each for each in rounds if each <= round])
        assert {client for client, entry in per_client.items() if entry[count] == 0} == {*away}
        assert summary[name]["untrained_clients"] == len(away) > 0
        values = [per_client[client][name]["accuracy"] for client in away]
        assert summary[name]["untrained_mean"] == pytest.approx(sum(values) / len(values))
    assert summary["test_final"]["untrained_mean"] != pytest.approx(summary["test_final"]["mean"])


def test_where_all_have_trained_there_is_no_mean_of_others(tiny_run: Callable[..., Any]) -> None:
    summary = tiny_run("algorithm=pooled", "rounds=2").summary
    assert summary["test_final"]["untrained_clients"] == 0, (
        "the rows of all are trained, though one client stands for them"
    )
    assert summary["test_final"]["untrained_mean"] is None
    assert {entry["rounds_trained"] for entry in summary["per_client"].values()} == {2}
    summary = tiny_run("rounds=2").summary
    assert summary["test_final"]["untrained_mean"] is None
    assert {entry["rounds_trained"] for entry in summary["per_client"].values()} == {2}


def test_terminal_and_report_have_a_line_of_them_where_there_are_some(
    tiny_run: Callable[..., Any], fedsa_command: Callable[..., Any], tmp_path: Path
) -> None:
    for settings in (SAMPLED, ("rounds=2",)):
        run = tiny_run(*settings)
        path = tmp_path / str(len(settings))
        shutil.copytree(run.folder.path, path)
        out = " ".join(fedsa_command("resume", path).out.split())
        tests = [run.summary[name] for name in ("test", "test_final")]
        assert (tests[1]["untrained_clients"] > 0) is (settings == SAMPLED)
        for figures in tests:
            told = f"{counted(figures['untrained_clients'], 'client')} that had not trained by then: mean "
            mean = figures["untrained_mean"]
            assert (mean is not None and f"{told}{100 * mean:.1f}" in out) is (figures["untrained_clients"] > 0)
        page, some = (path / "report.html").read_text("utf-8"), any(each["untrained_clients"] for each in tests)
        assert ("Mean of clients that had not trained by then" in page) is some
        assert ("had not trained" in out) is some
