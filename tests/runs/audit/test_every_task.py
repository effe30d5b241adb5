"""Runs of every kind of task can be audited, or the attack says why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fedsa
from fedsa.runs.audit import ATTACKS, audit
from support.every_task import TASKS

pytestmark = pytest.mark.matrix

LEFT_OUT = {"image_classification": {"rebuilding"}, "question_answering": {"membership", "rebuilding", "canaries"}}
"""The attacks that cannot be used with a task."""


@pytest.mark.parametrize("name", [*TASKS, "image_classification"] if "image_classification" not in TASKS else [*TASKS])
def test_a_run_can_be_audited(name: str, run_of: Callable[[str], fedsa.RunResult]) -> None:
    result, notes = run_of(name), []
    found = list(audit(result.path, federation=result._federation, clients=1, rows=8, texts=1, on_note=notes.append))
    out = LEFT_OUT.get(name, set()) | {"source"}  # one client
    assert {each.attack for each in found} == {*ATTACKS} - out
    assert {note.partition(" ")[0] for note in notes} == out
    for each in found:
        assert each.control is not None
        assert 0 <= each.score <= 1 or each.attack == "canaries"
