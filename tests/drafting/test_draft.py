"""A recipe from nothing but rows: the task, the clients and the splits that a reader of the rows would choose."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsa.drafting.columns import looked_at
from fedsa.drafting.draft import draft_recipe
from fedsa.errors import DataError
from fedsa.recipe import parse_recipe

THINGS = ("lamp", "coat", "ticket", "printer", "bread")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reviews(count: int, **more: Callable[[int], object]) -> list[dict[str, object]]:
    """Rows with a text, a class, and whatever else a number gives."""
    return [
        {
            "text": f"the {THINGS[number % 5]} that I bought was number {number} of many",
            "label": "good" if number % 3 else "bad",
            **{name: make(number) for name, make in more.items()},
        }
        for number in range(count)
    ]


def test_a_folder_with_a_file_for_each_site(tmp_path: Path) -> None:
    for site in ("north", "south", "west"):
        write_csv(tmp_path / "sites" / f"{site}.csv", reviews(30, id=int))
    draft = draft_recipe(str(tmp_path / "sites"))
    assert draft.recipe.data.partition.kind == "files"
    assert (draft.rows, draft.clients) == (90, 3)
    assert draft.recipe.task.text_columns == ["text"]  # type: ignore[union-attr]
    assert draft.recipe.task.class_names == ["bad", "good"]
    assert parse_recipe(tomllib.loads(draft.text)) == draft.recipe, "the text is the recipe that was tried"


@pytest.mark.parametrize("column", ["site", "hospital", "client_id", "Bank"])
def test_a_column_that_names_the_client(tmp_path: Path, column: str) -> None:
    rows = reviews(90, **{column: lambda number: f"place {number % 3}"})
    draft = draft_recipe(str(write_csv(tmp_path / "rows.csv", rows)))
    assert draft.recipe.data.partition.kind == "column"
    assert draft.recipe.data.partition.column == column
    assert draft.clients == 3


def test_small_clients_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    rows = reviews(63, site=lambda number: "small" if number < 3 else f"place {number % 2}")
    draft = draft_recipe(str(write_csv(tmp_path / "rows.csv", rows)))
    assert draft.clients == 2
    assert draft.recipe.data.partition.leave_out_small
    assert any("fewer than 10 rows" in sentence for sentence in draft.found)


def test_without_clients_the_rows_are_dealt_out_and_it_is_called_a_simulation(tmp_path: Path) -> None:
    draft = draft_recipe(str(write_csv(tmp_path / "rows.csv", reviews(400))))
    assert draft.recipe.data.partition.kind == "dirichlet"
    assert draft.clients == 8
    assert any("simulation" in sentence for sentence in draft.found)
    assert "a simulation" in draft.text


def test_rows_of_one_patient_stay_together(tmp_path: Path) -> None:
    rows = reviews(120, site=lambda number: f"ward {number % 2}", patient=lambda number: f"p{number // 6}")
    draft = draft_recipe(str(write_csv(tmp_path / "rows.csv", rows)))
    assert draft.recipe.data.partition.group == "patient"
    assert draft.recipe.data.partition.column == "site"


def test_splits_of_a_folder_are_used(tmp_path: Path) -> None:
    for name, count in (("train", 90), ("dev", 30), ("test", 30)):
        write_csv(tmp_path / "set" / f"{name}.csv", reviews(count))
    data = draft_recipe(str(tmp_path / "set")).recipe.data
    assert (data.split, data.validation_split, data.test_split) == ("train", "validation", "test")


def test_a_folder_without_train_is_read_by_what_it_has(tmp_path: Path) -> None:
    write_csv(tmp_path / "set" / "test.csv", reviews(90))
    assert draft_recipe(str(tmp_path / "set")).recipe.data.split == "test"


def numbered(text: str, count: int = 60) -> list[str]:
    return [f"{text} {THINGS[number % 5]} in the shop, number {number}" for number in range(count)]


OTHER_TASKS: dict[str, tuple[list[dict[str, Any]], dict[str, object]]] = {
    "pairs": (
        [
            {"premise": one, "hypothesis": "it is broken now", "label": number % 3}
            for number, one in enumerate(numbered("I saw a"))
        ],
        {"kind": "classification", "text_columns": ["premise", "hypothesis"], "labels": ["0", "1", "2"]},
    ),
    "numbers": (
        [{"text": text, "score": number / 7} for number, text in enumerate(numbered("what about the"))],
        {"kind": "regression", "answer": "score"},
    ),
    "instructions": (
        [
            {"instruction": text, "input": "a short input of words", "output": f"the answer is {text}"}
            for text in numbered("please describe the")
        ],
        {"kind": "chat", "messages": None},
    ),
    "messages": (
        [
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "so it is"}]}
            for text in numbered("what of the")
        ],
        {"kind": "chat", "messages": "messages"},
    ),
    "messages of several kinds": (
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": text}] if number % 2 else text},
                    {"role": "assistant", "content": "so it is"},
                ]
            }
            for number, text in enumerate(numbered("what of the"))
        ],
        {"kind": "chat", "messages": "messages"},
    ),
    "ShareGPT": (
        [
            {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "so it is"}], "topic": "a"}
            for text in numbered("what of the")
        ],
        {"kind": "chat", "messages": "conversations"},
    ),
    "preferences": (
        [{"prompt": text, "chosen": "it is good", "rejected": "it is bad"} for text in numbered("what of the")],
        {"kind": "dpo", "prompt": None},
    ),
    "preferences in whole conversations": (
        [
            {
                name: [{"role": "user", "content": text}, {"role": "assistant", "content": f"it is {name}"}]
                for name in ("chosen", "rejected")
            }
            for text in numbered("what of the")
        ],
        {"kind": "dpo"},
    ),
    "questions": (
        [{"question": text, "answer": f"because of {text}"} for text in numbered("why is the")],
        {"kind": "generation", "prompt": "{question}", "answer": "{answer}"},
    ),
    "tags": (
        [
            {
                "tokens": ["Ann", "saw", "the", "old", "lamp", "in", "Rome", "today"],
                "ner": ["B-PER", *["O"] * 5, "B-LOC", "O"],
            }
            for _ in range(60)
        ],
        {
            "kind": "token_classification",
            "text_columns": ["tokens"],
            "answer": "ner",
            "labels": ["O", "B-LOC", "B-PER"],
        },
    ),
    "spans": (
        [
            {"question": text, "context": "the lamp is red", "answers": {"text": ["red"], "answer_start": [12]}}
            for text in numbered("which colour has the")
        ],
        {"kind": "question_answering", "text_columns": ["question", "context"], "answer": "answers"},
    ),
    "choices": (
        [
            {"question": text, "choices": ["in the kitchen", "on the roof"], "answer": number % 2}
            for number, text in enumerate(numbered("where is the"))
        ],
        {"kind": "multiple_choice", "choices": ["choices"], "answer": "answer"},
    ),
    "texts": ([{"text": text} for text in numbered("once there was a")], {"kind": "language_modeling"}),
}


@pytest.mark.parametrize("name", OTHER_TASKS)
def test_the_task_that_columns_make(tmp_path: Path, name: str) -> None:
    rows, expected = OTHER_TASKS[name]
    draft = draft_recipe(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    own = draft.recipe.task.model_dump()
    assert {key: own[key] for key in expected} == expected
    assert parse_recipe(tomllib.loads(draft.text)) == draft.recipe


def test_pictures_in_folders(tmp_path: Path) -> None:
    pictures = pytest.importorskip("PIL.Image", reason="needs the extra: pip install 'fedsa[vision]'")
    for domain in ("photo", "sketch"):
        for label in ("cat", "dog"):
            place = tmp_path / "pictures" / domain / label
            place.mkdir(parents=True)
            for number in range(12):
                noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                pictures.fromarray(noise).save(place / f"{number}.png")
    draft = draft_recipe(str(tmp_path / "pictures"))
    assert draft.recipe.task.kind == "image_classification"
    assert draft.recipe.task.class_names == ["cat", "dog"]
    assert draft.recipe.data.partition.column == "domain"


def test_what_makes_no_task_is_told_with_what_was_seen(tmp_path: Path) -> None:
    rows = [{"id": number, "when": "2026-01-01"} for number in range(30)]
    with pytest.raises(DataError, match=r"no task can be made of its columns(.|\n)*id: number"):
        draft_recipe(str(write_csv(tmp_path / "rows.csv", rows)))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        draft_recipe(str(tmp_path / "missing.csv"))


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([None, "", None], "empty"),
        (["7", "12", "3.5"], "number"),
        (["1", "0"] * 20, "class"),
        ([f"patient {number}" for number in range(30)], "name"),
        ([{"a": 1}], "other"),
        ([["a", 1]], "other"),
        ([[{"role": "user", "content": "a"}]], "turns"),
        ([[{"from": "human", "value": "a"}]], "turns"),
    ],
)
def test_what_a_column_holds(cells: list[Any], kind: str) -> None:
    assert looked_at("column", cells).kind == kind


def test_the_command_writes_a_recipe_and_overwrites_none(
    fedsa_command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "rows.csv", reviews(90, site=lambda number: f"place {number % 3}"))
    shown = fedsa_command("init", "rows.csv")
    assert shown.code == 0, shown
    assert "a recipe for 90 rows of 3 clients" in shown.out
    assert tomllib.loads((tmp_path / "rows.toml").read_text())["data"]["partition"]["column"] == "site"
    again = fedsa_command("init", "rows.csv")
    assert again.code == 2
    assert "is there already" in again.err
    other = fedsa_command("init", "rows.csv", "--to", "other.toml", "--json")
    assert json.loads(other.out)["clients"] == 3
    assert fedsa_command("data", "other.toml").code == 0
