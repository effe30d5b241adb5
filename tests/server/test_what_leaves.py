"""What a run says of who sends what: nothing that leaves a client under another name counts as kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsa.algorithms import algorithm_names, make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.commands.shared.methods import describe
from fedsa.runs.export import export
from fedsa.runs.report import report_html
from fedsa.runs.report.words import in_words
from fedsa.server import first_round, kept_in_words, leaves, plan_of_the_run, sent_in_words
from fedsa.steps import Chain
from fedsa.types import Factor, Key, State

LORA = {
    Key("layer", Factor.A): torch.zeros(2, 4),
    Key("layer", Factor.B): torch.zeros(3, 2),
    Key("classifier.weight", Factor.HEAD): torch.zeros(2, 4),
}


def tensors_of(algorithm: Algorithm) -> State:
    return {
        key._replace(adapter=adapter): value
        for key, value in LORA.items()
        for adapter in algorithm.adapters[: 1 if key.factor is Factor.HEAD else None]
    }


def rows_of(method: str, **options: Any) -> list[dict[str, Any]]:
    algorithm = make_algorithm(method, options)
    tensors = tensors_of(algorithm)
    about = first_round(algorithm, tensors, Chain([]), rounds=1)
    plan: list[dict[str, Any]] = about["sharing_plan"]
    return plan


def test_fedsa_keeps_b_and_the_head():
    assert [(row["factor"], row["beside"], leaves(row)) for row in rows_of("fedsa")] == [
        ("A", None, True),
        ("B", None, False),
        ("head", None, False),
    ]


def test_b_leaves_where_a_tensor_beside_it_stands_for_it():
    rows = {(row["factor"], row["beside"]): row for row in rows_of("partial_pooling")}
    assert leaves(rows["B", None])
    assert not rows["B", None]["sent"]
    assert {beside for factor, beside in rows if factor == "B"} == {None, "common", "common_then", "own"}
    assert not leaves(rows["B", "own"])
    assert not any(leaves(row) for row in rows_of("partial_pooling", own_share=1.0) if row["factor"] == "B")


@pytest.mark.parametrize("name", sorted(set(algorithm_names()) - {"ravan", "fed_sb"}))
def test_what_is_said_to_be_kept_is_what_the_method_keeps(name: str):
    algorithm = make_algorithm(name, {})
    for row in rows_of(name):
        if row["beside"] is None and row["trained"]:
            keys = [
                key
                for key in tensors_of(algorithm)
                if key.factor.value == row["factor"] and algorithm.plan(key, 1).sent == row["sent"]
            ]
            assert leaves(row) == any(algorithm.leaves(key, 1) for key in keys if algorithm.plan(key, 1).trained)


def test_runs_of_before_say_by_what_is_sent():
    assert [leaves({"sent": sent}) for sent in (True, False)] == [True, False]


def in_both(plan: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    return sent_in_words(plan, trained=True), kept_in_words(plan)


def test_of_a_factor_of_which_a_part_leaves_both_parts_are_told():
    """Of a B of rank 2 one column of three numbers is pooled; FedDPA has two adapters, and one stays."""
    assert in_both(rows_of("partial_pooling")) == (["A", "3 of 6 numbers of B", "head"], ["the other numbers of B"])
    estimating = sent_in_words(rows_of("partial_pooling", own_share="difference"))
    assert estimating == ["A", "3 of 6 numbers of B", "head", "note"]
    assert in_both(rows_of("partial_pooling", pool_columns=1.0)) == (["A", "B", "head"], [])
    assert in_both(rows_of("fedsa")) == (["A"], ["B", "head"])
    assert in_both(rows_of("fedit")) == (["A", "B", "head"], [])
    assert in_both(rows_of("local")) == ([], ["A", "B", "head"])
    assert in_both(rows_of("feddpa")) == (
        ["8 of 16 numbers of A", "6 of 12 numbers of B"],
        ["the other numbers of A", "the other numbers of B", "head"],
    )


def test_with_ranks_of_their_own_no_part_is_said_to_stay():
    """All columns of a B of low rank may be among those that are pooled: a part of the highest rank's says nothing."""
    tensors = tensors_of(algorithm := make_algorithm("partial_pooling", {"own_share": 0.5}))
    plan = first_round(algorithm, tensors, Chain([]), mixed_ranks=True)["sharing_plan"]
    assert in_both(plan) == (["A", "B", "head"], [])


