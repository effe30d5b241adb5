"""Conversations and pairs of answers, in whatever shape a table has them: found by looking, said, and made one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from fedsa.data.asked import asked_of_lines, asked_of_objects, read_asked
from fedsa.data.conversations import common_beginning, turns_of
from fedsa.data.rows import DealtRows, deal_client, deal_rows, deal_tables
from fedsa.errors import DataError
from fedsa.recipe import Recipe, parse_recipe, task_settings

USER, MODEL, SYSTEM = "user", "assistant", "system"


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in said]


def sharegpt(*said: tuple[str, str]) -> list[dict[str, str]]:
    names = {USER: "human", MODEL: "gpt", SYSTEM: "system"}
    return [{"from": names[role], "value": content} for role, content in said]


def recipe(path: Path | str, task: Mapping[str, Any], kind: str = "iid") -> Recipe:
    partition = {"kind": "files"} if kind == "files" else {"kind": "iid", "clients": 2}
    return parse_recipe({
        "rounds": 1, "model": {"path": "a/model"}, "task": task, "data": {"path": str(path), "partition": partition}
    })  # fmt: skip


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(rows: DealtRows, *columns: str, row: int = 3) -> list[Any]:
    cell = rows.table[row]
    return [json.loads(cell[name]) for name in columns]


EXCHANGE = [*turns((USER, "why 3"), (MODEL, "so 3"))]
CONVERSATIONS: dict[str, tuple[dict[str, Any], list[dict[str, str]], str]] = {
    # a row (N is its number), the turns of row 3, what is said
    "messages": (
        {"messages": turns((SYSTEM, "be kind"), (USER, "why N"), (MODEL, "so N"))},
        [*turns((SYSTEM, "be kind")), *EXCHANGE], "column 'messages' (role and content)",
    ),
    "ShareGPT": (
        {"id": "N", "conversations": sharegpt((USER, "why N"), (MODEL, "so N"))}, EXCHANGE,
        "column 'conversations' (from and value, as in ShareGPT)",
    ),
    "ShareGPT with a system's text": (
        {"system": "be kind", "conversations": sharegpt((USER, "why N"), (MODEL, "so N"))},
        [*turns((SYSTEM, "be kind")), *EXCHANGE], "column 'conversations'",
    ),
    "Alpaca": (
        {"instruction": "why N", "input": "", "output": "so N"}, EXCHANGE,
        "columns 'instruction', 'input' and 'output', as in Alpaca",
    ),
    "Alpaca with an input": (
        {"instruction": "why N", "input": "it is", "output": "so N"},
        turns((USER, "why 3\n\nit is"), (MODEL, "so 3")), "as in Alpaca",
    ),
    "Alpaca with a history": (
        {"instruction": "why N", "output": "so N", "history": [["who?", "I"]]},
        [*turns((USER, "who?"), (MODEL, "I")), *EXCHANGE], "columns 'instruction' and 'output', as in Alpaca",
    ),
    "texts": ({"question": "why N", "answer": "so N"}, EXCHANGE, "columns 'question' and 'answer'"),
    "prompt and completion as lists": (
        {"prompt": turns((USER, "why N")), "completion": turns((MODEL, "so N"))}, EXCHANGE,
        "columns 'prompt' and 'completion'",
    ),
    "content in parts": (
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "why "}, {"type": "text", "text": "N"}]},
            {"role": "assistant", "content": "so N", "tool_calls": None},
        ]},
        EXCHANGE, "column 'messages'",
    ),
    "not to be learned": (
        {"messages": [*turns((USER, "a")), {"role": "assistant", "content": "b", "weight": 0},
                      *turns((USER, "why N"), (MODEL, "so N"))]},
        [*turns((USER, "a")), {"role": "assistant", "content": "b", "train": False}, *EXCHANGE], "column 'messages'",
    ),
}  # fmt: skip


def numbered(row: Mapping[str, Any], count: int = 40) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(row).replace("N", str(number))) for number in range(count)]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_found_and_said_in_one_line(tmp_path: Path, name: str) -> None:
    row, expected, said = CONVERSATIONS[name]
    path = write(tmp_path / "rows.jsonl", numbered(row))
    dealt = deal_rows(recipe(path, {"kind": "chat"}))
    assert read(dealt, "messages") == [expected]
    (note,) = [note for note in dealt.notes if "conversations are read from" in note]
    assert note.startswith("rows.jsonl: ")
    assert said in note


@pytest.mark.parametrize("name", ["messages", "ShareGPT", "Alpaca with a history", "prompt and completion as lists"])
def test_other_formats_and_python_give_the_same(tmp_path: Path, name: str) -> None:
    row, expected, _ = CONVERSATIONS[name]
    table = datasets.Dataset.from_list(numbered(row))
    table.to_parquet(tmp_path / "rows.parquet")
    assert read(deal_rows(recipe(tmp_path / "rows.parquet", {"kind": "chat"})), "messages") == [expected]
    dealt = deal_tables({"north": table}, recipe("rows", {"kind": "chat"}))
    assert read(dealt, "messages") == [expected]
    assert any(note.startswith("north: conversations are read from") for note in dealt.notes)


def test_a_list_in_a_cell_of_csv_is_json(tmp_path: Path) -> None:
    cells = [json.dumps(turns((USER, f"why {n}"), (MODEL, f"so {n}"))).replace('"', '""') for n in range(40)]
    (tmp_path / "rows.csv").write_text("messages\n" + "".join(f'"{cell}"\n' for cell in cells), encoding="utf-8")
    assert read(deal_rows(recipe(tmp_path / "rows.csv", {"kind": "chat"})), "messages") == [EXCHANGE]


def test_clients_may_have_different_shapes(tmp_path: Path) -> None:
    for name in ("messages", "ShareGPT", "Alpaca"):
        write(tmp_path / "sites" / f"{name}.jsonl", numbered(CONVERSATIONS[name][0]))
    dealt = deal_rows(recipe(tmp_path / "sites", {"kind": "chat"}, "files"))
    assert len(dealt.partition.clients) == 3
    assert sum("conversations are read from" in note for note in dealt.notes) == 3
    for client, parts in dealt.partition.clients.items():
        (found,) = read(dealt, "messages", row=int(parts.train[0]))
        assert [turn["role"] for turn in found][-2:] == [USER, MODEL], client


def test_a_column_that_is_named_is_taken(tmp_path: Path) -> None:
    rows = [{"messages": turns((USER, "no"), (MODEL, "no")), "talk": row["messages"]}
            for row in numbered(CONVERSATIONS["not to be learned"][0])]  # fmt: skip
    dealt = deal_rows(recipe(write(tmp_path / "rows.jsonl", rows), {"kind": "chat", "messages": "talk"}))
    assert read(dealt, "messages") == [CONVERSATIONS["not to be learned"][1]]
    assert any("not read: 'messages'" in note for note in dealt.notes)


PROMPT = turns((USER, "why 3"))
PAIRS: dict[str, tuple[dict[str, Any], list[dict[str, str]], str]] = {
    "texts": ({"prompt": "why N", "chosen": "so", "rejected": "no"}, PROMPT, "the prompt is 'prompt'"),
    "lists": (
        {"prompt": turns((USER, "why N")), "chosen": turns((MODEL, "so")), "rejected": turns((MODEL, "no"))}, PROMPT,
        "the prompt is 'prompt'",
    ),
    "whole conversations": (
        {"chosen": turns((USER, "why N"), (MODEL, "so")), "rejected": turns((USER, "why N"), (MODEL, "no"))}, PROMPT,
        "the prompt is what both begin with",
    ),
    "whole conversations with a prompt": (
        {"prompt": "other", "chosen": turns((USER, "why N"), (MODEL, "so")),
         "rejected": turns((USER, "why N"), (MODEL, "no"))}, PROMPT, "the prompt is what both begin with",
    ),
    "several turns": (
        {"chosen": turns((USER, "a"), (MODEL, "b"), (USER, "why N"), (MODEL, "so")),
         "rejected": turns((USER, "a"), (MODEL, "b"), (USER, "why N"), (MODEL, "no"))},
        [*turns((USER, "a"), (MODEL, "b")), *PROMPT], "what both begin with",
    ),
    "marks": (
        {"chosen": "\n\nHuman: why N\n\nAssistant: so", "rejected": "\n\nHuman: why N\n\nAssistant: no"}, PROMPT,
        "what both begin with",
    ),
    "one message": (
        {"conversations": sharegpt((USER, "why N")), "chosen": sharegpt((MODEL, "so"))[0],
         "rejected": sharegpt((MODEL, "no"))[0]}, PROMPT, "the prompt is 'conversations'",
    ),
    "a question": (
        {"system": "be kind", "question": "why N", "chosen": "so", "rejected": "no"},
        [*turns((SYSTEM, "be kind")), *PROMPT], "the prompt is 'question'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_answers_are_found_and_said(tmp_path: Path, name: str) -> None:
    row, prompt, said = PAIRS[name]
    dealt = deal_rows(recipe(write(tmp_path / "rows.jsonl", numbered(row)), {"kind": "dpo"}))
    assert read(dealt, "prompt", "chosen", "rejected") == [prompt, turns((MODEL, "so")), turns((MODEL, "no"))]
    assert any(said in note for note in dealt.notes)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such columns": ("chat", {"text": "a", "other": 1}, r"no column holds.*task\.messages.*text, other"),
    "a role": ("chat", {"messages": turns(("boss", "do it"), (MODEL, "yes"))}, "line 3.*role 'boss', which is"),
    "no role": ("chat", {"messages": [{"content": "a"}, *turns((MODEL, "b"))]}, "line 3.*has a turn without a role"),
    "no answer": ("chat", {"messages": turns((USER, "a"))}, "line 3.*no turn of the assistant's.*leave the row out"),
    "nothing to learn": (
        "chat", {"messages": [*turns((USER, "a")), {"role": MODEL, "content": "b", "weight": 0}]},
        "line 3.*column 'messages' has no turn of the assistant's that is to be learned",
    ),
    "no content": ("chat", {"messages": [*turns((USER, "a")), {"role": MODEL}]}, "line 3.*a turn without content"),
    "a picture": (
        "chat", {"messages": [{"role": USER, "content": [{"type": "image"}]}, *turns((MODEL, "b"))]},
        "line 3.*content of the type 'image'; only texts",
    ),
    "a tool": (
        "chat", {"messages": [*turns((USER, "a")), {"role": MODEL, "content": "", "tool_calls": [{"name": "f"}]}]},
        "line 3.*calls tools",
    ),
    "an empty cell": ("chat", {"messages": None}, "'messages' is empty in 1 row.*line 3"),
    "an answer that is empty": (
        "dpo", {"prompt": "a", "chosen": "b", "rejected": None}, "column 'rejected' is empty in 1 row.*line 3",
    ),
    "an answer that is empty, with the prompt": (
        "dpo", {"chosen": turns((USER, "a"), (MODEL, "b")), "rejected": None}, "column 'rejected' is empty in 1 row",
    ),
    "a prompt that is empty": (
        "dpo", {"prompt": None, "chosen": "b", "rejected": "c"}, "column 'prompt' is empty in 1 row.*line 3",
    ),
    "the other answer": (
        "dpo", {"prompt": "a", "chosen": turns((MODEL, "b")), "rejected": [{"role": "boss", "content": "c"}]},
        "line 3.*column 'rejected' has a turn of the role 'boss'",
    ),
    "nothing to learn of the other answer": (
        "dpo", {"prompt": "a", "chosen": "b", "rejected": [{"role": MODEL, "content": "c", "train": False}]},
        "line 3.*column 'rejected' has no turn of the assistant's that is to be learned",
    ),
    "no prompt": ("dpo", {"chosen": "a", "rejected": "b"}, r"no column says what 'chosen' and 'rejected' answer"),
    "one answer": ("dpo", {"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
    "nothing in common": (
        "dpo", {"chosen": turns((USER, "a"), (MODEL, "b")), "rejected": turns((USER, "c"), (MODEL, "d"))},
        "line 3.*no beginning in common",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_told_with_its_place(tmp_path: Path, name: str) -> None:
    kind, row, message = BAD[name]
    good = {"chat": CONVERSATIONS["messages"][0], "dpo": PAIRS["whole conversations"][0]}[kind]
    if kind == "dpo" and "prompt" in row:
        good = {"prompt": "why N", "chosen": turns((MODEL, "so N")), "rejected": turns((MODEL, "no N"))}
    rows: list[Mapping[str, Any]] = numbered(good)
    if "no such" in name or name in ("no prompt", "one answer"):
        rows = [row] * 40
    else:
        rows[2] = row
    with pytest.raises(DataError, match=f"(?s){message}"):
        deal_rows(recipe(write(tmp_path / "rows.jsonl", rows), {"kind": kind}))


def test_an_empty_conversation_may_be_left_out(tmp_path: Path) -> None:
    rows = [{"messages": None}, {"messages": []}, *numbered(CONVERSATIONS["messages"][0])]
    given = recipe(write(tmp_path / "rows.jsonl", rows), {"kind": "chat"}).model_dump()
    dealt = deal_rows(parse_recipe({**given, "data": {**given["data"], "drop_empty": True}}))
    assert len(dealt.table) == 40
    assert any("2 of 42 train rows have an empty cell and are left out" in note for note in dealt.notes)


ASKED = turns((USER, "why 3"))


def test_rows_that_are_asked_end_where_the_answer_begins(tmp_path: Path) -> None:
    task = task_settings({"kind": "chat"})
    for given in (
        "why 3",
        ASKED,
        [*ASKED, *turns((MODEL, "so"))],
        {"messages": ASKED},
        {"conversations": sharegpt((USER, "why 3"), (MODEL, "so"))},
        {"instruction": "why 3"},
        {"question": "why 3", "answer": "so"},
        datasets.Dataset.from_dict({"messages": [ASKED]}),
    ):
        asked = asked_of_objects(given, task)  # type: ignore[arg-type]
        assert [json.loads(cell) for cell in asked.table["messages"]] == [ASKED], given
    lines = ["why 3", json.dumps({"messages": ASKED})]
    for line in lines:
        assert json.loads(asked_of_lines([line], task).table["messages"][0]) == ASKED
    file = write(tmp_path / "rows.jsonl", [{"messages": [*ASKED, *turns((MODEL, "so"))]}, {"messages": ASKED}])
    assert [json.loads(cell) for cell in read_asked(str(file), task).table["messages"]] == [ASKED, ASKED]
    with pytest.raises(DataError, match="no turn of the user's"):
        asked_of_objects({"messages": turns((MODEL, "so"))}, task)


def test_pairs_that_are_asked() -> None:
    task = task_settings({"kind": "dpo"})
    asked = asked_of_objects({"prompt": "why", "chosen": "so", "rejected": "no"}, task)
    assert json.loads(asked.table["rejected"][0]) == turns((MODEL, "no"))
    with pytest.raises(DataError, match="no column 'rejected'"):
        asked_of_objects({"prompt": "why", "chosen": "so"}, task)


def test_a_beginning_in_common_leaves_the_last_turns() -> None:
    one = turns((USER, "a"), (MODEL, "b"))
    assert common_beginning(one, one) == one[:1]
    assert common_beginning(one, turns((USER, "c"), (MODEL, "b"))) == []
    assert turns_of('[1, "a list in a text"]', role=USER) == turns((USER, '[1, "a list in a text"]'))


def test_a_client_of_its_own_may_have_another_shape_than_the_federation(tmp_path: Path) -> None:
    """As a site of a deployment has its rows, and as a client that joins later."""
    federation = recipe(tmp_path, {"kind": "chat"}, "files")
    file = write(tmp_path / "new.jsonl", numbered(CONVERSATIONS["Alpaca"][0]))
    dealt, _ = deal_client("new", str(file), federation, ["none"], newcomer=False)
    assert set(dealt.partition.clients) == {"new"}
    assert read(dealt, "messages") == [EXCHANGE]


def test_a_folder_of_clients_may_stand_in_fedsa_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for client in ("north", "south"):
        write(tmp_path / "data" / "my_talks" / f"{client}.jsonl", numbered(CONVERSATIONS["messages"][0]))
    monkeypatch.setenv("FEDSA_DATA", str(tmp_path / "data"))
    dealt = deal_rows(recipe("my-talks", {"kind": "chat"}, "files"))
    assert set(dealt.partition.clients) == {"north", "south"}


@pytest.mark.parametrize("name", ["messages", "ShareGPT"])
def test_equal_conversations_may_be_kept_in_one_split(tmp_path: Path, name: str) -> None:
    rows = numbered(CONVERSATIONS[name][0], 20) * 2
    given = recipe(write(tmp_path / "rows.jsonl", rows), {"kind": "chat"}).model_dump()
    notes = deal_rows(parse_recipe(given)).notes
    assert any("data.partition.group = 'messages'" in note for note in notes)
    given["data"]["partition"]["group"] = "messages"
    dealt = deal_rows(parse_recipe(given))
    for parts in dealt.partition.clients.values():
        train, test = ({dealt.table[int(row)]["messages"] for row in part} for part in (parts.train, parts.test))
        assert not train & test
