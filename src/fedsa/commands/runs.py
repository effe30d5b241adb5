"""``fedsa runs``: the runs in a folder, and the room that finished ones can give back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsa.texts.escapes import say
from fedsa.texts.words import counted, sized

if TYPE_CHECKING:
    from fedsa.runs.listing import ListedRun

__all__ = ["command"]


def command(
    folder: Annotated[Path, typer.Argument(help="A folder with runs, at any depth, or one run folder.")] = Path("runs"),
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Free what finished runs do not need any more: states of other rounds than the chosen and the last "
            "one, and of optimisers. They can still be exported, reported, analysed, adapted and used.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --clean: do not ask.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects; with --clean, one object.")] = False,
) -> None:
    """List runs: how far each is, what it came to, and how much room it takes."""
    from fedsa.commands.shared.display import print_json
    from fedsa.errors import UserError
    from fedsa.runs.listing import list_runs

    if yes and not clean:
        raise UserError("--yes goes with --clean: leave it out, or add --clean")
    runs = list_runs(folder)
    if clean:
        _clean(folder, runs, yes=yes, json=json)
    elif json:
        print_json([_as_json(run) for run in runs])
    else:
        _show(folder, runs)


def _as_json(run: ListedRun) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(run).items()}


def _show(folder: Path, runs: list[ListedRun]) -> None:
    from fedsa.commands.shared.display import print_table, score

    if not runs:
        say(f"no runs in {folder}")
        return
    rows = []
    for run in runs:
        done = f"{run.finished_rounds}/{run.rounds}" if run.rounds else "-"
        value = "-" if run.score is None or run.metric is None else f"{score(run.score, run.metric)} {run.metric}"
        rows.append(
            [
                _shown(run.path, folder),
                run.state if run.place in (None, "simulation") else f"{run.state} ({run.place})",
                " on ".join(filter(None, (run.algorithm, run.variant))) or "-",
                Path(run.model.removeprefix("part:")).name if run.model else "-",
                "-" if run.clients is None else f"{run.clients:,}",
                done,
                value,
                sized(run.bytes),
                (run.begun or "-")[:16].replace("T", " "),
            ]
        )
    print_table(
        ["run", "state", "method", "model", "clients", "rounds", "test score", "size", "begun, UTC"],
        rows,
        right_from=4,
        whole=4,
    )
    say(f"\n{counted(len(runs), 'run')}, {sized(sum(run.bytes for run in runs))}. Scores: weighted mean over clients,")
    say("on their test rows, at the round that was chosen on validation.")
    for run in runs:
        if run.state == "damaged":
            say(f"damaged: {run.reason}")
        elif run.state == "interrupted":
            say(
                f"interrupted: go on with: fedsa resume {run.path}"
                if run.place != "server"
                else f"interrupted: {run.path} is a server's: start its server again"
            )
    free = sum(run.unneeded_bytes for run in runs)
    if free:
        say(f"finished runs do not need {sized(free)} of it: fedsa runs {folder} --clean")


def _shown(path: Path, folder: Path) -> str:
    """Return a run's folder as seen from the folder that was looked through."""
    return path.name if path == folder else path.relative_to(folder).as_posix()


def _clean(folder: Path, runs: list[ListedRun], *, yes: bool, json: bool) -> None:
    """Free what finished runs do not need, after asking."""
    import sys

    from fedsa.commands.shared.display import print_json
    from fedsa.errors import UserError
    from fedsa.store import clean

    chosen = [run for run in runs if run.state == "finished" and run.unneeded_bytes]
    if chosen and not yes:
        if json or not sys.stdin.isatty():
            raise UserError("--clean asks before it removes anything, and nobody can answer here: add --yes")
        for run in chosen:
            say(f"{run.path}: {sized(run.unneeded_bytes)}")
        what = counted(len(chosen), "finished run")
        if not typer.confirm(f"free about {sized(sum(run.unneeded_bytes for run in chosen))} of {what}?"):
            say("nothing was removed")
            return
    freed = {}
    for run in chosen:
        freed[run.path] = clean(run.path)
        if not json:
            say(f"{run.path}: {counted(freed[run.path], 'byte')} freed")
    if json:
        cleaned = [{"path": str(path), "freed_bytes": count} for path, count in freed.items()]
        print_json({"freed_bytes": sum(freed.values()), "runs": cleaned})
    else:
        say(f"{counted(sum(freed.values()), 'byte')} freed in {counted(len(freed), 'run')}; {_kept(runs)}")


def _kept(runs: list[ListedRun]) -> str:
    others = sum(run.state != "finished" for run in runs)
    return f"{counted(others, 'run')} not finished, left as they are" if others else "every run can still be used"
