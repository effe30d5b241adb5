"""The poison score: against numbers worked out by numpy, who is left out for it, and where it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.algorithms import make_algorithm
from fedsa.client.site import Site
from fedsa.client.training.job import Job, TrainingResult
from fedsa.errors import ConfigError
from fedsa.federation import Federation
from fedsa.recipe import StepSettings, parse_recipe, robust_settings
from fedsa.runs.report.scored import scored_clients
from fedsa.server import Server
from fedsa.steps import CHECKS, check_steps, make_chain
from fedsa.steps.chain import Chain
from fedsa.steps.poison_score import PoisonScore, poison_scores
from fedsa.testing import check_step
from fedsa.types import Factor, Key, RoundRecord, Update

A, B = Key("layer", Factor.A), Key("layer", Factor.B)
HONEST = [[1.0, 1.0], [1.2, 0.8], [0.8, 1.2], [1.1, 0.9]]


def test_it_obeys_the_laws() -> None:
    check_step(PoisonScore(1.0, leave_out=True))


def test_a_recipe_gets_it() -> None:
    steps = make_chain(StepSettings(robust=robust_settings({"kind": "poison_score", "threshold": 2}))).steps
    assert steps[0] == PoisonScore(2.0, leave_out=True)
    assert make_chain(StepSettings(robust=robust_settings({"kind": "poison_score"}))).holds_updates


def record_of(values: list[list[float]], step: PoisonScore, method: str = "fedit") -> tuple[RoundRecord, list[float]]:
    """Return the record of a round, and the server's A after it."""
    algorithm = make_algorithm(method, {})
    state = algorithm.init({A: torch.zeros(2, 1), B: torch.zeros(1, 2)}, {"layer": 1.0})
    clients = [f"c{number}" for number in range(len(values))]
    server = Server(algorithm, state, clients, seed=0, steps=Chain((step,)))
    server.begin_round(1)
    sent = {key: torch.zeros_like(value) for key, value in state.tensors.items() if algorithm.plan(key, 1).sent}
    made = [{**sent, A: torch.tensor(value)[:, None]} for value in values]
    record = server.end_round(1, [Update(c, 1, 1, tensors) for c, tensors in zip(clients, made, strict=True)])
    return record, server.state.tensors[A].flatten().tolist()


@given(values=st.lists(st.lists(st.floats(-9, 9, width=16), min_size=2, max_size=2), min_size=3, max_size=9))
@settings(deadline=None)
def test_the_score_is_the_formulas(values: list[list[float]]) -> None:
    rows = np.array(values)
    middle, norms = np.median(rows, axis=0), np.linalg.norm(rows, axis=1)
    found = poison_scores([{A: torch.tensor(row, dtype=torch.float64)} for row in values])
    for row, norm, each in zip(rows, norms, found, strict=True):
        lengths = norm * np.linalg.norm(middle)
        cosine = row @ middle / lengths if lengths > 1e-9 else each.cosine
        assert each.cosine == pytest.approx(cosine, abs=1e-6)
        if np.median(norms) > 1e-9:
            assert each.ratio == pytest.approx(norm / np.median(norms))
        assert each.score == pytest.approx(max(1 - each.cosine, each.ratio / 3))


@pytest.mark.parametrize("method", ["fedit", "fedsa", "flexlora"])
@pytest.mark.parametrize("attack", [[100.0, 100.0], [-1.0, -1.0]], ids=str)
def test_a_bad_update_is_left_out_and_named_and_the_round_goes_on(attack: list[float], method: str) -> None:
    record, mean = record_of([*HONEST, attack], PoisonScore(1.0, leave_out=True), method)
    assert [*record.rejected] == ["c4"]
    assert record.rejected["c4"].startswith("update of client 'c4' for round 1 does not count: its poison score is")
    assert record.finished == ("c0", "c1", "c2", "c3")
    assert record.upload_bytes["c4"] == record.upload_bytes["c0"]  # it came
    assert {*record.verdicts} == {"c0", "c1", "c2", "c3", "c4"}
    if method != "flexlora":
        assert mean == pytest.approx([1.025, 0.975])


def test_scores_may_be_recorded_alone() -> None:
    record, mean = record_of([*HONEST, [100.0, 100.0]], PoisonScore(1.0, leave_out=False))
    assert record.rejected == {}
    assert record.verdicts["c4"]["score"] > 30
    assert mean[0] > 20


