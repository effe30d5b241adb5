"""What `fedsa predict` prints and writes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsa

CLIENTS = ["site 0", "site 1", "site 2"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    path.write_text("text\nthe film was great\na dull product\n")
    return path


def test_json_is_an_object_a_row(finished_run: Path, rows: Path, fedsa_command: Callable[..., Any]) -> None:
    outcome = fedsa_command("predict", finished_run, rows, "--client", "site 1", "--json")
    assert outcome.code == 0
    said = [json.loads(line) for line in outcome.out.splitlines()]
    wanted = fedsa.predict(finished_run, rows, client="site 1")
    assert said == [each.as_dict() for each in wanted]
    assert [{*each} for each in said] == [{"client", "row", "prediction", "probabilities"}] * 2
    assert sum(said[0]["probabilities"].values()) == pytest.approx(1)


def test_standard_input_has_a_text_a_line(
    finished_run: Path, fedsa_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the film was great\n\na dull product\n"))
    outcome = fedsa_command("predict", finished_run, "--client", "all", "--json")
    told = [(each["row"], each["client"]) for each in map(json.loads, outcome.out.splitlines())]
    assert told == [(row, client) for row in range(2) for client in CLIENTS]


def test_people_see_a_table(finished_run: Path, rows: Path, fedsa_command: Callable[..., Any]) -> None:
    outcome = fedsa_command("predict", finished_run, rows, "--client", "site 0", "--client", "site 2")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["row", "text", "client", "prediction", "probability"]
    assert [("the film was great" in line, "site 0" in line, "site 2" in line) for line in lines[1:5]] == [
        (True, True, False), (False, False, True), (False, True, False), (False, False, True)
    ]  # fmt: skip
    assert "a dull product" in lines[3]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_is_written_by_its_ending(
    finished_run: Path, rows: Path, tmp_path: Path, fedsa_command: Callable[..., Any], ending: str
) -> None:
    out = tmp_path / f"said.{ending}"
    assert fedsa_command("predict", finished_run, rows, "--client", "all", "--to", out).code == 0
    wanted = [each.as_dict() for each in fedsa.predict(finished_run, rows, client="all")]
    if ending == "jsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == wanted
        return
    with out.open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [(each["client"], int(each["row"]), each["prediction"]) for each in told] == [
        (each["client"], each["row"], each["prediction"]) for each in wanted
    ]
    assert float(told[0]["probability of good"]) == pytest.approx(wanted[0]["probabilities"]["good"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{rows}"], "give --client ID, or --client all"),
        (["{rows}", "--client", "site 9"], "did you mean 'site"),
        (["{rows}", "--client", "all", "--to", "said.txt"], "must end in .jsonl or .csv"),
        (["{rows}", "--client", "all", "--to", "{rows}"], "is the file of the rows"),
        (["{rows}", "--client", "all", "--round", "best"], "must be chosen or final"),
        (["no.csv", "--client", "all"], "no file or folder no.csv"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    finished_run: Path, rows: Path, fedsa_command: Callable[..., Any], arguments: list[str], message: str
) -> None:
    outcome = fedsa_command("predict", finished_run, *[each.format(rows=rows) for each in arguments])
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
