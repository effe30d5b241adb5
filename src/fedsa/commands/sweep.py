"""``fedsa sweep``: many runs, and the tables they make."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsa.texts.escapes import say, say_aside

if TYPE_CHECKING:
    from rich.console import Console

    from fedsa.sweep.grid import Cell, Grid
    from fedsa.sweep.running import Result

__all__ = ["command"]


def command(
    sweep: Annotated[str | None, typer.Argument(help="A sweep file (TOML), or a name from --list.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs; default: runs/NAME.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe in place of the sweep's.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method, by its label; may be repeated.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="Only this setting, by its label; may be repeated.")] = None,
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
    json: Annotated[bool, typer.Option("--json", help="Print one object; with --list, a list of objects.")] = False,
) -> None:
    """Run methods, variants, settings and seeds, choose each one's learning rate, and write tables.

    The exit code is 1 where a row of the tables lacks a run.
    """
    from fedsa.errors import UserError
    from fedsa.system.paths import refuse_unwritable

    if list_:
        _list(json=json)
        return
    if sweep is None:
        raise UserError("no sweep is given: give a file (TOML) or a name from `fedsa sweep --list`")
    from fedsa.sweep.files import read_sweep

    file, name = read_sweep(sweep, rate or [], seed or [])
    folder = out or Path("runs") / name
    refuse_unwritable(folder, "--out")
    from fedsa.commands.shared.display import is_quiet, print_json, progress_console, status

    console = progress_console(stderr=True)
    console.soft_wrap = True
    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.sweep.grid import make_grid

        grid = make_grid(
            file,
            f"sweep {sweep}",
            recipe=recipe,
            methods=method or [],
            settings=setting or [],
            extra=set_ or [],
            small=small,
            threads=threads,
        )
    again = _again(
        sweep,
        out,
        recipe,
        {
            "--method": method or [],
            "--setting": setting or [],
            "--rate": rate or [],
            "--seed": seed or [],
            "--set": set_ or [],
        },
        small=small,
        threads=threads,
    )
    for group, reason in grid.refused.items():
        console.print(f"not run: {group}: {reason}")
    results = _run(grid, folder, console, again, jobs or _jobs(threads), threads, retry=retry, run=not tables_only)
    from fedsa.sweep.figures import cell_rows
    from fedsa.sweep.running import missing_runs
    from fedsa.sweep.tables import tables_of, write_results
    from fedsa.texts.tables import as_markdown

    files = write_results(grid, results, folder, again)
    missing = missing_runs(grid, results)
    if json:
        print_json(
            {
                "out": str(folder),
                "command": again,
                "runs": cell_rows(grid, results),
                "missing": {str(group): what for group, what in missing.items()},
                "refused": {str(group): reason for group, reason in grid.refused.items()},
                "files": [str(file) for file in files],
            }
        )
    elif is_quiet():
        say(str(folder))
    else:
        print(as_markdown(tables_of(grid, results, again)))
        print("\n".join(map(str, files)))
    for group, what in missing.items():
        say_aside(f"missing: {group}: {what}")
    if missing:
        raise typer.Exit(1)


def _list(*, json: bool) -> None:
    import tomllib

    from fedsa.commands.shared.display import print_json, print_table
    from fedsa.sweep.files import sweep_names

    known = {name: str(tomllib.loads(text).get("description", "")) for name, text in sweep_names().items()}
    if json:
        print_json([{"name": name, "description": description} for name, description in known.items()])
    else:
        print_table(["sweep", "what it is"], [list(each) for each in known.items()])


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
    from fedsa.commands.shared.sweep_display import SweepDisplay
    from fedsa.sweep.running import run_sweep

    live = SweepDisplay(grid, console, jobs)
    try:
        return run_sweep(grid, folder, jobs=jobs, threads=threads, retry=retry, run=run, tell=live.show)
    except KeyboardInterrupt:
        live.close()
        say_aside(f"\ninterrupted: finished runs and rounds are saved; go on with: {again}")
        raise
    finally:
        live.close()
