"""The audit of a tiny run: what it prints, that its controls fire, and that chance is chance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.errors import UserError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.audit import ATTACKS, Finding, Subject, audit, membership
from fedsa.runs.audit.training import Training, mean_change, run_training
from fedsa.types import Factor, Key

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def found(tiny_run: Callable[..., Any]) -> list[Finding]:
    """All findings of a run of three clients."""
    run = tiny_run("rounds=2", "adapter.r=4", "training.learning_rate=0.05")
    return list(audit(run.folder.path, federation=run.federation, clients=2, rows=16, texts=1))


def of(found: list[Finding], attack: str, shared: str, steps: int | None = None) -> Finding:
    (one, *_) = [
        each
        for each in found
        if (each.attack, each.shared) == (attack, shared) and (steps is None or each.steps == steps)
    ]
    return one


def test_every_attack_looks_at_each_side_and_at_both(found: list[Finding]) -> None:
    assert {each.attack for each in found} == {*ATTACKS}
    for attack in ATTACKS:
        assert {"A", "B", "A and B"} <= {each.shared for each in found if each.attack == attack}
    assert all(each.leaves == (each.shared == "A") for each in found)  # fedsa sends A alone
    assert all(each.chance <= 0.5 and each.chance >= 0 for each in found)


def test_a_factor_leaves_where_one_of_two_adapters_sends_it(tiny_run: Callable[..., Any]) -> None:
    """FedDPA sends A and B of one adapter and keeps those of the other."""
    run = tiny_run("algorithm=feddpa", "rounds=1")
    findings = list(audit(run.folder.path, federation=run.federation, attacks=["source"], clients=2, rows=8))
    assert {each.shared: each.leaves for each in findings} == {"A": True, "B": True, "A and B": True}


def test_controls_fire(found: list[Finding]) -> None:
    for each in found:
        assert each.control is not None
    assert of(found, "membership", "adapter").control > 0.5  # these rows can be learned without learning them by heart
    for side in ("A", "B", "A and B"):
        assert of(found, "membership", side).control >= 0.95
        assert of(found, "source", side).control == 1
    assert of(found, "canaries", "adapter").control > 0  # ten guesses prove little


def test_canaries_of_a_run_without_privacy_have_no_epsilon_beside_them(found: list[Finding]) -> None:
    one = of(found, "canaries", "adapter")
    assert one.more["epsilon"] is None
    assert one.more["correct"] <= one.more["guesses"] <= one.count


def test_the_command_prints_objects(tiny_run: Callable[..., Any], fedsa_command: Callable[..., Any]) -> None:
    path = tiny_run("rounds=2", "adapter.r=4", "training.learning_rate=0.05").folder.path
    files = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    outcome = fedsa_command("audit", path, "--attack", "source", "--rows", "8", "--json")
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert [each["shared"] for each in printed] == ["A", "B", "A and B"]
    for each in printed:
        assert {
            "attack",
            "shared",
            "score",
            "chance",
            "control",
            "metric",
            "interval",
            "update",
            "leaves",
        } <= each.keys()
        assert each["chance"] == pytest.approx(1 / 3)
    assert files == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}  # nothing is written
    shown = fedsa_command("audit", path, "--attack", "source", "--rows", "8").out
    assert "accuracy" in shown
    assert "chance" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attack", "sources"], "there is no such attack; did you mean 'source'"),
        (["--rows", "2"], "--rows 2: must be at least 8"),
        (["--texts", "0"], "--texts 0: must be at least 1"),
    ],
)
def test_mistakes_are_told(
    finished_run: Path, fedsa_command: Callable[..., Any], arguments: list[str], said: str
) -> None:
    outcome = fedsa_command("audit", finished_run, *arguments)
    assert outcome.code == 2
    assert said in outcome.error


def test_a_run_whose_rows_have_changed_is_refused(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe]
) -> None:
    run = tiny_run("rounds=2", "adapter.r=4", "training.learning_rate=0.05")
    other = Federation.from_recipe(tiny_recipe("adapter.r=4", "seed=5"))
    with pytest.raises(UserError, match=r"rows are not those|weights"):
        Subject.open(run.folder.path, federation=other)


def test_a_run_without_its_figures_is_refused(
    finished_run: Path, tmp_path: Path, fedsa_command: Callable[..., Any]
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    outcome = fedsa_command("audit", tmp_path / "run")
    assert outcome.code == 2
    assert "fedsa resume" in outcome.error


def test_a_sum_has_no_single_source(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("rounds=1", "secure_aggregation=true")
    findings = list(audit(run.folder.path, ["source"], federation=run.federation, rows=8))
    assert all(each.score == each.chance for each in findings)
    assert all("sum over sites" in each.note for each in findings)
    assert all(each.privacy == "secure aggregation" for each in findings)


def test_rows_that_are_protected_are_trained_with_the_noise_of_the_run(tiny_run: Callable[..., Any]) -> None:
    pytest.importorskip("dp_accounting")
    run = tiny_run("privacy.kind=example", "privacy.target_epsilon=1.0", "privacy.target_delta=1e-3", "rounds=1")
    (*_, adapter) = list(audit(run.folder.path, ["canaries"], federation=run.federation, clients=1, rows=16))
    assert adapter.more["epsilon"] == pytest.approx(1.0, rel=0.3)  # a few more rows than in the run: less is spent
    assert adapter.score <= adapter.more["epsilon"]
    assert adapter.privacy == "differential privacy of each row, ε ≤ 1"


def test_a_protected_update_is_trained_on_all_rows_as_its_noise_is_computed_for_them(
    tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting")
    run = tiny_run("privacy.kind=example", "privacy.target_epsilon=1.0", "privacy.target_delta=1e-3", "rounds=1")
    subject = Subject.open(run.folder.path, federation=run.federation, most_clients=1, most_rows=16)
    (client,), trained = subject.clients, []

    def train_again(subject: Subject, client: str, start: Any, rows: Any, how: Training, *purpose: Any) -> Any:
        trained.append((how.privacy is not None, sorted(rows.tolist())))
        return {key: tensor + 1 for key, tensor in start.items()}

    monkeypatch.setattr(membership, "train_again", train_again)
    found = list(membership.of_updates(subject, [client], replace(run_training(subject), steps=1)))
    others = min(len(subject.others(client)), 40)
    assert {each.count for each in found} == {len(subject.members(client)) + others}, "all that may have been drawn"
    (protected, rows), (control_protected, few) = trained
    assert protected
    assert rows == sorted(run.federation.rows.partition.clients[client].train.tolist())
    assert not control_protected
    assert len(few) == 1


def test_what_a_server_sees_of_a_sum_is_the_weighted_mean() -> None:
    key = Key("layer", Factor.A)
    changes = {"north": {key: torch.tensor([1.0, 0.0])}, "south": {key: torch.tensor([0.0, 4.0])}}
    assert mean_change(changes, {"north": 3.0, "south": 1.0})[key].tolist() == [0.75, 1.0]


STEPS = {
    "adaptive": ("privacy={kind='client', noise_multiplier=1.0, clipping_norm=0.01, clipping='adaptive'}",),
    "at the client": ("privacy={kind='client', noise_multiplier=50.0, clipping_norm=0.001, noise_at='client'}",),
    "eight bits": ("compression.kind=int8",),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_steps_make_of_an_update_is_attacked_and_controls_fire_without_them(
    tiny_run: Callable[..., Any], step: str
) -> None:
    pytest.importorskip("dp_accounting")
    run = tiny_run("rounds=1", "weighting=uniform", *STEPS[step])
    attacks = ["membership", "source"]
    found = list(audit(run.folder.path, attacks, federation=run.federation, clients=2, rows=16))
    for side in ("A", "B", "A and B"):
        assert of(found, "membership", side).control >= 0.95
        assert of(found, "source", side).control == 1
    seen = of(found, "membership", "A")
    if step == "at the client":
        assert seen.privacy == "differential privacy of each client, noise at the client"
        assert of(found, "source", "A").score < 1
    elif step == "adaptive":
        assert "the noise comes at the server, after what is seen here" in seen.privacy
    else:
        assert seen.privacy == "none"


def test_a_round_is_trained_as_in_the_run_however_few_rows_are_scored(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("rounds=1", "training={local_epochs=2, batch_size=4, learning_rate=1e-2}")
    subject = Subject.open(run.folder.path, federation=run.federation, most_clients=1, most_rows=8)
    (client,) = subject.clients
    rows = run.federation.rows.partition.clients[client].train
    how = run_training(subject)
    assert how.steps == 2 * -(-len(rows) // 4)
    assert len(subject.trained(client, how.rows)) == len(rows) > len(subject.members(client)) == 8
    assert subject.trained(client, 8).tolist() == subject.members(client).tolist()


def test_a_sum_is_of_as_many_clients_as_train_in_a_round(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("rounds=1", "secure_aggregation=true")
    found = list(audit(run.folder.path, ["membership"], federation=run.federation, clients=1, rows=8))
    assert of(found, "membership", "A").update.startswith("the mean of 3 clients, each of ")
