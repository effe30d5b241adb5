"""What a run says of who sends what: nothing that leaves a client under another name counts as kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsa.algorithms import algorithm_names, make_algorithm
from fedsa.runs.export import export
from fedsa.runs.report.words import in_words
from fedsa.server import first_round, leaves
from fedsa.steps import Chain
from fedsa.types import Factor, Key

LORA = {
    Key("layer", Factor.A): torch.zeros(2, 4),
    Key("layer", Factor.B): torch.zeros(3, 2),
    Key("classifier.weight", Factor.HEAD): torch.zeros(2, 4),
}


def rows_of(method: str, **options: Any) -> list[dict[str, Any]]:
    algorithm = make_algorithm(method, options)
    about = first_round(algorithm, LORA, Chain([]), rounds=1)
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
                key for key in algorithm.whole(LORA) if key.factor.value == row["factor"] and algorithm.in_model(key)
            ]
            assert leaves(row) == any(algorithm.leaves(key, 1) for key in keys if algorithm.plan(key, 1).trained)


def test_runs_of_before_say_by_what_is_sent():
    assert [leaves({"sent": sent}) for sent in (True, False)] == [True, False]


@pytest.mark.run
def test_report_and_card_do_not_say_that_it_stayed(tiny_run: Callable[..., Any], tmp_path: Any):
    run = tiny_run("algorithm=partial_pooling", "algorithm_options.own_share=0.5", "rounds=1")
    assert "stayed with each client" not in " ".join(in_words(run.summary, run.summary["metric"]))
    export(run.folder.path, tmp_path)
    card = next(tmp_path.rglob("README.md")).read_text(encoding="utf-8")
    assert "Never left the client: nothing" in card
