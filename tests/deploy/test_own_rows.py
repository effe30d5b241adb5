"""A site's rows where they lie: one client or several, a file each or a column; cut as the simulation cuts them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fedsa.data.rows import DealtRows, deal_rows
from fedsa.deploy.own_rows import Names, own_rows
from fedsa.errors import DataError, UserError
from fedsa.recipe import Recipe, parse_recipe
from fedsa.store.seals import sealed_table
from support.tiny_rows import WORDS, write_clients, write_rows

LABELS = tuple(sorted(WORDS))
NORTH = Names("north", ("site 0", "site 1"))


def recipe(path: Path, **partition: Any) -> Recipe:
    data = {"path": str(path), "partition": {"kind": "files", **partition}}
    return parse_recipe({"rounds": 1, "model": {"path": "none"}, "data": data})


def texts(rows: DealtRows, client: str) -> list[list[str]]:
    return [rows.table[part]["text"] for part in rows.partition.clients[client]]


def only(rows: Path, wanted: Iterable[str], to: Path) -> Path:
    """The rows of some clients, with their column, in a file of their own."""
    with rows.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    with to.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(line for line in lines if line[-1] in wanted)])
    return to


def shortened(wards: Path) -> Path:
    """The same folder, after the file of its last client has lost all but five rows."""
    file = max(wards.glob("*.csv"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:6]))
    return wards


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`all.csv` has all clients' rows; `wards/` has a file of each of north's; `wards.csv` has both, by a column."""
    write_rows(tmp_path / "all.csv", 180, seed=0)
    write_clients(tmp_path / "all.csv", lambda site: [tmp_path / "wards"] if site in NORTH.clients else [])
    only(tmp_path / "all.csv", NORTH.clients, tmp_path / "wards.csv")
    return tmp_path


@pytest.mark.parametrize("more", [{}, {"max_examples": 20}, {"group": "text"}], ids=str)
def test_every_client_of_a_site_is_cut_as_in_the_simulation_of_all(place: Path, more: dict[str, Any]) -> None:
    whole = deal_rows(recipe(place / "all.csv", kind="column", column="site", **more))
    by_file, _ = own_rows(NORTH, recipe(place / "wards", **more), LABELS)
    by_column, _ = own_rows(NORTH, recipe(place / "wards.csv", kind="column", column="site", **more), LABELS)
    for rows in (by_file, by_column):
        assert set(rows.partition.clients) == {*NORTH.clients}
        for client in NORTH.clients:
            assert texts(rows, client) == texts(whole, client)
    alone, _ = own_rows(Names("x", ("site 0",)), recipe(place / "wards" / "site 0.csv", **more), LABELS)
    assert texts(alone, "site 0") == texts(whole, "site 0")


WRONG: dict[str, tuple[Names, Callable[[Path], Recipe], str]] = {
    "a client that the rows do not have": (
        Names("north", ("site 0", "site 1", "site 9")),
        lambda place: recipe(place / "wards"),
        r"no rows of 'site 9'\. The clients of site 'north' are site 0, site 1, site 9",
    ),
    "rows of somebody else": (
        NORTH,
        lambda place: recipe(place / "all.csv", kind="column", column="site"),
        "rows of 'site 2', which is none of the site's clients",
    ),
    "one client, and a column with others": (
        Names("north", ("site 0",)),
        lambda place: recipe(place / "wards.csv", kind="column", column="site"),
        "rows of 'site 1', which is none",
    ),
    "a client that is too small": (
        NORTH,
        lambda place: recipe(shortened(place / "wards"), leave_out_small=True),
        r"no rows of 'site 1' \(5 rows, fewer than min_examples",
    ),
    "one file for two clients": (
        NORTH,
        lambda place: recipe(place / "wards.csv"),
        "name the column .*column",
    ),
    "nothing": (NORTH, lambda place: recipe(place / "wrads"), "no file or folder"),
    "clients that a draw makes": (
        NORTH,
        lambda place: recipe(place / "wards.csv", kind="iid", clients=2),
        "is of a simulation",
    ),
    "a label that was not agreed upon": (
        NORTH,
        lambda place: recipe(place / "wards"),
        r"site 0\.csv, line 2: 'bad'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_do_not_fit_the_site_are_refused(place: Path, case: str) -> None:
    names, make, text = WRONG[case]
    labels = ("good", "fair") if case.startswith("a label") else LABELS
    with pytest.raises(DataError, match=text):
        own_rows(names, make(place), labels)


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"site\.json cannot be read.*as `fedsa deploy init` wrote it"):
        Names.read(tmp_path)
    NORTH.write(tmp_path)
    assert Names.read(tmp_path) == NORTH


@pytest.mark.parametrize(
    "about", [{"site": 3, "clients": ["a"]}, {"site": "x", "clients": 7}, {"site": "x", "clients": [""]}]
)
def test_a_file_that_names_no_site_is_refused(tmp_path: Path, about: dict[str, Any]) -> None:
    (tmp_path / "site.json").write_text(sealed_table(about), encoding="utf-8")
    with pytest.raises(UserError, match=r"site\.json does not name the site and its clients"):
        Names.read(tmp_path)
