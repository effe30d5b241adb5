"""Clients that mean different things by one class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsa.data.rows import deal_rows
from fedsa.engines.deployed import check_deployable
from fedsa.errors import ConfigError, DataError
from fedsa.recipe import Recipe
from fedsa.types import CLASS_NUMBER

SIX = "data.partition={kind='iid', clients=6"


@pytest.mark.parametrize(
    ("part", "chosen"), [(0.5, [1, 3, 5]), (0.34, [2, 5]), (1.0, [0, 1, 2, 3, 4, 5]), (0.2, [4]), (0.1, [])]
)
def test_classes_of_some_clients_trade_names(tiny_recipe: Callable[..., Recipe], part: float, chosen: list[int]):
    """In every split of theirs; nothing else changes: who has which rows, the texts, the others' classes."""
    plain, traded = (deal_rows(tiny_recipe(f"{SIX}{more}}}")) for more in ("", f", permuted_clients={part}"))
    assert plain.partition.clients == traded.partition.clients
    assert traded.table[CLASS_NUMBER][:] == traded.labels.tolist()
    for place, rows in enumerate(plain.partition.clients.values()):
        for own in rows:
            before, after = plain.labels[own], traded.labels[own]
            assert np.array_equal(after, 1 - before if place in chosen else before)
            assert len(own)
    others = plain.table.remove_columns(CLASS_NUMBER), traded.table.remove_columns(CLASS_NUMBER)
    assert others[0].to_dict() == others[1].to_dict()
    notes = [note for note in traded.notes if "permuted_clients" in note]
    assert f"have traded names at {len(chosen)} client" in notes[0]
    assert not [note for note in plain.notes if "permuted_clients" in note]


def test_the_first_of_three_classes_trades_with_the_last(tiny_recipe: Callable[..., Recipe], tmp_path: Any):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"word {n},{'abc'[n % 3]}\n" for n in range(60)), encoding="utf-8")
    settings = [f"data.path={rows.as_posix()}", "data.partition={kind='iid', clients=2, permuted_clients=0.5}"]
    dealt = deal_rows(tiny_recipe(*settings))
    second = dealt.partition.clients["client-2"].train
    texts = dealt.table["text"][:]
    assert all(dealt.labels[row] == 2 - int(texts[row].split()[1]) % 3 for row in second)
    assert set(dealt.labels[second]) == {0, 1, 2}


def test_it_needs_classes_and_a_simulation(tiny_recipe: Callable[..., Recipe]):
    half = "data.partition.permuted_clients=0.5"
    numbers = tiny_recipe("task={kind='language_modeling', text_columns=['text']}", half)
    with pytest.raises(DataError, match=r"task\.kind = 'language_modeling' has no classes: set it to 0"):
        deal_rows(numbers)
    with pytest.raises(ConfigError, match="permuted_clients: is a control of simulations"):
        check_deployable(tiny_recipe(half), 3)
