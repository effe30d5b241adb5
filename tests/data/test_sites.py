"""Sites' folders as they are: links, encodings, workbooks, empty cells, small and foreign files, pictures, splits."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from fedsa.data.rows import DealtRows, deal_client, deal_rows, deal_tables
from fedsa.errors import ConfigError, DataError, MissingExtraError
from fedsa.recipe import Recipe, parse_recipe

FILES = {"kind": "files"}


def recipe(path: Path | str, partition: Mapping[str, Any] | None = None, **more: Any) -> Recipe:
    task = more.pop("task", {})
    data = {"path": str(path), "partition": partition or FILES, **more}
    return parse_recipe({"rounds": 1, "model": {"path": "none"}, "task": task, "data": data})


def write(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label"), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = options.pop("encoding", "utf-8")
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, **options).writerows([header, *rows])


def rows_of(mark: str, count: int = 12) -> list[tuple[str, ...]]:
    return [(f"{mark} says {n}", "yes" if n % 2 else "no") for n in range(count)]


def sizes(shared: DealtRows) -> dict[str, int]:
    return {client: rows.num_examples for client, rows in shared.partition.clients.items()}


def note(shared: DealtRows, words: str) -> str:
    (found,) = [each for each in shared.notes if words in each]
    return found


def test_linked_files_and_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.csv", rows_of("a"))
    write(tmp_path / "elsewhere" / "more" / "b.csv", rows_of("b", 15))
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "file.csv").symlink_to("../elsewhere/a.csv")
    (tmp_path / "sites" / "folder").symlink_to("../elsewhere/more")
    (tmp_path / "linked").symlink_to("sites")
    for name in ("sites", "linked"):
        assert sizes(deal_rows(recipe(tmp_path / name))) == {"file": 12, "folder": 15}


@pytest.mark.parametrize("inner", [False, True])
def test_links_that_lead_nowhere_or_back_are_refused(tmp_path: Path, inner: bool) -> None:
    folder = tmp_path / "sites" / "a" if inner else tmp_path / "sites"
    write(folder / "a.csv", rows_of("a"))
    (folder / "gone.csv").symlink_to("nowhere.csv")
    with pytest.raises(DataError, match=r"gone\.csv is a link to nowhere\.csv, which cannot be read"):
        deal_rows(recipe(tmp_path / "sites"))
    (folder / "gone.csv").unlink()
    (folder / "round").symlink_to("..")
    (tmp_path / "sites" / "back").symlink_to(".")
    with pytest.raises(DataError, match=r"is a link to a folder that it lies in|has no data files"):
        deal_rows(recipe(tmp_path / "sites"))


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    import os

    write(tmp_path / "a.csv", rows_of("a"))
    os.mkfifo(tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"b\.csv is neither a file nor a folder"):
        deal_rows(recipe(tmp_path))


SEEN = {
    "utf-8": {},
    "utf-8-sig": {},
    "utf-16": {"encoding": "UTF-16"},
    "utf-16-le": {"encoding": "UTF-16-LE"},
    "utf-16-be": {"encoding": "UTF-16-BE"},
    "cp1252": {"encoding": "cp1252"},
    "latin-1": {"encoding": "cp1252"},
}


@pytest.mark.parametrize("encoding", SEEN)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_separators_and_encodings_are_found_and_said(
    tmp_path: Path, encoding: str, separator: str, ending: str
) -> None:
    rows = [(f"schöne Grüße, Zeile; {n} | Ende", "ja" if n % 2 else "nein") for n in range(12)]
    write(tmp_path / f"west{ending}", rows, encoding=encoding, delimiter=separator)
    write(tmp_path / "east.csv", rows_of("plain"))
    shared = deal_rows(recipe(tmp_path))
    assert sorted(shared.table["text"][12:]) == sorted(text for text, _ in rows)
    usual = {".csv": ",", ".tsv": "\t"}[ending]
    assert any(f"west{ending}: cells are separated by" in each for each in shared.notes) == (separator != usual)
    assert any(f"west{ending}: not UTF-8" in each for each in shared.notes) == bool(SEEN[encoding])
    if SEEN[encoding]:
        assert SEEN[encoding]["encoding"] in note(shared, "not UTF-8")
    if SEEN[encoding].get("encoding") == "cp1252":
        assert "line 2 then has 'schöne'" in note(shared, "not UTF-8")


def test_what_is_given_is_not_looked_for(tmp_path: Path) -> None:
    rows = [(f"zażółć gęślą {n}", "tak" if n % 2 else "nie") for n in range(12)]
    write(tmp_path / "a.csv", rows, encoding="cp1250", delimiter=";")
    given = recipe(tmp_path, separator=";", encoding="cp1250")
    shared = deal_rows(given)
    assert shared.table["text"][0] == "zażółć gęślą 0"
    assert shared.notes == ()
    assert (
        deal_client("new", str(tmp_path / "a.csv"), given, ["nie", "tak"], newcomer=True)[0].table["text"][0]
        == "zażółć gęślą 0"
    )
    with pytest.raises(DataError, match=r"a\.csv cannot be read as utf-8 text .*set data\.encoding"):
        deal_rows(recipe(tmp_path, encoding="utf-8"))
    with pytest.raises(DataError, match="missing"):
        deal_rows(recipe(tmp_path, separator=",", encoding="cp1250"))


WRONG = [("separator", ";;"), ("separator", '"'), ("encoding", "klingon"), ("encoding", "hex")]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_separators_and_encodings_that_there_are_not(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{key}"):
        recipe("x.csv", {"kind": "iid", "clients": 1}, **{key: value})


def test_utf_8_with_some_broken_bytes_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    lines = [f"schöne Grüße {n},{'ja' if n % 2 else 'nein'}".encode() for n in range(12)]
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"text,label", *lines[:5], b"caf\xe9,ja", *lines[5:]]))
    with pytest.raises(DataError, match=r"a\.csv, line 7: bytes that are not UTF-8, while the rest of the file is"):
        deal_rows(recipe(tmp_path))


@pytest.mark.parametrize("content", [b"PK\x03\x04 a workbook", b"\0\1\2\3" * 99, b"%PDF-1.7 text", b"PAR1....PAR1"])
def test_files_of_another_kind_with_the_ending_of_a_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv (is|holds)"):
        deal_rows(recipe(tmp_path))


@pytest.mark.parametrize("ending", ["csv.gz", "jsonl.gz", "parquet", "arrow", "xlsx", "json", "jsonl"])
def test_damaged_files_are_refused_by_their_name(tmp_path: Path, ending: str) -> None:
    if ending == "xlsx":
        pytest.importorskip("python_calamine")
    (tmp_path / f"a.{ending}").write_bytes(b"\x1f\x8b\x08\x00 damaged \xff\xfe" * 9)
    with pytest.raises(DataError, match=rf"a\.{ending}"):
        deal_rows(recipe(tmp_path))


def workbook(path: Path, rows: list[list[Any]], sheets: int = 1) -> None:
    """Write a workbook as Excel does, with the standard library alone: numbers as numbers, texts in place."""
    from xml.sax.saxutils import escape
    from zipfile import ZipFile

    def cell(column: int, row: int, value: Any) -> str:
        at = f'r="{chr(65 + column)}{row}"'
        if value is None:
            return ""
        if isinstance(value, bool):
            return f'<c {at} t="b"><v>{int(value)}</v></c>'
        if isinstance(value, int | float):
            return f"<c {at}><v>{value}</v></c>"
        return f'<c {at} t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'

    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    body = "".join(
        f'<row r="{n}">{"".join(cell(c, n, value) for c, value in enumerate(row))}</row>'
        for n, row in enumerate(rows, start=1)
    )
    numbers = range(1, sheets + 1)
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    with ZipFile(path, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/'
            f'vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType="{kind}'
            '.sheet.main+xml"/>'
            + "".join(
                f'<Override PartName="/xl/worksheets/sheet{n}.xml" ContentType="{kind}.worksheet+xml"/>'
                for n in numbers
            )
            + "</Types>",
        )
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" Type="{office}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
        )
        file.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
            + "".join(f'<sheet name="Sheet {n}" sheetId="{n}" r:id="rId{n}"/>' for n in numbers)
            + "</sheets></workbook>",
        )
        file.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">'
            + "".join(
                f'<Relationship Id="rId{n}" Type="{office}/worksheet" Target="worksheets/sheet{n}.xml"/>'
                for n in numbers
            )
            + "</Relationships>",
        )
        for n in numbers:
            file.writestr(
                f"xl/worksheets/sheet{n}.xml", f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
            )


def test_a_workbook_is_read_as_texts(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    sites = ["007", 7, "NA", 2.5]
    rows = [[f"row {n}", n % 2, sites[n // 2 % 4], None] for n in range(80)]
    workbook(tmp_path / "rows.xlsx", [["text", "label", "site", "note"], *rows], sheets=2)
    shared = deal_rows(recipe(tmp_path / "rows.xlsx", {"kind": "column", "column": "site"}))
    assert sizes(shared) == {"007": 20, "2.5": 20, "7": 20, "NA": 20}
    assert shared.label_names == ("0", "1")
    assert "'Sheet 1'; 1 more: 'Sheet 2'" in note(shared, "only the first sheet")
    assert "'note'" in note(shared, "not read")
    rows[4][0] = None
    workbook(tmp_path / "rows.xlsx", [["text", "label", "site"], *[row[:3] for row in rows]])
    with pytest.raises(DataError, match=r"'text' is empty in 1 row \(rows\.xlsx, row 6\)"):
        deal_rows(recipe(tmp_path / "rows.xlsx", {"kind": "column", "column": "site"}))
    workbook(tmp_path / "rows.xlsx", [["text", "label"], ["a", 1], ["b", 0, "beyond"]])
    with pytest.raises(DataError, match=r"rows\.xlsx, row 3: 'beyond' stands in a column without a name"):
        deal_rows(recipe(tmp_path / "rows.xlsx", {"kind": "iid", "clients": 1}))


def test_without_its_extra_a_workbook_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    workbook(tmp_path / "a.xlsx", [["text", "label"], ["a", 1]])
    for partition in (FILES, {**FILES, "leave_out_unreadable": True}):
        with pytest.raises(MissingExtraError, match=r"a\.xlsx needs an extra .* pip install 'fedsa\[excel\]'"):
            deal_rows(recipe(tmp_path, partition))


def test_empty_cells_are_told_by_the_line_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "west.csv", [("two\nlines", "yes"), ("", "no"), *rows_of("w"), ("x", "")], lineterminator="\n")
    write(tmp_path / "east.csv", rows_of("e"))
    (tmp_path / "north.jsonl").write_text(
        "\n\n".join(json.dumps({"text": f"n {n}", "label": None if n == 3 else "ny"[n % 2]}) for n in range(12)),
        "utf-8",
    )
    with pytest.raises(DataError) as caught:
        deal_rows(recipe(tmp_path))
    assert "column 'text' is empty in 1 row (west.csv, line 4)" in str(caught.value)
    assert "column 'label' is empty in 2 rows (north.jsonl, line 7; west.csv, line 17)" in str(caught.value)
    assert "data.drop_empty = true" in str(caught.value)
    shared = deal_rows(recipe(tmp_path, drop_empty=True))
    assert sizes(shared) == {"east": 12, "north": 11, "west": 13}
    assert "3 of 39 train rows have an empty cell" in note(shared, "drop_empty")
    assert "1 in 'text', 2 in 'label'; 2 in west.csv, 1 in north.jsonl" in note(shared, "drop_empty")
    (rows, _) = deal_client(
        "new", str(tmp_path / "west.csv"), recipe("none", drop_empty=True), ["no", "yes"], newcomer=True
    )
    assert len(rows.table) == 13


def test_wrong_labels_are_told_by_the_line_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "west.csv", [*rows_of("w"), ("x", "yess")])
    with pytest.raises(DataError, match=r"west\.csv, line 14: 'yess'.*did you mean 'yes'"):
        deal_rows(recipe(tmp_path, task={"labels": ["no", "yes"]}))


def test_a_client_whose_rows_are_all_dropped_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", rows_of("a"))
    write(tmp_path / "b.csv", [("", "yes")] * 12)
    with pytest.raises(DataError, match=r"every row of 'b' has an empty cell.*leave_out_small"):
        deal_rows(recipe(tmp_path, drop_empty=True))
    shared = deal_rows(recipe(tmp_path, {**FILES, "leave_out_small": True}, drop_empty=True))
    assert sizes(shared) == {"a": 12}
    assert "each of their rows has an empty cell: b." in note(shared, "Clients left out")
    write(tmp_path / "a.csv", [("", "yes")] * 12)
    with pytest.raises(DataError, match="every row has an empty cell"):
        deal_rows(recipe(tmp_path, {**FILES, "leave_out_small": True}, drop_empty=True))


@pytest.mark.parametrize("group", [None, "doc"])
def test_small_clients_can_be_left_out_and_are_named(tmp_path: Path, group: str | None) -> None:
    for client, count in {"big": 30, "small": 4, "tiny": 1, "whole": 30}.items():
        rows = [
            (text, label, "one" if client == "whole" else str(n))
            for n, (text, label) in enumerate(rows_of(client, count))
        ]
        write(tmp_path / f"{client}.csv", rows, ("text", "label", "doc"))
    partition = {**FILES, "group": group}
    with pytest.raises(DataError, match=r"(?s)client 'small': 4 rows.*leave_out_small = true"):
        deal_rows(recipe(tmp_path, partition))
    shared = deal_rows(recipe(tmp_path, {**partition, "leave_out_small": True}))
    assert sorted(sizes(shared)) == (["big"] if group else ["big", "whole"])
    told = note(shared, "leave_out_small")
    assert "small (4 rows, fewer than min_examples = 10), tiny (1 row," in told
    assert ("whole (1 group " in told) == bool(group)
    with pytest.raises(DataError, match="clients cannot be used"):  # all of them
        deal_rows(recipe(tmp_path, {**partition, "leave_out_small": True, "min_examples": 100}))


def test_foreign_files_can_be_left_out_and_are_named(tmp_path: Path) -> None:
    write(tmp_path / "good.csv", rows_of("good"))
    foreign = {
        "empty.csv": b"",
        "header.csv": b"text,label\n",
        "notes.docx": b"PK",
        "other.csv": b"name,age\nx,1\n",
        "broken.jsonl": b'{"text": ',
        "wide.csv": b"text,label\na,b,c\n",
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError):
        deal_rows(recipe(tmp_path))
    shared = deal_rows(recipe(tmp_path, {**FILES, "leave_out_unreadable": True}))
    assert sizes(shared) == {"good": 12}
    assert all(name in note(shared, "leave_out_unreadable") for name in [*foreign, "folder"])
    (tmp_path / "good.csv").unlink()
    with pytest.raises(DataError):
        deal_rows(recipe(tmp_path, {**FILES, "leave_out_unreadable": True}))
    with pytest.raises(ConfigError, match="leave_out_unreadable"):
        recipe(tmp_path, {"kind": "iid", "clients": 1, "leave_out_unreadable": True})


def test_labels_that_are_numbers_here_and_words_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [(text, "1" if label == "yes" else "0") for text, label in rows_of("a")])
    write(tmp_path / "b.csv", rows_of("b"))
    with pytest.raises(DataError, match=r"'label' has several types: numbers in a\.csv; words in b\.csv"):
        deal_rows(recipe(tmp_path))


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (["Positive", "positive"], "'Positive' (6 rows) and 'positive' (6 rows)"),
        (["yes", "yes "], "'yes' (6 rows) and 'yes ' (6 rows)"),
        (["no one", "noone"], "'no one' (6 rows) and 'noone' (6 rows)"),
        (["caf\u00e9", "cafe\u0301"], r"'cafe\u0301' (6 rows) and 'caf\xe9' (6 rows)"),
        (["yes", "yes\u200b"], r"'yes' (6 rows) and 'yes\u200b' (6 rows)"),
        (["yes", "no"], None),
    ],
)
def test_labels_that_look_alike_are_named(tmp_path: Path, names: list[str], alike: str | None) -> None:
    write(tmp_path / "a.csv", [(text, names[n % 2]) for n, (text, _) in enumerate(rows_of("a"))])
    shared = deal_rows(recipe(tmp_path))
    assert (alike is None and not shared.notes) or alike in note(shared, "are classes of their own")


def test_clients_that_look_alike_are_named(tmp_path: Path) -> None:
    rows = [(f"a {n}", "yes" if n % 2 else "no", ["west", "west ", "West", "east"][n % 4]) for n in range(48)]
    write(tmp_path / "rows.csv", rows, header=("text", "label", "site"))
    shared = deal_rows(recipe(tmp_path / "rows.csv", {"kind": "column", "column": "site"}))
    assert set(shared.partition.clients) == {"west", "west ", "West", "east"}
    assert "'West' (12 rows) and 'west' (12 rows) and 'west ' (12 rows)" in note(shared, "are clients of their own")


def test_a_label_that_cannot_be_seen_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [(f"a {n}", ["yes", "no", " "][n % 3]) for n in range(18)])
    assert "The label ' ' (6 rows)" in note(deal_rows(recipe(tmp_path)), "nothing that can be seen")


def test_one_number_in_two_writings_is_one_class_and_said(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [(f"a {n}", ["3", "3.0", "10"][n % 3]) for n in range(12)])
    shared = deal_rows(recipe(tmp_path))
    assert shared.label_names == ("3", "10")
    assert "3 and 3.0" in note(shared, "in two ways")


def counted(shared: DealtRows, column: str) -> tuple[int, int, int, int]:
    """Count repeats plainly: within and across clients, test rows with a trained text, those of the same client."""
    rows = {
        client: [[(shared.table[int(n)][column], int(shared.labels[n])) for n in part] for part in parts]
        for client, parts in shared.partition.clients.items()
    }
    flat = {client: [row for part in parts for row in part] for client, parts in rows.items()}
    within = sum(len(each) - len(set(each)) for each in flat.values())
    across = sum(
        any(row in others for other, others in flat.items() if other != client)
        for client in flat
        for row in flat[client]
    )
    trained = {client: {text for text, _ in parts[0]} for client, parts in rows.items()}
    tested = [(client, text) for client, parts in rows.items() for text, _ in parts[2]]
    everywhere = sum(any(text in each for each in trained.values()) for _, text in tested)
    return within, across, everywhere, sum(text in trained[client] for client, text in tested)


@pytest.mark.parametrize("different", [1, 3, 10, 40, 10_000])
def test_equal_rows_are_counted_as_a_plain_count_does(tmp_path: Path, different: int) -> None:
    rows = [(f"text {n * n % different}", "yn"[n % 2], f"site {n % 3}") for n in range(120)]
    write(tmp_path / "rows.csv", rows, ("text", "label", "site"))
    shared = deal_rows(recipe(tmp_path / "rows.csv", {"kind": "column", "column": "site"}))
    within, across, everywhere, here = counted(shared, "text")
    told = [each for each in shared.notes if each.startswith("Equal rows")]
    assert bool(told) == bool(within or across)
    if told:
        assert f"{within:,} of 120 rows repeat another one of their client, {across:,} stand at several" in told[0]
    tested = [each for each in shared.notes if "have the text of a row that is trained" in each]
    assert bool(tested) == bool(everywhere)
    if tested:
        assert tested[0].startswith(f"{everywhere} of ")
        assert f"({here} at the same client)" in tested[0]
        assert ("data.partition.group = 'text'" in tested[0]) == bool(here)


def test_the_hint_at_group_works(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", [(f"text {n % 40}", "yn"[n % 2]) for n in range(120)])
    shared = deal_rows(recipe(tmp_path / "rows.csv", {"kind": "iid", "clients": 2, "group": "text"}))
    assert not any("trained" in each for each in shared.notes)


def picture(path: Path, shade: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(path)


PICTURES = {"kind": "image_classification"}


@pytest.mark.parametrize("name", ["pictures", "pic [1]", "x::y", "50%", "hf:"])
def test_pictures_in_folders_of_any_name_and_linked(tmp_path: Path, name: str) -> None:
    for domain in ("dark [1]", "li*ght"):
        for label in ("train", "c#t"):  # a class may have the name of a split
            for n in range(8):
                picture(tmp_path / name / domain / label / f"{n} [x].png", n)
    picture(tmp_path / "elsewhere" / "z.png", 9)
    (tmp_path / name / "dark [1]" / "c#t" / "linked.png").symlink_to(tmp_path / "elsewhere" / "z.png")
    (tmp_path / name / "linked").symlink_to("dark [1]")
    by_domain = recipe(tmp_path / name, {"kind": "column", "column": "domain"}, task=PICTURES)
    shared = deal_rows(by_domain)
    assert sizes(shared) == {"dark [1]": 17, "li*ght": 16, "linked": 17}
    assert shared.label_names == ("c#t", "train")
    assert shared.table[0]["image"].size == (4, 4)


def test_pictures_of_clients_with_few_classes_and_splits_of_their_own(tmp_path: Path) -> None:
    for client, labels in {"a": ["cat", "dog"], "b": ["cat"]}.items():
        for label in labels:
            for split, count in {"train": 12, "test": 4}.items():
                for n in range(count):
                    picture(tmp_path / client / split / label / f"{n}.png", n)
    shared = deal_rows(recipe(tmp_path, task=PICTURES, test_split="test"))
    assert sizes(shared) == {"a": 32, "b": 16}
    assert shared.label_names == ("cat", "dog")


def test_pictures_that_a_table_describes(tmp_path: Path) -> None:
    for n in range(13):
        picture(tmp_path / "in" / f"{n}.png", n)
    rows = [(f"in/{n}.png", "ab"[n % 2], f"{n % 2:03}") for n in range(12)]
    write(tmp_path / "metadata.csv", rows, ("file_name", "kind", "site"))
    of_table = recipe(
        tmp_path, {"kind": "column", "column": "site", "min_examples": 3}, task={**PICTURES, "label_column": "kind"}
    )
    shared = deal_rows(of_table)
    assert sizes(shared) == {"000": 6, "001": 6}
    assert "in/12.png" in note(shared, "Pictures that no metadata.csv names")
    for wrong in ("in/99.png", "../x.png", "/etc/passwd", ""):
        write(tmp_path / "metadata.csv", [*rows, (wrong, "a", "000")], ("file_name", "kind", "site"))
        with pytest.raises(DataError, match=r"metadata\.csv, line 14: file_name is .* no such picture"):
            deal_rows(of_table)


def test_folders_with_several_formats_are_refused_and_other_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows_of("a"))
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "README.md").write_text("about")
    iid = {"kind": "iid", "clients": 1}
    assert "notes.txt" in note(deal_rows(recipe(tmp_path, iid)), "other files than the data")
    write(tmp_path / "extra.csv", rows_of("b"))
    assert "extra.csv" in note(deal_rows(recipe(tmp_path, iid)), "their names say no split")
    datasets.Dataset.from_dict({"text": ["a"], "label": ["yes"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"tables of several kinds, CSV \(extra\.csv\), Parquet \(train\.parquet\)"):
        deal_rows(recipe(tmp_path, iid))


def test_classes_of_a_readme_and_of_parquet_keep_their_names(tmp_path: Path) -> None:
    names = "{'0': nein, '1': ja}"
    card = f"dataset_info: {{features: [{{name: label, dtype: {{class_label: {{names: {names}}}}}}}]}}"
    write(tmp_path / "one" / "train.csv", [(text, "1" if label == "yes" else "0") for text, label in rows_of("a")])
    (tmp_path / "one" / "README.md").write_text(f"---\n{card}\n---\n")
    (tmp_path / "two").mkdir()
    table = datasets.Dataset.from_dict(
        {"text": [f"t {n}" for n in range(12)], "label": [n % 2 for n in range(12)], "x": [1] * 12}
    )
    table.cast_column("label", datasets.ClassLabel(names=["nein", "ja"])).to_parquet(tmp_path / "two" / "train.parquet")
    for folder in ("one", "two"):
        assert deal_rows(recipe(tmp_path / folder, {"kind": "iid", "clients": 1})).label_names == ("nein", "ja")


def test_csv_on_the_hub_is_read_as_local_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [(f"row {n}", "yn"[n // 2 % 2], ["007", "NA"][n % 2]) for n in range(40)]
    write(tmp_path / "train.csv", rows, ("text", "label", "site"))
    build = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *_, **__: build("csv", data_files=str(tmp_path / "train.csv"))
    )
    shared = deal_rows(recipe("someone/rows", {"kind": "column", "column": "site"}, split="train[:30]"))
    assert sizes(shared) == {"007": 15, "NA": 15}


def test_objects_keep_their_names_and_their_places() -> None:
    tables = {
        "a": datasets.Dataset.from_dict({"text": [f"a {n}" for n in range(12)], "label": [n % 2 for n in range(12)]}),
        "b": datasets.Dataset.from_dict(
            {"text": [f"b {n}" for n in range(12)], "label": [float(n % 2) for n in range(12)]}
        ),
    }
    shared = deal_tables(tables, recipe("objects:"))
    assert sizes(shared) == {"a": 12, "b": 12}
    assert shared.label_names == ("0", "1")
    tables["b"] = (
        tables["b"].select(range(5, 12)).map(lambda row: {"text": None if row["text"] == "b 7" else row["text"]})
    )
    with pytest.raises(DataError, match=r"'text' is empty in 1 row \(b, row 2 \(counted from 0\)\)"):
        deal_tables(tables, recipe("objects:", {**FILES, "min_examples": 3}))


def texts_by_split(shared: DealtRows, client: str) -> list[list[str]]:
    return [shared.table[part]["text"] for part in shared.partition.clients[client]]


@pytest.mark.parametrize("more", [{}, {"max_examples": 20}, {"group": "text"}], ids=str)
def test_a_site_with_its_own_file_alone_cuts_it_as_the_simulation_of_all(tmp_path: Path, more: dict[str, Any]) -> None:
    """So does a site across machines, and whoever takes a client in that was not in the run."""
    sites = {"east": rows_of("east", 40), "north": rows_of("north", 33), "west": rows_of("west", 51)}
    for site, rows in sites.items():
        write(tmp_path / "all" / f"{site}.csv", rows)
        write(tmp_path / "alone" / site / f"{site}.csv", rows)
    given = {**FILES, **more}
    whole = deal_rows(recipe(tmp_path / "all", given))
    for site in sites:
        expected = texts_by_split(whole, site)
        assert texts_by_split(deal_rows(recipe(tmp_path / "alone" / site, given)), site) == expected
        file = str(tmp_path / "all" / f"{site}.csv")
        for newcomer in (True, False):
            dealt, _ = deal_client(site, file, recipe("elsewhere", given), whole.label_names, newcomer=newcomer)
            assert texts_by_split(dealt, site) == expected


def test_a_member_has_the_agreed_columns_and_rows_and_a_newcomer_need_not(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", rows_of("a", 12))
    file, names = str(tmp_path / "a.csv"), ("no", "yes")
    for more, text in (({"min_examples": 20}, "20"), ({"group": "patient"}, "patient")):
        given = recipe("elsewhere", {**FILES, **more})
        dealt, _ = deal_client("a", file, given, names, newcomer=True)
        assert dealt.partition.clients["a"].num_examples == 12
        with pytest.raises(DataError, match=text):
            deal_client("a", file, given, names, newcomer=False)
