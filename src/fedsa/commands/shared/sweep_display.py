"""What `fedsa sweep` shows while it goes on: all runs, each that runs now, and a line for each that has ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fedsa.texts.words import counted

if TYPE_CHECKING:
    from fedsa.sweep.grid import Cell, Grid
    from fedsa.sweep.running import Child, Result

__all__ = ["SweepDisplay", "pace_of"]


@final
class SweepDisplay:
    """In a terminal a line for all runs, and one for each that runs, with its pace and the time that is left.

    Args:
        grid: the runs.
        console: where to.
        jobs: runs that go at the same time.
        clock: seconds that only rise.
    """

    def __init__(self, grid: Grid, console: Console, jobs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._grid, self._console, self._jobs, self._clock = grid, console, jobs, clock
        self._started: dict[Cell, float] = {}
        self._seconds: list[float] = []  # of runs that ended while we looked on
        self._known: set[Cell] = set()
        self._waited: set[Cell] = set()
        self._looked = float("-inf")
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bar.add_task("all runs", total=1, told="")
        self._rows: dict[Cell, TaskID] = {}
        self._rounds: dict[Cell, int] = {}

    def show(self, results: Mapping[Cell, Result], children: Sequence[Child], waiting: Sequence[Cell]) -> None:
        """Show where the sweep is."""
        for cell in [cell for cell in waiting if cell not in self._waited]:
            self._waited.add(cell)
            self._console.print(f"{cell}: another process works on it (a sweep's, or a run's); waiting until it ends")
        ended = [cell for cell in results if cell not in self._known]
        for cell in ended:
            self._known.add(cell)
            began = self._started.get(cell)
            if began is not None:
                self._seconds.append(self._clock() - began)
            earlier = "" if began is not None else " (from an earlier run)"
            self._console.print(f"{cell}: {_outcome(results[cell])}{earlier}")
        self._started |= {child.cell: child.started for child in children}
        if not ended and self._clock() - self._looked < 1:
            return
        self._looked = self._clock()
        left = _left(self._grid, results)
        told = ""
        if self._seconds and left:
            minutes = sum(self._seconds) / len(self._seconds) * left / self._jobs / 60
            told = f"about {minutes:.0f} min left"
        if children:
            self._bar.start()
        self._bar.update(self._all, total=len(results) + left, completed=len(results), told=told)
        self._show_runs(children)

    def _show_runs(self, children: Sequence[Child]) -> None:
        """Show a line for each run that goes on, and none for those that have ended."""
        running = {child.cell: child for child in children}
        for cell in [cell for cell in self._rows if cell not in running]:
            self._bar.remove_task(self._rows.pop(cell))
        for cell, child in running.items():
            if cell not in self._rounds:
                self._rounds[cell] = self._grid.recipe(cell).rounds
            if cell not in self._rows:
                self._rows[cell] = self._bar.add_task(str(cell), total=self._rounds[cell], told="")
            done, told = pace_of(child.folder, self._rounds[cell])
            self._bar.update(self._rows[cell], completed=done, told=told)

    def close(self) -> None:
        """Take the lines away."""
        self._bar.stop()


def pace_of(folder: Path, rounds: int) -> tuple[int, str]:
    """Return how many rounds a run has finished, and its pace and the time that its other rounds take, in words.

    Args:
        folder: the run folder, which need not be there yet.
        rounds: all of them.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        done, seconds = max(0, int(state["round"])), float(state["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # not begun, or damaged: its own process says so
        return 0, "beginning"
    if not done or seconds <= 0:
        return done, "before the first round"
    each = seconds / done
    left = timedelta(seconds=round(each * (rounds - done)))
    return done, f"{each:.1f} s a round, left {left}" if done < rounds else "testing"


def _outcome(result: Result) -> str:
    if result.summary is None:
        return f"failed: {result.failure}"
    from fedsa.runs.scores import shown

    metric = result.summary["metric"]
    rounds = counted(result.summary["rounds"], "round")
    return f"validation {metric} {shown(result.score, metric)}, {rounds}, {result.summary['wall_seconds']:.0f} s"


def _left(grid: Grid, results: Mapping[Cell, Result]) -> int:
    """The number of runs that are known to be missing, without rates that may be added later."""
    from fedsa.sweep.running import next_cells

    left = 0
    for group in grid.groups:
        missing, rate = next_cells(group, grid, results)
        left += len(missing)
        if rate is None and missing:
            left += len(grid.seeds(group)) - len(grid.tuning_seeds(group))
    return left
