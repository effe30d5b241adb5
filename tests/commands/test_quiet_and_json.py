"""What every verb has for scripts: `--quiet` and `--json`, and what they leave out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from fedsa.cli import app

UNTIL_STOPPED = {"deploy site"}
"""They come to no result: they go on until they are stopped."""
PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def options_of_verbs() -> dict[str, set[str]]:
    def walk(command: Any, name: str) -> dict[str, set[str]]:
        if hasattr(command, "commands"):
            return {
                k: v for key, each in command.commands.items() for k, v in walk(each, f"{name} {key}".strip()).items()
            }
        return {name: {option for each in command.params for option in each.opts}}

    return walk(typer.main.get_command(app), "")


def test_every_verb_can_be_quiet_and_print_json() -> None:
    verbs = options_of_verbs()
    assert {"run", "report", "deploy init", "sweep"} <= {*verbs}
    assert {verb for verb, options in verbs.items() if "--quiet" not in options} == set()
    assert {verb for verb, options in verbs.items() if "--json" not in options} == UNTIL_STOPPED


def test_the_shape_of_every_verbs_json_is_described() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("\n## JSON\n")[2].partition("\n## ")[0]
    told = {
        verb
        for row in re.findall(r"^\|(.*?)\|", table, re.MULTILINE)
        for verb in re.findall(r"`fedsa ([a-z ]+?)[ `]*(?:[A-Z].*?)?`", row.replace(" --json", ""))
    }
    missing = {verb for verb in options_of_verbs() if verb not in told} - UNTIL_STOPPED
    assert missing == set()


@pytest.mark.run
def test_a_quiet_run_prints_where_it_is_and_a_quiet_mistake_its_error(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, run = recipe_file("rounds=1"), tmp_path / "run"
    done = fedsa_command("run", recipe, "--quiet", "--out", run)
    assert (done.code, done.out, done.err) == (0, f"{run}\n", "")
    done = fedsa_command("resume", run, "-q")
    assert (done.code, done.out, done.err) == (0, f"{run}\n", "")
    done = fedsa_command("run", recipe, "-q", "--out", run)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"error: .*run.*\n", done.err)
    told = fedsa_command("resume", run)
    assert "is complete" in told.out  # the next command tells again what it does
    exported = json.loads(fedsa_command("export", run, "--all", "--to", tmp_path / "out", "--json", "-q").out)
    assert exported == {
        "run": str(run),
        "round": "chosen",
        "merged": False,
        "folders": [str(tmp_path / "out" / f"0000{number}-site {number}") for number in range(3)],
    }
    for kept in (run, tmp_path / "out"):
        shutil.rmtree(kept)
    assert json.loads(fedsa_command("sweep", "--list", "--json").out)[0].keys() == {"name", "description"}
