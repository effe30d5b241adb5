"""A run's figures are those of the exported adapter and of the merged model, by plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import fedsa
import judge
from zoo import KINDS, SETTINGS, clients_of, write_model

TOLERANCE = 2e-5
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


def run(name: str, folder: Path, **settings: Any) -> tuple[fedsa.Federation, fedsa.RunResult]:
    """Run two rounds of an architecture of the zoo below a folder."""
    kind = KINDS[name]
    config = LoraConfig(
        r=2,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=kind.targets,
        target_parameters=kind.parameters,
        modules_to_save=kind.in_full,
    )
    federation = fedsa.Federation.from_objects(
        str(write_model(name, folder / "model")),
        config,
        clients_of(kind.task),
        rounds=2,
        task=SETTINGS[kind.task],
        **{
            "algorithm": "fedsa",
            "training": {
                "local_steps": 6,
                "batch_size": 8,
                "learning_rate": 0.05,
                "head_learning_rate": 0.2,
                "trainer": "sequential",
            },
            "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
            "evaluation": {"batch_size": 3},
            **settings,
        },
    )
    return federation, fedsa.run(federation, folder / "run")


def test_rows(federation: fedsa.Federation, client: str) -> list[dict[str, Any]]:
    """Return a client's test rows, with the names of their classes."""
    rows = federation.rows
    numbers = rows.partition.clients[client].test.tolist()
    return [{"label": rows.label_names[rows.labels[row]], **rows.table[row]} for row in numbers]


test_rows.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_figures_are_those_of_plain_transformers_and_peft(name: str, tmp_path: Path) -> None:
    task = KINDS[name].task
    federation, result = run(name, tmp_path)
    rows = test_rows(federation, "c1")
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
