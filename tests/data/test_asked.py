"""Rows without answers: from files of every kind, from lines, from Python; and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from fedsa.data.asked import asked_of_lines, asked_of_objects, read_asked
from fedsa.errors import DataError
from fedsa.recipe import DataSettings, PartitionSettings, task_settings
from support.tiny_vision import picture

TEXTS = task_settings({"kind": "classification"})
PAIRS = task_settings({"kind": "classification", "text_columns": ["first", "second"]})
WORDS = task_settings(
    {"kind": "token_classification", "text_columns": ["words"], "answer": "tags", "labels": ["O", "B-X"]}
)
PROMPTS = task_settings({"kind": "generation", "prompt": "{question} {hint}", "answer": "{answer}"})
CHOICES = task_settings({"kind": "multiple_choice", "prompt": "{text}", "answer": "right", "choices": ["choices"]})
PICTURES = task_settings({"kind": "image_classification"})


def write(table: datasets.Dataset, path: Path) -> None:
    {
        ".csv": table.to_csv,
        ".jsonl": table.to_json,
        ".parquet": table.to_parquet,
        ".xlsx": lambda to: table.to_pandas().to_excel(to, index=False),
    }[path.suffix](path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_files_of_every_format_are_read_without_their_labels(tmp_path: Path, ending: str) -> None:
    table = datasets.Dataset.from_dict({"text": ["a film", "7"], "label": [None, "x"], "number": [1, 2]})
    write(table, tmp_path / f"rows.{ending}")
    asked = read_asked(str(tmp_path / f"rows.{ending}"), TEXTS)
    assert asked.table["text"][:] == ["a film", "7"]
    assert asked.table.column_names == ["text", "__class__"] or len(asked.table.column_names) == 2
    assert any("'label'" in note for note in asked.notes)


def test_files_are_read_as_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("first;second\nä, b;c\n".encode("cp1252"))
    data = DataSettings(path="", separator=";", encoding="cp1252", partition=PartitionSettings(kind="iid", clients=1))
    assert read_asked(str(tmp_path / "rows.csv"), PAIRS, data).table["first"][:] == ["ä, b"]


def test_a_split_is_chosen(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text\nof {split}\n")
    assert read_asked(str(tmp_path), TEXTS).table["text"][:] == ["of train"]
    assert read_asked(str(tmp_path), TEXTS, split="test").table["text"][:] == ["of test"]


def test_lines_are_texts_or_objects() -> None:
    plain = asked_of_lines(["a film\n", "\n", '{"broken\n'], TEXTS)
    assert plain.table["text"][:] == ["a film", '{"broken']
    assert plain.place(1) == "standard input, line 3"
    lines = ['{"question": "what", "hint": 3}', '{"hint": 4, "question": "who", "answer": 1}']
    objects = asked_of_lines(lines, PROMPTS)
    assert objects.table["question"][:] == ["what", "who"]
    assert objects.table["hint"][:] == [3, 4]
    assert asked_of_lines(["the boy  ran"], WORDS).table["words"][:] == [["the", "boy", "ran"]]
    listed = asked_of_lines(['{"text": "a", "choices": ["x", "y"]}'], CHOICES)
    assert listed.table["choices"][:] == [["x", "y"]]


def test_words_in_a_csv_are_split_at_blanks(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("words\nthe boy ran\nso\n")
    assert read_asked(str(tmp_path / "rows.csv"), WORDS).table["words"][:] == [["the", "boy", "ran"], ["so"]]


def test_python_gives_rows_of_many_shapes() -> None:
    for given in ("a film", ["a film"], {"text": "a film"}, [{"text": "a film", "label": 1}],
                  datasets.Dataset.from_dict({"text": ["a film"], "other": [1]})):  # fmt: skip
        assert asked_of_objects(given, TEXTS).table["text"][:] == ["a film"]
    assert asked_of_objects(datasets.Dataset.from_dict({"text": [7]}), TEXTS).table["text"][:] == ["7"]
    assert asked_of_objects([{"text": 7}, {"text": "8"}], TEXTS).table["text"][:] == ["7", "8"]


def test_pictures_come_as_files_folders_paths_and_opened(tmp_path: Path) -> None:
    image = picture(np.random.default_rng(0), 1, (1.0, 0.5, 0.2))
    (tmp_path / "some" / "circle").mkdir(parents=True)
    for place in (tmp_path / "one.png", tmp_path / "some" / "circle" / "0.png"):
        image.save(place)
    ways = [
        read_asked(str(tmp_path / "one.png"), PICTURES),
        read_asked(str(tmp_path / "some"), PICTURES),
        asked_of_lines([f"{tmp_path / 'one.png'}\n"], PICTURES),
        asked_of_objects(image, PICTURES),
        asked_of_objects([{"image": image}], PICTURES),
    ]
    for asked in ways:
        (found,) = asked.table["image"][:]
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ('{"text": "a"}\n{"text": null}\n', TEXTS, r"'text' is empty in 1 row \(rows.jsonl, line 2\); fill them in"),
        ('{"text": "a"}\n\n{"txt": "b"}\n', TEXTS, r"'text' is empty in 1 row \(rows.jsonl, line 3\)"),
        ('{"txt": "a"}\n', TEXTS, r"(?s)1 column is missing.*'text': did you mean 'txt'"),
        ('{"first": "a"}\n', PAIRS, r"(?s)1 column is missing.*'second'"),
        ("", TEXTS, "is empty; it needs a header and rows"),
        ("nonsense\n", TEXTS, "rows.jsonl"),
    ],
)
def test_files_that_do_not_fit_are_told(tmp_path: Path, content: str, task: Any, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_asked(str(tmp_path / "rows.jsonl"), task)


@pytest.mark.parametrize(
    ("lines", "task", "message"),
    [
        ([], TEXTS, "nothing came from standard input"),
        (["\n", "  \n"], TEXTS, "nothing came from standard input"),
        (["a text"], PAIRS, r'line 1 is no JSON object.*"first": "\.\.\.", "second"'),
        (['{"first": "a"}', '{"first": "a", "second": "b"}'], PAIRS, r"'second' is empty in 1 row \(standard inp"),
        (['{"text": {"a": 1}}'], TEXTS, "standard input, line 1: column 'text' holds a table"),
        (['{"words": 3}'], PAIRS, "2 columns are missing"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit_are_told(lines: list[str], task: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        asked_of_lines(lines, task)


def test_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"no file or folder .*rows.cvs; in .* there is rows.csv"):
        read_asked(str(tmp_path / "rows.cvs"), TEXTS)
