"""Every setting says whose it is, and what server and sites must hold alike is exactly what says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo

from fedsa.recipe import Recipe, agreed_settings, apply_overrides, is_resolved, parse_recipe, scope_of
from fedsa.recipe.base import Settings

MINIMAL = {
    "rounds": 3,
    "model": {"path": "some/model"},
    "data": {"path": "rows.csv", "partition": {"kind": "iid", "clients": 2}},
}


def fields_of(section: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every field of a section and of those within, all kinds of them, with its dotted key."""
    for name, field in section.model_fields.items():
        within = [each for each in (field.annotation, *get_args(field.annotation)) if is_section(each)]
        for each in within:
            yield from fields_of(each, f"{prefix}{name}.")
        if not within:
            yield f"{prefix}{name}", field


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


FIELDS = list(fields_of(Recipe))


def test_every_setting_says_whose_it_is() -> None:
    assert len(FIELDS) > 100
    assert [key for key, field in FIELDS if scope_of(field) is None] == []


def test_what_a_run_resolves_can_be_left_open() -> None:
    resolved = {key: field.default for key, field in FIELDS if is_resolved(field)}
    assert {"model.attn_implementation", "training.trainer", "adapter.r", "compute.device"} <= {*resolved}
    assert all(default in (None, 0, "auto") for default in resolved.values()), resolved


@pytest.mark.parametrize(
    "setting",
    [
        "description=mine",
        "callbacks=['tensorboard']",
        "keep_rounds=all",
        "model.path=elsewhere",
        "model.attn_implementation=sdpa",
        "data.path=other.csv",
        "data.partition={kind='column', column='site'}",
        "training.trainer=sequential",
        "training.cohort_size=2",
        "evaluation.batch_size=2",
        "compute.threads=1",
        "compute.precision=bf16",
    ],
)
def test_sites_may_differ_in_what_is_a_machines_own_and_in_notes(setting: str) -> None:
    assert agreed_settings(recipe(setting)) == agreed_settings(recipe())


@pytest.mark.parametrize(
    "setting",
    [
        "rounds=4",
        "seed=1",
        "wire_dtype=bf16",
        "algorithm_options={x=1}",
        "adapter.r=4",
        "adapter.variant=dora",
        "task.max_length=64",
        "task.labels=['a', 'b']",
        "data.partition.test_fraction=0.3",
        "training.learning_rate=0.1",
        "training.batch_size=2",
        "server.optimizer=fedadam",
        "evaluation.evaluate_after=training",
    ],
)
def test_sites_may_not_differ_in_what_the_figures_follow_from(setting: str) -> None:
    assert agreed_settings(recipe(setting)) != agreed_settings(recipe())


def test_what_is_agreed_is_written_out_as_json() -> None:
    agreed = agreed_settings(recipe())
    assert json.loads(json.dumps(agreed)) == agreed
    assert agreed["training"]["learning_rate"] == 1e-3
    assert agreed["training"]["max_grad_norm"] == 1.0
    assert agreed["data"] == {
        "partition": {
            "group": None,
            "validation_fraction": 0.15,
            "test_fraction": 0.2,
            "min_examples": 10,
            "max_examples": None,
        }
    }
    assert "compute" not in agreed
    assert "model" not in agreed


def recipe(*settings: str) -> Recipe:
    return parse_recipe(apply_overrides(MINIMAL, settings))