def test_what_leaves_in_any_round_has_left_the_run():
    """RoLoRA sends B and A by turns; partial pooling sends its notes in some rounds alone."""
    for name, options, both in (
        ("rolora", {}, (["A", "B", "head"], [])),
        (
            "partial_pooling",
            {"own_share": "difference"},
            (["A", "3 of 6 numbers of B", "head"], ["the other numbers of B"]),
        ),
    ):
        algorithm = make_algorithm(name, options)
        summary = first_round(algorithm, tensors_of(algorithm), Chain([]), rounds=4)
        assert len(summary["sharing_by_round"]) == 2
        assert in_both(plan_of_the_run(summary)) == both
    alike = first_round(make_algorithm("fedsa", {}), LORA, Chain([]), rounds=4)
    assert plan_of_the_run(alike) == alike["sharing_plan"]


def test_a_plan_of_before_has_whole_factors():
    plan = [{"factor": "A", "trained": True, "sent": True}, {"factor": "B", "trained": True, "sent": False}]
    assert in_both(plan) == (["A"], ["B"])


@pytest.mark.parametrize("name", algorithm_names())
def test_numbers_that_leave_are_counted(name: str):
    for row in rows_of(name):
        assert 0 <= row["parameters_that_leave"] <= row["parameters"]
        assert bool(row["parameters_that_leave"]) == leaves(row)
        assert not row["sent"] or row["parameters_that_leave"] == row["parameters"]


@pytest.mark.run
def test_report_and_card_do_not_say_that_it_stayed(tiny_run: Callable[..., Any], tmp_path: Any):
    run = tiny_run(
        "algorithm=partial_pooling", "algorithm_options={own_share=0.5, pool_columns=1.0}", "rounds=1", "adapter.r=4"
    )
    assert "stayed with each client" not in " ".join(in_words(run.summary, run.summary["metric"]))
    export(run.folder.path, tmp_path)
    card = next(tmp_path.rglob("README.md")).read_text(encoding="utf-8")
    assert "Never left the client: nothing" in card


@pytest.mark.run
def test_report_and_card_say_which_part_of_b_left(tiny_run: Callable[..., Any], tmp_path: Any):
    run = tiny_run("algorithm=partial_pooling", "algorithm_options.own_share=difference", "rounds=2")
    said = " ".join(in_words(run.summary, run.summary["metric"]))
    left, every = next(
        (row["parameters_that_leave"], row["parameters"])
        for row in run.summary["sharing_plan"]
        if (row["factor"], row["beside"]) == ("B", None)
    )
    assert 0 < left < every
    part = f"{left:,} of {every:,} numbers of B"
    assert f"Clients sent A, {part} and head to the server" in said
    assert "the other numbers of B stayed with each client" in said
    export(run.folder.path, tmp_path)
    card = next(tmp_path.rglob("README.md")).read_text(encoding="utf-8")
    assert f"Averaged over clients: A, {part}, head, note" in card
    assert "Never left the client: the other numbers of B" in card
    page = report_html(run.folder.path)
    assert f"Sent to the server: <strong>A, {part}, head, note</strong>" in page
    assert "the other numbers of B stayed with each client" in page
    assert f"what is learned of {left:,} numbers leaves the client by another part" in page


@pytest.mark.run
def test_what_left_for_a_global_model_is_told_where_it_is_said_to_stay(tiny_run: Callable[..., Any]):
    run = tiny_run("rounds=1", "evaluation.global_model=average", "adaptation.share_personal=true")
    later = "B and head left it afterwards for one global model"
    assert f"B and head stayed with each client, but {later}." in " ".join(in_words(run.summary, run.summary["metric"]))
    assert f"<strong>B, head</strong>, but {later}." in report_html(run.folder.path)


@pytest.mark.parametrize("name", algorithm_names())
def test_the_list_of_methods_keeps_only_what_does_not_leave(name: str):
    """In every variant that a method goes with: what is listed as kept is trained, and leaves in no round."""
    algorithm = make_algorithm(name, {})
    for variant, roles in describe(name)["variants"].items():
        if roles["ok"]:
            assert not {*roles["kept"]} & {*roles["leaves_by_another"]}
            assert not {*roles["leaves_by_another"]} & {*roles["sent"]}
            heads = Key("classifier.weight", Factor.HEAD, algorithm.adapters[0])
            leaving = any(algorithm.leaves(heads, round) for round in (1, 2))
            assert ("head" in roles["kept"]) != leaving, variant
