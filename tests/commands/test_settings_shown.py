"""The settings of a recipe as `fedsa recipes --settings` shows them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedsa.commands._settings import as_toml, describe_settings


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (" {choice}", '`" {choice}"`'),
        (["text"], '`["text"]`'),
        (("question", "context"), '`["question", "context"]`'),
        ([], "`[]`"),
        ({}, "`{}`"),
        ({"east": 4}, '`{ "east" = 4 }`'),
        (0.001, "`0.001`"),
        (True, "`true`"),
    ],
)
def test_a_default_is_shown_in_one_line_with_its_spaces(value: Any, shown: str) -> None:
    assert as_toml(value) == shown


def test_every_row_says_whose_the_setting_is() -> None:
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in describe_settings().splitlines()
        if line.startswith("| `")
    ]
    assert {whose for _, _, _, whose, _ in rows} == {"agreed", "machine", "note"}
    found = {key: whose for key, _, _, whose, _ in rows}
    assert found["`lora_alpha`"] == "agreed"
    assert found["`device`"] == "machine"
    assert found["`callbacks`"] == "note"


def test_an_error_says_that_toml_cannot_write_a_value() -> None:
    with pytest.raises(TypeError):
        as_toml([object()])
