"""Files as people have them: any name, separator, encoding and cell gives a client its own rows, or a refusal."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import string
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsa.data.rows import DealtRows, deal_client, deal_rows, deal_tables
from fedsa.errors import DataError
from fedsa.recipe import Recipe, parse_recipe

pytestmark = pytest.mark.run

Table = Sequence[Mapping[str, Any]]

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def recipe(path: Path | str, partition: Mapping[str, Any] | None = None, **more: Any) -> Recipe:
    task, data = more.pop("task", {}), {"path": str(path), "partition": partition or {"kind": "files"}, **more}
    return parse_recipe({"rounds": 1, "model": {"path": "none"}, "task": task, "data": data})


def write(path: Path, rows: Table, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = options.pop("encoding", "utf-8")
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


def rows_of(mark: str, count: int = 12, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"{mark} says {n}", "label": "yes" if n % 2 else "no", **more} for n in range(count)]


def texts_of(shared: DealtRows, client: str) -> list[str]:
    rows = sorted(int(row) for part in shared.partition.clients[client] for row in part)
    return shared.table.select(rows)["text"][:]


NAMES = ["a", "ab", "a[b]", "[ab]", "a?", "a*", "**", "{a,b}", "a#b", "50%", "%41", "x::y", "hf:", "file:", "zip:",
         "-dash", "a b", "a, b", "~", "tilde~1", "$HOME", "a+b&c=d;e", "quote'\"s", "ümlaut 東", "dots.v1.2", "train",
         "test", "a\\b", "README 2", "LICENSE plate", "nul", "é", "e\u0301"]  # fmt: skip


letters = string.ascii_letters + string.digits + string.punctuation.replace("/", "") + " éß東"


@few
@given(st.sets(st.sampled_from(NAMES) | st.text(letters, min_size=1, max_size=8), min_size=2, max_size=6))
def test_every_client_gets_its_own_rows_whatever_its_file_is_called(names: set[str]) -> None:
    clients = sorted(name for name in names if not name.startswith(".") and not name.lower().endswith(".gz"))
    place = Path(tempfile.mkdtemp())
    try:
        for number, name in enumerate(clients):
            write(place / "files" / f"{name}.csv", rows_of(f"row of {number}"))
            write(place / "folders" / name / "rows.csv", rows_of(f"row of {number}"))
        for kind in ("files", "folders") if clients else ():
            shared = deal_rows(recipe(place / kind))
            assert sorted(shared.partition.clients) == clients
            for number, name in enumerate(clients):
                assert texts_of(shared, name) == [row["text"] for row in rows_of(f"row of {number}")]
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_a_name_and_nothing_else(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for decoy in ("a", "b", "ab", "x", "y"):  # what a pattern would fit
        write(Path(f"{decoy}.csv"), rows_of("decoy"))
        write(Path("sub", decoy, "rows.csv"), rows_of("decoy"))
    write(Path(f"{name}.csv"), rows_of("own"))
    shutil.rmtree(Path("sub", name), ignore_errors=True)
    write(Path("sub", name, "rows.csv"), rows_of("own"))
    expected = [row["text"] for row in rows_of("own")]
    iid = {"kind": "iid", "clients": 1}
    for path in (f"{name}.csv", f"sub/{name}", f"./sub/{name}", str(tmp_path / f"{name}.csv")):
        if path != "~.csv":
            assert texts_of(deal_rows(recipe(path, iid)), "client-1") == expected, path
    assert (
        texts_of(deal_client("new", f"sub/{name}", recipe("none"), ["no", "yes"], newcomer=True)[0], "new") == expected
    )


def test_hidden_files_are_passed_over_but_read_when_named(tmp_path: Path) -> None:
    write(tmp_path / ".hidden" / "rows.csv", rows_of("hidden"))
    write(tmp_path / "sites" / "a.csv", rows_of("a"))
    write(tmp_path / "sites" / ".b.csv", rows_of("b"))
    assert list(deal_rows(recipe(tmp_path / "sites")).partition.clients) == ["a"]
    iid = {"kind": "iid", "clients": 1}
    assert texts_of(deal_rows(recipe(tmp_path / ".hidden", iid)), "client-1")[0] == "hidden says 0"


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@few
@given(
    table=st.lists(st.tuples(cells, cells, cells), min_size=12, max_size=20),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    ends=st.sampled_from(["\n", "\r\n"]),
    named=st.booleans(),
)
def test_what_is_written_is_read_cell_by_cell(
    table: list[tuple[str, str, str]], separator: str, encoding: str, ends: str, named: bool
) -> None:
    from fedsa.data.reading.base import Wanted
    from fedsa.data.reading.local import load_local

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.csv"
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter=separator, lineterminator=ends, quoting=csv.QUOTE_ALL)
            writer.writerow(["one", "two", "three"])
            writer.writerows(table)
        known = {"separator": separator, "encoding": encoding} if named else {}
        read = load_local(path, ["train"], wanted=Wanted(frozenset({"one", "three"}), **known))["train"].arrow
        packed = path.with_suffix(".csv.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        again = load_local(packed, ["train"], wanted=Wanted(frozenset({"one", "three"}), **known))["train"].arrow
    assert read.equals(again)
    assert read["one"].to_pylist() == [row[0] or None for row in table]
    assert read["three"].to_pylist() == [row[2] or None for row in table]
    assert "two" not in read.column_names


@pytest.mark.parametrize("extra", [["negative"], ["a", "b", "x"], ["a", "yes", ""], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("at", [0, 5, 11])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_line_with_other_fields_than_the_header_is_refused_with_its_line(
    tmp_path: Path, extra: list[str], at: int, ending: str
) -> None:
    lines: list[list[str]] = [["two\nlines", "yes"] if n % 2 else [f"text {n}", "no"] for n in range(12)]
    lines.insert(at, extra)
    with (tmp_path / f"a{ending}").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",")
        writer.writerows([["text", "label"], *lines])
    line = 2 + sum(1 + cells[0].count("\n") for cells in lines[:at])
    with pytest.raises(DataError, match=rf"a\{ending}, line {line}: {len(extra)} fields?, but the header has 2"):
        deal_rows(recipe(tmp_path))


def test_a_separator_at_the_end_of_every_line_is_refused_or_is_a_column_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "fine,yes,\nbad,no,\n" * 6, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv, line 2: 3 fields.*remove the comma at the line's end"):
        deal_rows(recipe(tmp_path))
    (tmp_path / "a.csv").write_text("text,label,\n" + "fine,yes,\nbad,no,\n" * 6, encoding="utf-8")
    assert texts_of(deal_rows(recipe(tmp_path)), "a")[:2] == ["fine", "bad"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('text,label\n"a",yes\n"never closed,no\n', "line 3: a quotation mark opens a cell there, and none closes it"),
        ('text,label\n"a ""b""",yes\n"c" d,no\n"e",no\n', "line 3: a quotation mark stands inside a cell"),
        ("text,label,text\na,yes,b\n", "the header names column 'text' twice"),
    ],
)
def test_quotation_marks_and_headers_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        deal_rows(recipe(tmp_path))


