"""A run's figures are those of the exported adapter and of the merged model, by plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import judge
from support.judge import TOLERANCE, rows_to_judge, run
from support.zoo import KINDS, SETTINGS

pytestmark = pytest.mark.run

USUAL = [
    "bert, tags",
    "llama, tied, lm_head",
    "gpt2, wte",
    "mixtral, experts",
    "t5, shared",
    "vit",
    "resnet",
    "roberta",
]
"""One of each kind of architecture; the others take as long again, and are behind the mark ``slow``."""


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_figures_are_those_of_plain_transformers_and_peft(name: str, tmp_path: Path) -> None:
    task = KINDS[name].task
    federation, result = run(name, tmp_path)
    rows = rows_to_judge(federation, "c1")
    measured = result.summary["per_client"]["c1"]
    for merge in (False, True):
        folder = tmp_path / f"exported-{merge}"
        result.export(folder, client="c1", merge=merge, round="final")
        model = judge.load(task, folder, None if merge else tmp_path / "model")
        again = judge.loss(task, SETTINGS[task], model, folder, rows)
        assert again == pytest.approx(measured["test_final"]["loss"], abs=TOLERANCE, rel=TOLERANCE), f"merge={merge}"
        if not merge:
            with model.disable_adapter():
                plain = judge.loss(task, SETTINGS[task], model, folder, rows)
            assert abs(plain - again) > 20 * TOLERANCE  # what is compared has learnt something
