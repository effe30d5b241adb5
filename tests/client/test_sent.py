"""What has left a site is kept and listed before it goes; a repeated message gets the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

from fedsa.client.answers import Answers
from fedsa.client.sent import SENT_LIST, SentAnswers, sent_messages
from fedsa.errors import RunFolderError, UserError
from fedsa.messages import Message, decode, encode
from fedsa.types import Key

KEY = Key.parse("layer:A:default")


def answer_of(round: int, value: float = 2.0) -> tuple[Message, bytes]:
    about = {"updates": {"c": {"num_examples": 3, "metrics": {"loss": 0.5}}}}
    message = Message("update", "a-run", round, about, {"c": {KEY: torch.full((2, 2), value)}})
    return message, encode(message)


def test_an_answer_is_found_by_its_request_and_stands_in_the_list(tmp_path: Path) -> None:
    message, answer = answer_of(3)
    SentAnswers(tmp_path, "north").keep(b"please", message, answer)
    again = SentAnswers(tmp_path, "north")
    assert again.find(b"please") == answer
    assert again.find(b"something else") is None
    first, second = sent_messages(tmp_path)
    assert (first["site"], first["round"], first["kind"], first["bytes"]) == ("north", 3, "update", len(answer))
    assert first["tensors"] == [
        {"client": "c", "name": str(KEY), "shape": [2, 2], "dtype": "float32", "bytes": 16, "norm": 4.0}
    ]
    assert first["about"] == message.about, "numbers leave a site too"
    assert (second["kind"], second["request"]) == ("again", first["request"])


def test_the_oldest_answers_go_and_the_list_stays(tmp_path: Path) -> None:
    sent = SentAnswers(tmp_path, "north")
    for round in range(1, 8):
        sent.keep(b"round %d" % round, *answer_of(round))
    assert [sent.find(b"round %d" % round) is not None for round in range(1, 8)] == [False] * 3 + [True] * 4
    assert [entry["round"] for entry in sent_messages(tmp_path) if entry["kind"] != "again"] == list(range(1, 8))


def test_a_damaged_answer_is_not_sent(tmp_path: Path) -> None:
    sent = SentAnswers(tmp_path, "north")
    sent.keep(b"please", *answer_of(1))
    (path,) = (tmp_path / "answers").iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert sent.find(b"please") is None


def test_a_line_that_a_crash_cut_is_no_message_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    SentAnswers(tmp_path, "north").keep(b"please", *answer_of(1))
    with (tmp_path / SENT_LIST).open("a") as file:
        file.write('{"site": "nor')
    assert [entry["round"] for entry in sent_messages(tmp_path)] == [1]
    SentAnswers(tmp_path, "north").keep(b"more", *answer_of(2))
    assert [entry["round"] for entry in sent_messages(tmp_path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    SentAnswers(tmp_path, "north").keep(b"please", *answer_of(1))
    path = tmp_path / SENT_LIST
    path.write_text("[1]\n" + path.read_text())
    with pytest.raises(RunFolderError, match=r"sent\.jsonl, line 1, is damaged"):
        list(sent_messages(tmp_path))
    with pytest.raises(RunFolderError, match="give the folder of a site that has taken part"):
        list(sent_messages(tmp_path / "elsewhere"))


def test_what_is_not_finite_is_listed_without_a_norm(tmp_path: Path) -> None:
    SentAnswers(tmp_path, "north").keep(b"please", *answer_of(1, float("inf")))
    assert json.loads((tmp_path / SENT_LIST).read_text())["tensors"][0]["norm"] is None


class NoSite:
    """A site that is never asked for anything."""

    rows: ClassVar[dict[str, object]] = {}


def test_a_refusal_is_in_the_list_too(tmp_path: Path) -> None:
    answers = Answers(cast(Any, NoSite()), "a-run", "agreed", SentAnswers(tmp_path, "north"))
    refusal = decode(answers.handle(encode(Message("setup", "a-run", 0, {"fingerprint": "other"}))))
    assert refusal.kind == "refuse"
    (entry,) = sent_messages(tmp_path)
    assert (entry["kind"], entry["about"], entry["request"]) == ("refuse", refusal.about, None)


def test_an_answer_that_cannot_be_listed_is_not_kept(tmp_path: Path) -> None:
    """The message comes again, and would be answered with it."""
    sent = SentAnswers(tmp_path, "north")
    (tmp_path / SENT_LIST).mkdir()
    with pytest.raises(UserError, match=r"sent\.jsonl"):
        sent.keep(b"please", *answer_of(1))
    (tmp_path / SENT_LIST).rmdir()
    assert sent.find(b"please") is None


def test_nothing_leaves_that_cannot_be_listed(tmp_path: Path) -> None:
    answers = Answers(cast(Any, NoSite()), "a-run", "agreed", SentAnswers(tmp_path, "north"))
    (tmp_path / SENT_LIST).mkdir()
    refusal = decode(answers.handle(b"nonsense"))
    assert refusal.about == {"why": "the site cannot write to its disk"}


def test_every_flipped_bit_in_the_list_is_told(tmp_path: Path) -> None:
    """In the last line and its end too: a line that was changed is none that a crash cut."""
    path, sent = tmp_path / SENT_LIST, SentAnswers(tmp_path, "north")
    for number in (1, 2):
        sent.keep(b"please %d" % number, *answer_of(number))
    content = path.read_bytes()
    for place in [*range(0, len(content), 11), *range(len(content) - 90, len(content))]:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(RunFolderError, match=r"sent\.jsonl, line \d, is damaged"):
            list(sent_messages(tmp_path))


def test_a_line_that_is_lacking_is_told(tmp_path: Path) -> None:
    path, sent = tmp_path / SENT_LIST, SentAnswers(tmp_path, "north")
    for number in (1, 2, 3):
        sent.keep(b"please %d" % number, *answer_of(number))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(RunFolderError, match=r"sent\.jsonl, line 2, is damaged, or the line before it is lacking"):
        list(sent_messages(tmp_path))


def test_a_list_of_before_there_were_hashes_is_read_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / SENT_LIST
    SentAnswers(tmp_path, "north").keep(b"please", *answer_of(1))
    entry = json.loads(path.read_bytes())
    del entry["sha256"]
    path.write_text(json.dumps(entry) + "\n")
    SentAnswers(tmp_path, "north").keep(b"more", *answer_of(2))
    assert [entry["round"] for entry in sent_messages(tmp_path)] == [1, 2]
    assert "sha256" not in next(sent_messages(tmp_path))
