"""``fedsa sweep``: many runs, and the tables they make."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedsa.sweep.grid import Cell, Grid
    from fedsa.sweep.running import Child, Result

__all__ = ["command"]


def command(
    sweep: Annotated[str | None, typer.Argument(help="A sweep file (TOML), or a name from --list.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs; default: runs/NAME.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe in place of the sweep's.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method, by its label; may be repeated.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Try this learning rate in place of the sweep's; may be repeated.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="This seed in place of the sweep's; may be repeated.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of all runs.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Add the settings that the sweep has for less work.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; default: cores / threads.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of each run.")] = 1,
    retry: Annotated[bool, typer.Option("--retry", help="Try runs again that have failed before.")] = False,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Run nothing; write tables of what is there.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the sweeps that come with fedsa.")] = False,
) -> None:
    """Run methods, variants, settings and seeds, choose each one's learning rate, and write tables.

    The exit code is 1 where a row of the tables lacks a run.
    """
    from fedsa.errors import UserError
    from fedsa.system.paths import refuse_unwritable

    if list_:
        _list()
        return
    if sweep is None:
        raise UserError("no sweep is given: give a file (TOML) or a name from `fedsa sweep --list`")
    from rich.console import Console

    from fedsa.sweep.files import read_sweep

    file, name = read_sweep(sweep, rate or [], seed or [])
    folder = out or Path("runs") / name
    refuse_unwritable(folder, "--out")
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    from fedsa.commands.shared.display import status

    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.sweep.grid import make_grid

        grid = make_grid(
            file,
            f"sweep {sweep}",
            recipe=recipe,
            methods=method or [],
            extra=set_ or [],
            small=small,
            threads=threads,
        )
    again = _again(
        sweep,
        out,
        recipe,
        {"--method": method or [], "--rate": rate or [], "--seed": seed or [], "--set": set_ or []},
        small=small,
        threads=threads,
    )
    for group, reason in grid.refused.items():
        console.print(f"not run: {group}: {reason}")
    results = _run(grid, folder, console, again, jobs or _jobs(threads), threads, retry=retry, run=not tables_only)
    from fedsa.sweep.running import missing_runs
    from fedsa.sweep.tables import tables_of, write_results
    from fedsa.texts.tables import as_markdown

    files = write_results(grid, results, folder, again)
    print(as_markdown(tables_of(grid, results, again)))
    print("\n".join(map(str, files)))
    missing = missing_runs(grid, results)
    for group, what in missing.items():
        console.print(f"missing: {group}: {what}")
    if missing:
        raise typer.Exit(1)


def _list() -> None:
    import tomllib

    from fedsa.commands.shared.display import print_table
    from fedsa.sweep.files import sweep_names

    rows = [[name, tomllib.loads(text).get("description", "")] for name, text in sweep_names().items()]
    print_table(["sweep", "what it is"], rows)


def _jobs(threads: int) -> int:
    """The number of runs that go at the same time on the cores that this process may use."""
    import os

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // threads)


def _again(
    sweep: str,
    out: Path | None,
    recipe: str | None,
    lists: Mapping[str, Sequence[Any]],
    *,
    small: bool,
    threads: int,
) -> str:
    """Return the command that makes these figures."""
    import shlex

    from fedsa.system.permissions import code_allowed

    words = ["fedsa", "sweep", sweep]
    words += ["--out", str(out)] if out else []
    words += ["--recipe", recipe] if recipe else []
    for option, values in lists.items():
        words += [
            word for value in values for word in (option, f"{value:g}" if isinstance(value, float) else str(value))
        ]
    words += ["--small"] if small else []
    words += ["--allow-code"] if code_allowed() else []
    words += ["--threads", str(threads)] if threads != 1 else []
    return shlex.join(words)


def _run(
    grid: Grid,
    folder: Path,
    console: Console,
    again: str,
    jobs: int,
    threads: int,
    *,
    retry: bool,
    run: bool,
) -> Mapping[Cell, Result]:
    """Run what is missing, with a live display; tell how to go on if it is interrupted."""
    from fedsa.sweep.running import run_sweep

    live = _Live(grid, console, jobs)
    try:
        return run_sweep(grid, folder, jobs=jobs, threads=threads, retry=retry, run=run, tell=live.show)
    except KeyboardInterrupt:
        live.close()
        console.print(f"\ninterrupted: finished runs and rounds are saved; go on with: {again}")
        raise
    finally:
        live.close()


class _Live:
    """A bar over all runs with what is left, a line for each that runs, and a line that stays for each that ended."""

    def __init__(self, grid: Grid, console: Console, jobs: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._grid, self._console, self._jobs = grid, console, jobs
        self._started: dict[Cell, float] = {}
        self._seconds: list[float] = []  # of runs that ended while we looked on
        self._known: set[Cell] = set()
        self._waited: set[Cell] = set()
        self._looked = 0.0
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

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
                self._seconds.append(time.monotonic() - began)
            self._console.print(
                f"{cell}: {_outcome(results[cell])}{'' if began is not None else ' (from an earlier run)'}"
            )
        self._started |= {child.cell: child.started for child in children}
        if not ended and time.monotonic() - self._looked < 1:
            return
        self._looked = time.monotonic()
        left = _left(self._grid, results)
        text = "; ".join(f"{child.cell} (round {_round(child.folder)})" for child in children)
        if self._seconds and left:
            minutes = sum(self._seconds) / len(self._seconds) * left / self._jobs / 60
            text = f"about {minutes:.0f} min left; {text}"
        if children:
            self._bar.start()
        self._bar.update(self._task, total=len(results) + left, completed=len(results), description=text)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def _outcome(result: Result) -> str:
    if result.summary is None:
        return f"failed: {result.failure}"
    from fedsa.runs.scores import shown

    metric = result.summary["metric"]
    return f"validation {metric} {shown(result.score, metric)}"


def _left(grid: Grid, results: Mapping[Cell, Result]) -> int:
    """The number of runs that are known to be missing, without rates that may be added later."""
    from fedsa.sweep.running import next_cells

    left = 0
    for group in grid.groups:
        missing, rate = next_cells(group, grid, results)
        left += len(missing)
        if rate is None and missing:
            left += len(grid.file.seeds) - grid.file.tuning_seeds
    return left


def _round(folder: Path) -> Any:
    """The number of rounds that a run has finished."""
    import json

    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))["round"]
    except (OSError, ValueError, KeyError, TypeError):  # not begun, or damaged: its own process says so
        return 0