def test_quotation_marks_that_are_part_of_the_text_are_kept_and_said(tmp_path: Path) -> None:
    lines = [f'"Great" film {n}\tyes\nno "end\tno' for n in range(8)]
    (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    shared = deal_rows(recipe(tmp_path))
    assert texts_of(shared, "a")[:2] == ['"Great" film 0', 'no "end']
    assert any("a.tsv: quotation marks" in note for note in shared.notes)


@pytest.mark.parametrize("seconds", [0, 1_700_000_000])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_rows_are_todays_rows(tmp_path: Path, ending: str, seconds: int) -> None:
    path = tmp_path / "sites" / f"a.{ending}"
    path.parent.mkdir()
    for word in ("early", "later"):  # of one size and one time
        table = datasets.Dataset.from_list(rows_of(word))
        if ending == "parquet":
            table.to_parquet(path)
        elif ending == "csv":
            write(path, rows_of(word))
        else:
            path.write_text("\n".join(map(json.dumps, rows_of(word))), encoding="utf-8")
        os.utime(path, ns=(seconds * 10**9, seconds * 10**9))
        assert texts_of(deal_rows(recipe(path.parent)), "a")[0] == f"{word} says 0"


WORDS = ["007", "7", "7.0", "NA", "N/A", "n/a", "None", "none", "null", "NULL", "nan", "NaN"]
WORDS += ["-", "#N/A", "True", "1e5", "0x1F", "1,000", " "]


@pytest.mark.parametrize("column", ["text", "label", "site"])
def test_only_the_empty_cell_is_empty_and_no_name_is_a_number(tmp_path: Path, column: str) -> None:
    rows = [{"text": f"row {n}", "label": "ab"[n % 2], "site": "one"} for n in range(6)]
    table = [{**row, column: word} for word in WORDS for row in rows]
    write(tmp_path / "rows.csv", table)
    shared = deal_rows(recipe(tmp_path / "rows.csv", {"kind": "column", "column": "site", "min_examples": 3}))
    if column == "site":
        assert sorted(shared.partition.clients) == sorted(WORDS)
    elif column == "label":
        assert sorted(shared.label_names) == sorted(WORDS)
    else:
        assert set(texts_of(shared, "one")) == set(WORDS)


def test_names_stay_apart_in_groups_and_within(tmp_path: Path) -> None:
    table = [{"text": f"row {n}", "label": "ab"[n % 2], "region": ["NA", "EU", "01", "1"][n // 15]} for n in range(60)]
    write(tmp_path / "rows.csv", table)
    shared = deal_rows(recipe(tmp_path / "rows.csv", {"kind": "iid", "clients": 1, "within": "region"}))
    assert sorted(shared.partition.clients) == ["01-1", "1-1", "EU-1", "NA-1"]


@pytest.mark.parametrize(
    ("values", "clients"),
    [
        ([7, 7.0], ["7"]),
        (["007", 7], ["007", "7"]),
        ([True, False], ["False", "True"]),
        ([2**60, 2**60 + 1], [str(2**60), str(2**60 + 1)]),
        ([0.5, 2], ["0.5", "2"]),
        (["NA", "None"], ["NA", "None"]),
    ],
)
def test_numbers_as_names_in_json(tmp_path: Path, values: list[Any], clients: list[str]) -> None:
    table = [{"text": f"row {n}", "label": n // 2 % 2, "site": values[n % 2]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, table)), encoding="utf-8")
    shared = deal_rows(recipe(tmp_path / "rows.jsonl", {"kind": "column", "column": "site"}))
    assert sorted(shared.partition.clients) == clients
    mixed = [note for note in shared.notes if "Column 'site' holds" in note]
    assert len(mixed) == (len({type(value) is str for value in values}) > 1)
    if mixed:
        assert "a text (first: rows.jsonl, line 1) and a number (first: rows.jsonl, line 2)" in mixed[0]


@pytest.mark.parametrize("stored", [["a", "b"], [3, 4], [3.0, 4.0], [2**60, 2**60 + 1], [True, False], [None, 3.0]])
def test_numbers_as_names_in_parquet(tmp_path: Path, stored: list[Any]) -> None:
    table = [{"text": f"row {n}", "label": n // 2 % 2, "site": stored[n % 2]} for n in range(40)]
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "rows.parquet")
    of_column = recipe(tmp_path / "rows.parquet", {"kind": "column", "column": "site"}, drop_empty=True)
    expected = {str(int(v)) if type(v) is float else str(v) for v in stored if v is not None}
    assert set(deal_rows(of_column).partition.clients) == expected


def test_floats_too_large_to_be_exact_are_no_names(tmp_path: Path) -> None:
    table = [{"text": f"row {n}", "label": n // 2 % 2, "site": float(2**53 + n % 2)} for n in range(40)]
    datasets.Dataset.from_list(table).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"row 0 \(counted from 0\): column 'site' .* too large to be exact"):
        deal_rows(recipe(tmp_path / "rows.parquet", {"kind": "column", "column": "site"}))


NO_TEXTS = {"list": ["a"], "table": {"role": "user"}, "tables": [{"role": "user"}], "empty list": [], "bytes": b"a"}


@pytest.mark.parametrize(
    ("column", "kind", "ending"),
    [
        (column, kind, ending)
        for column in ("text", "label", "site")
        for kind in NO_TEXTS
        for ending in ("jsonl", "json", "parquet", "objects")
        if not (kind == "bytes" and ending.startswith("json"))  # it has none
        if not (column == "site" and ending == "objects")  # the key is the client
    ],
)
def test_what_is_no_text_is_refused_with_row_and_column(tmp_path: Path, column: str, kind: str, ending: str) -> None:
    table = [{"text": f"row {n}", "label": "ab"[n % 2], "site": "one"} for n in range(20)]
    for n, row in enumerate(table):  # where a column is of one kind, the cells before are empty
        row[column] = NO_TEXTS[kind] if n >= 7 else "x" if ending.startswith("json") else None
    path, place = tmp_path / f"rows.{ending}", "line 8" if ending == "jsonl" else r"row 7 \(counted from 0\)"
    if ending == "objects":
        with pytest.raises(DataError, match=rf"north, {place}: column '{column}' holds"):
            deal_tables({"north": datasets.Dataset.from_list(table)}, recipe("objects:"))
        return
    if ending == "parquet":
        datasets.Dataset.from_list(table).to_parquet(path)
    else:
        path.write_text(json.dumps(table) if ending == "json" else "\n".join(map(json.dumps, table)), encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.{ending}, {place}: column '{column}' holds"):
        deal_rows(recipe(path, {"kind": "column", "column": "site"}))


def test_a_column_that_changes_its_kind_late_is_read_as_text(tmp_path: Path) -> None:
    table = [{"text": f"row {n}", "label": "01"[n % 2], "site": 1 if n < 15_000 else "late"} for n in range(15_100)]
    write(tmp_path / "rows.csv", table)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, table)), encoding="utf-8")
    for name in ("rows.csv", "rows.jsonl"):
        shared = deal_rows(recipe(tmp_path / name, {"kind": "column", "column": "site"}))
        assert {client: rows.num_examples for client, rows in shared.partition.clients.items()} == {
            "1": 15_000,
            "late": 100,
        }


def test_a_number_that_becomes_a_word_late_is_named(tmp_path: Path) -> None:
    table = [{"text": f"row {n}", "score": n if n != 12_345 else "many"} for n in range(15_000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, table)), encoding="utf-8")
    of_number = recipe(
        tmp_path / "rows.jsonl", {"kind": "iid", "clients": 1}, task={"kind": "regression", "answer": "score"}
    )
    with pytest.raises(DataError, match=r"rows\.jsonl: column 'score' holds cells of several kinds.*row 12346"):
        deal_rows(of_number)


def test_nulls_in_lists_and_tables_are_read(tmp_path: Path) -> None:
    table = [
        {"words": ["a", None], "tags": None if n == 3 else ["O", "O"], "x": {"y": [None, {"z": n}]}} for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, table)), encoding="utf-8")
    task = {"kind": "token_classification", "text_columns": ["words"], "answer": "tags", "labels": ["O", "B-X"]}
    of_tags = recipe(tmp_path / "rows.jsonl", {"kind": "iid", "clients": 1}, task=task)
    with pytest.raises(DataError, match=r"column 'tags' is empty in 1 row \(rows\.jsonl, line 4\)"):
        deal_rows(of_tags)
    shared = deal_rows(of_tags.model_copy(update={"data": of_tags.data.model_copy(update={"drop_empty": True})}))
    assert len(shared.table) == 19
    assert shared.table[0]["words"] == ["a", None]


CHOICE = {"kind": "multiple_choice", "prompt": "{text}", "labels": ["a", "b"], "answer": "x"}


@pytest.mark.parametrize(
    ("task", "cells", "read"),
    [
        ({"kind": "regression", "answer": "x"}, ["1", "2.5", " 3"], [1.0, 2.5, 3.0]),
        ({"kind": "regression", "answer": "x"}, ["1", "2", "03"], [1, 2, 3]),
        (CHOICE, ["true", "False"], [True, False]),
        (CHOICE, ["A", "1"], ["A", "1"]),
        ({"kind": "generation", "prompt": "{text}", "answer": "{x}"}, ["1", "2.50"], ["1", "2.50"]),
        ({"kind": "generation", "prompt": "{text}", "answer": "{x:.1f}"}, ["1", "2.50"], [1.0, 2.5]),
    ],
)
def test_numbers_are_read_where_a_task_needs_them(tmp_path: Path, task: Any, cells: list[str], read: list[Any]) -> None:
    write(tmp_path / "rows.csv", [{"text": f"row {n}", "x": cells[n % len(cells)]} for n in range(12)])
    shared = deal_rows(recipe(tmp_path / "rows.csv", {"kind": "iid", "clients": 1}, task=task))
    assert shared.table["x"][: len(cells)] == read
    assert [type(cell) for cell in shared.table["x"][: len(cells)]] == [type(cell) for cell in read]


@pytest.mark.parametrize("columns", [["note"], ["label 2", "date"]])
def test_columns_that_are_not_used_need_not_be_alike_and_are_named(tmp_path: Path, columns: list[str]) -> None:
    write(tmp_path / "a.csv", rows_of("a", **dict.fromkeys(columns, 5)))
    write(tmp_path / "b.csv", rows_of("b", **dict.fromkeys(columns, "word"), id=1))
    write(tmp_path / "c.csv", rows_of("c", id="x"))
    (tmp_path / "d.jsonl").write_text(
        "\n".join(json.dumps({**row, "id": [1]}) for row in rows_of("d")), encoding="utf-8"
    )
    shared = deal_rows(recipe(tmp_path))
    (note,) = [note for note in shared.notes if "not read" in note]
    assert all(f"{column!r} (in a.csv, b.csv)" in note for column in columns)
    assert "'id' (in b.csv, c.csv, d.jsonl)" in note
    tables = {
        name: datasets.Dataset.from_list(rows_of(name, **more))
        for name, more in {"a": {"id": 1}, "b": {"id": "x"}, "c": {}}.items()
    }
    (note,) = [note for note in deal_tables(tables, recipe("objects:")).notes if "left aside" in note]
    assert "'id' (of a, b)" in note
