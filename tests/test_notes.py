"""Notes on the data: sentences that a user should know are said wherever the data is looked at or used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import fedsa.data.sharing

NOTES = ("the column 'age' of <west.csv> is not read", "2 rows [bold] stand there twice")


@pytest.fixture(autouse=True)
def _rows_with_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    load = fedsa.data.sharing.load_rows
    monkeypatch.setattr(
        fedsa.data.sharing, "load_rows", lambda *given, **named: replace(load(*given, **named), notes=NOTES)
    )


def test_fedsa_data_tells_them_and_its_json_stays_as_it_is(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., object]
) -> None:
    shown = fedsa_command("data", recipe_file())
    assert [line for line in shown.out.splitlines() if line.startswith("note: ")][:2] == [f"note: {n}" for n in NOTES]
    as_json = fedsa_command("data", recipe_file(), "--json")
    assert set(json.loads(as_json.out)) == {"site 0", "site 1", "site 2"}
    assert all(f"note: {note}" in as_json.err.splitlines() for note in NOTES)


def test_a_run_tells_them_before_the_first_round_and_keeps_them(
    recipe_file: Callable[..., Path], fedsa_command: Callable[..., object], tmp_path: Path
) -> None:
    out = fedsa_command("run", recipe_file("rounds=1"), "--out", tmp_path / "run").out
    assert -1 < out.index(f"note: {NOTES[0]}") < out.index(f"note: {NOTES[1]}") < out.index("before training")
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["notes"][:2] == list(NOTES)
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Notes on the data" in report
    assert "<li>the column &#39;age&#39; of &lt;west.csv&gt; is not read</li>" in report
    assert "<li>2 rows [bold] stand there twice</li>" in report