def test_fewer_than_half_are_left_out_and_none_of_two() -> None:
    record, _ = record_of([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], PoisonScore(0.1, leave_out=True))
    assert len(record.rejected) == 1
    record, _ = record_of([[1.0, 0.0], [-100.0, 0.0]], PoisonScore(0.1, leave_out=True))
    assert (record.rejected, record.verdicts) == ({}, {})


def test_it_looks_at_a_alone_where_a_is_sent() -> None:
    step = PoisonScore(1.0, leave_out=True)
    updates = [Update(str(n), 1, 1, {A: torch.ones(2), B: torch.full((2,), float(-(100**n)))}) for n in range(3)]
    before = {A: torch.zeros(2), B: torch.zeros(2)}
    found = [verdict.values["score"] for verdict in step.screen(updates, before).values()]
    assert found == pytest.approx([1 / 3] * 3)
    of_b = [Update(each.client, 1, 1, {B: each.tensors[B]}) for each in updates]
    assert step.screen(of_b, before)["2"].reason is not None


@pytest.mark.parametrize("leave_out", [True, False])
def test_one_update_of_other_shapes_does_not_switch_the_score_off_for_the_others(leave_out: bool) -> None:
    step = PoisonScore(1.0, leave_out)
    updates = [Update(f"c{number}", 1, 1, {A: torch.tensor(value)}) for number, value in enumerate(HONEST)]
    attack, odd = Update("d", 1, 1, {A: torch.full((2,), 100.0)}), Update("e", 1, 1, {A: torch.zeros(1)})
    found = step.screen([*updates, attack, odd], {A: torch.zeros(2)})
    assert found["e"].reason == (
        "its tensors have other shapes than the server's, so it cannot be compared with the others"
    )
    assert (found["d"].reason is not None) == leave_out
    assert found["d"].values["score"] > 30
    without = step.screen([*updates, attack], {A: torch.zeros(2)})
    assert without == {client: verdict for client, verdict in found.items() if client != "e"}


def test_what_does_not_go_with_it_is_refused(tiny_data: dict[str, Any]) -> None:
    def told(**settings: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            parse_recipe({**tiny_data, "robust": {"kind": "poison_score"}, **settings}, checks=CHECKS)
        return str(caught.value)

    assert "it needs single updates, and the server sees their sum only" in told(secure_aggregation=True)
    assert "it sends nothing" in told(algorithm="local")
    privacy = {"kind": "client", "noise_multiplier": 1.0, "clipping_norm": 1.0, "target_delta": 1e-5}
    assert "set robust.leave_out = false" in told(privacy=privacy, weighting="uniform")
    cut = {"algorithm": "hetlora", "algorithm_options": {"decay": 0.5}}
    assert "its clients may send tensors of other shapes than they were given, which cannot be compared" in told(**cut)
    (mistake,) = check_steps({"adapter": {"ranks": [2, 4]}, "robust": {"kind": "poison_score"}})
    assert mistake.what.endswith("leave adapter.ranks out")


@pytest.mark.run
def test_a_run_records_the_scores_and_shows_them(
    tiny_recipe: Callable[..., Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One client sends a hundred times its change in the first round, and what is no number in the second."""
    import fedsa
    from fedsa.commands.analyze import command

    finish = Site.finish

    def attacking(self: Site, job: Job, result: TrainingResult) -> Update:
        update = finish(self, job, result)
        if update.client != attacker:
            return update
        factor = torch.nan if job.round == 2 else 100.0
        sent = {key: job.before[key] + factor * (tensor - job.before[key]) for key, tensor in update.tensors.items()}
        return replace(update, tensors=sent)

    monkeypatch.setattr(Site, "finish", attacking)
    federation = Federation.from_recipe(tiny_recipe("robust.kind=poison_score", "rounds=2", "keep_rounds=all"))
    attacker = federation.clients[0]
    run = tmp_path / "run"
    result = fedsa.run(federation, run, progress=False)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    first, second = ([line for line in lines if line["round"] == round] for round in (1, 2))
    assert [line["poison"]["left_out"] for line in first] == [True, False, False]
    assert "poison score" in first[0]["rejected"]
    assert "not finite" in second[0]["rejected"]
    assert second[0]["lost"]
    (worst, *_) = scored_clients(lines)
    assert (worst.client, worst.left_out) == (attacker, (1,))
    html = (run / "report.html").read_text("utf-8")
    assert "Updates beside those of the others" in html
    assert result.summary["robust"] == "poison_score"
    command(run, None, None, "svg", json=True)
    said = json.loads(capsys.readouterr().out)["poison"]
    assert {(each["round"], each["client"]) for each in said} == {(r, c) for r in (1, 2) for c in federation.clients}
