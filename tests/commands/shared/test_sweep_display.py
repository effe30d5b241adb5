"""What a sweep shows while it goes on: a line for all runs, one for each, and no more than is known."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedsa.commands.shared.sweep_display import SweepDisplay, pace_of


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (None, (0, "beginning")),
        ("{", (0, "beginning")),
        ({"round": -1, "wall_seconds": 0.0}, (0, "before the first round")),
        ({"round": 0, "wall_seconds": 3.0}, (0, "before the first round")),
        ({"round": 4, "wall_seconds": 10.0}, (4, "2.5 s a round, left 0:00:15")),
        ({"round": 10, "wall_seconds": 25.0}, (10, "testing")),
    ],
)
def test_a_runs_pace_is_told_by_its_commit_point(tmp_path: Path, state: Any, told: tuple[int, str]) -> None:
    if state is not None:
        (tmp_path / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    assert pace_of(tmp_path, 10) == told


class Grid:
    """Two runs of ten rounds, of which none is missing."""

    groups: tuple[()] = ()

    def recipe(self, cell: str) -> Any:
        return SimpleNamespace(rounds=10)


def shown(terminal: bool, tmp_path: Path) -> str:
    written, now = io.StringIO(), [0.0]
    console = Console(file=written, force_terminal=terminal, width=100, highlight=False, _environ={})
    display = SweepDisplay(Grid(), console, 2, clock=lambda: now[0])  # type: ignore[arg-type]
    (tmp_path / "state.json").write_text(json.dumps({"round": 4, "wall_seconds": 10.0}))
    children: list[Any] = [SimpleNamespace(cell="fedsa, seed 0", started=0.0, folder=tmp_path)]
    display.show({}, children, [])
    display._bar.refresh()
    now[0] = 60.0
    result: Any = SimpleNamespace(
        summary={"metric": "accuracy", "rounds": 10, "wall_seconds": 25.2}, score=0.5, failure=""
    )
    display.show({"fedsa, seed 0": result}, [], ["fedit, seed 0"])  # type: ignore[dict-item, list-item]
    display._bar.refresh()
    display.close()
    return written.getvalue()


def test_a_terminal_has_a_line_for_each_run(tmp_path: Path) -> None:
    text = shown(True, tmp_path)
    assert "all runs" in text
    assert "4/10" in text
    assert "2.5 s a round, left 0:00:15" in text
    assert "fedsa, seed 0: validation accuracy 50.0, 10 rounds, 25 s" in text
    assert "2.5 s a round" not in text[text.rindex("all runs") :]  # its line is gone


def test_a_log_has_plain_lines_only(tmp_path: Path) -> None:
    assert shown(False, tmp_path).splitlines() == [
        "fedit, seed 0: another process works on it (a sweep's, or a run's); waiting until it ends",
        "fedsa, seed 0: validation accuracy 50.0, 10 rounds, 25 s",
    ]
