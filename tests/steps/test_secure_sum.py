"""What secure aggregation can be used with, and what a recipe is told of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from fedsa.algorithms import built_in_names, find_algorithm
from fedsa.errors import ConfigError
from fedsa.recipe import parse_recipe
from fedsa.steps import CHECKS, SecureSum

BASE: dict[str, Any] = {
    "rounds": 1,
    "secure_aggregation": True,
    "model": {"path": "a-model"},
    "data": {"path": "rows.csv", "partition": {"kind": "column", "column": "site"}},
}


def mistakes(**more: Any) -> str:
    try:
        parse_recipe({**BASE, **more}, source="a recipe", checks=CHECKS)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"algorithm": "flora"}, "flora: its server needs each client's update, not their mean"),
        ({"algorithm": "local"}, "local: it sends nothing"),
        ({"robust": {"kind": "median"}}, "robust.kind = 'median': it needs single updates"),
        (
            {"robust": {"kind": "norm_bound", "clipping_norm": 1.0}},
            "'norm_bound': it needs single updates",
        ),
        (
            {"overlap": {"kind": "buffered", "buffer": 2}},
            "overlap.kind = 'overlap': rounds that overlap have",
        ),
        ({"algorithm": "hetlora", "adapter": {"ranks": [4, 8]}}, "secure_aggregation does not go with hetlora"),
        ({"algorithm": "fedit", "adapter": {"ranks": [4, 8]}}, "fedit: clients of different ranks have no sum of one"),
    ],
)
def test_what_needs_single_updates_is_refused_with_the_reason(more: dict[str, Any], text: str) -> None:
    assert text in mistakes(**more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"algorithm": "fedit"},
        {"server": {"optimizer": "fedadam", "learning_rate": 0.1}},
        {"wire_dtype": "bf16"},
        {"weighting": "uniform"},
        {"fraction_train": 0.5},
    ],
)
def test_what_needs_sums_alone_can_be_used(more: dict[str, Any]) -> None:
    assert mistakes(**more) == ""


def test_the_methods_that_can_be_used_are_the_additive_ones_that_send_something() -> None:
    good = {name for name in built_in_names() if SecureSum().refusal(find_algorithm(name)()) is None}
    assert {"fedsa", "fedit", "ffa", "rolora"} <= good
    assert not {"flora", "fedalt", "local", "clustered"} & good
