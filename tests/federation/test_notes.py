"""Notes on the data: sentences that a user should know are said wherever the data is looked at or used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedsa.data.rows

pytestmark = pytest.mark.run

NOTES = ("the column 'age' of <west.csv> is not read", "2 rows [bold] stand there twice")


@pytest.fixture
def rows_with_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    load = fedsa.data.rows.load_rows
    monkeypatch.setattr(
        fedsa.data.rows, "load_rows", lambda *given, **named: replace(load(*given, **named), notes=NOTES)
    )


@pytest.mark.usefixtures("rows_with_notes")
def test_fedsa_data_tells_them_and_its_json_stays_as_it_is(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any]
) -> None:
    shown = fedsa_command("data", recipe_file())
    assert [line for line in shown.out.splitlines() if line.startswith("note: ")][:2] == [f"note: {n}" for n in NOTES]
    as_json = fedsa_command("data", recipe_file(), "--json")
    assert set(json.loads(as_json.out)) == {"site 0", "site 1", "site 2"}
    assert all(f"note: {note}" in as_json.err.splitlines() for note in NOTES)


@pytest.mark.usefixtures("rows_with_notes")
def test_a_run_tells_them_before_the_first_round_and_keeps_them(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any], tmp_path: Path
) -> None:
    out = fedsa_command("run", recipe_file("rounds=1"), "--out", tmp_path / "run").out
    assert -1 < out.index(f"note: {NOTES[0]}") < out.index(f"note: {NOTES[1]}") < out.index("before training")
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["notes"][:2] == list(NOTES)
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Notes on the data" in report
    assert "<li>the column &#39;age&#39; of &lt;west.csv&gt; is not read</li>" in report
    assert "<li>2 rows [bold] stand there twice</li>" in report


def test_what_is_cut_is_said_before_and_in_a_run_and_in_its_report(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = recipe_file("rounds=1", "task.max_length=6")
    shown = fedsa_command("data", recipe).out
    (note,) = (line for line in shown.splitlines() if line.startswith("note: ") and "longer" in line)
    assert re.fullmatch(
        r"note: 1[0-9]{2} of 180 rows are longer than 6 tokens \(longest 15\): what is beyond is not read; raise "
        r"task\.max_length \(the model takes 32\) to keep more\.",
        note,
    )
    out = fedsa_command("run", recipe, "--out", tmp_path / "run").out
    assert -1 < out.index(note) < out.index("before training")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert note.removeprefix("note: ") in summary["notes"]
    assert note.removeprefix("note: ") in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_fedsa_data_goes_on_without_a_tokenizer(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    for path in (tmp_path / "bare", "nobody/there"):
        shown = fedsa_command("data", recipe_file(f"model.path={path}"))
        assert shown.code == 0
        assert "note: It is not known how long the rows are, for the model's tokenizer cannot be had: " in shown.out
        assert "3 clients, 180 rows" in shown.out


def test_fedsa_data_refuses_rows_that_a_run_refuses(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{"text": f"zzz{n} zzzz", "label": n % 2, "site": f"site {n % 3}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    shown = fedsa_command("data", recipe_file(f"data.path={tmp_path / 'rows.jsonl'}"))
    assert shown.code == 2
    assert "60 of 60 rows hold (nearly) nothing but tokens that the model's tokenizer does not know" in shown.error


def test_a_token_that_the_model_has_no_vector_for_is_refused_before_training(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["biopic"])
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["the film was great today", "a dull product we saw"]
    rows = [{"text": f"{words[n % 2]} {'it ' * (n // 6)}", "label": n % 2, "site": f"site {n % 3}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = recipe_file(
        "rounds=1", "task.max_length=30", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"
    )
    assert fedsa_command("run", recipe, "--out", tmp_path / "fine").code == 0  # a token more that no row has
    rows[7]["text"] = "a lovely biopic"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for arguments in (["run", recipe, "--out", tmp_path / "run"], ["data", recipe]):
        refused = fedsa_command(*arguments)
        assert refused.code == 2
        assert (
            "the tokenizer has 24 tokens and the model vectors for 23; the rows have token 23 ('biopic')"
            in refused.error
        )
    assert not (tmp_path / "run").exists()
