"""The runs in a folder: how far each is, what it came to, and how much room it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fedsa.errors import UserError
from fedsa.recipe import OBJECTS
from fedsa.store import FinishedRun, RunFolder, is_in_use, recipe_of, size_of, unneeded_bytes
from fedsa.store.small_files import SEAL

__all__ = ["ListedRun", "list_runs", "run_folders"]

State = Literal["running", "interrupted", "finished", "damaged"]


@dataclass(frozen=True)
class ListedRun:
    """One run.

    Attributes:
        path: its folder.
        state: running, interrupted, finished or damaged.
        reason: what is wrong with a damaged run; else empty.
        place: ``simulation``, or of a deployment its ``server`` or a ``site``; None: not known before the run's end.
        sweep: the folder of the sweep that it belongs to.
        algorithm: the method; None, as the next ones: it cannot be told.
        variant: the adapter's.
        model: as the recipe names it; None too where it was a Python object, or lies at the sites.
        seed: the run's.
        clients: how many.
        rounds: how many the recipe asks for.
        finished_rounds: how many are done.
        metric: whose value `score` is.
        chosen_round: the round that was chosen on validation.
        score: of a finished run the weighted mean of the metric on test at that round.
        begun: when its recipe was written, by that file's time; ISO 8601, UTC.
        bytes: of all its files.
        unneeded_bytes: what cleaning would free of a finished run.
    """

    path: Path
    state: State
    reason: str = ""
    place: Literal["simulation", "server", "site"] | None = None
    sweep: Path | None = None
    algorithm: str | None = None
    variant: str | None = None
    model: str | None = None
    seed: int | None = None
    clients: int | None = None
    rounds: int | None = None
    finished_rounds: int | None = None
    metric: str | None = None
    chosen_round: int | None = None
    score: float | None = None
    begun: str | None = None
    bytes: int = 0
    unneeded_bytes: int = 0


def list_runs(folder: Path) -> list[ListedRun]:
    """Return the runs in a folder and in those within, or the one run that the folder is, by their paths.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give one that runs are in (`fedsa run` writes below runs/)")
    return [_listed(path) for path in run_folders(folder)]


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders in a folder, sorted. What is hidden is passed over, and links are not followed."""
    if _is_run(folder):
        yield folder
        return
    for place, inner, _ in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "node_modules")
        found = [name for name in inner if _is_run(Path(place, name))]
        yield from (Path(place, name) for name in found)
        inner[:] = [name for name in inner if name not in found]


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's: a recipe alone is none, unless a run has put its seal below it."""
    recipe = folder / "recipe.toml"
    if not recipe.is_file():
        return False
    if (folder / "state.json").exists() or (folder / "clients.json").exists():
        return True
    return SEAL in recipe.read_text(encoding="utf-8", errors="replace")


def _listed(path: Path) -> ListedRun:
    """Look at one run. Its tensors are not read, so damage in them is not seen."""
    in_use = is_in_use(path)
    written = datetime.fromtimestamp((path / "recipe.toml").stat().st_mtime, UTC)
    begun, size = written.isoformat(timespec="seconds"), size_of(path)
    sweep = path.parent if path.with_name(f"{path.name}.log").is_file() else None
    try:
        folder = RunFolder.open(path)
        recipe, progress = recipe_of(folder), folder.progress()
        finished = FinishedRun.open(path) if folder.is_measured else None
        summary = finished.summary if finished else {}
        everyone = folder.read_json("clients.json") if progress is not None else {}
        is_site = path.name == "run" and (path.parent / "sent.jsonl").is_file()
        is_server = any("site" in entry for entry in everyone.values())
        state: State = "running" if in_use else "finished" if finished else "interrupted"
        return ListedRun(
            path,
            state,
            place="site" if is_site else "server" if is_server else "simulation" if everyone else None,
            sweep=sweep,
            algorithm=recipe.algorithm,
            variant=recipe.adapter.variant,
            model=None if recipe.model.path == OBJECTS else recipe.model.path,
            seed=recipe.seed,
            clients=len(everyone) if progress is not None else None,
            rounds=recipe.rounds,
            finished_rounds=max(0, progress.round) if progress is not None else 0,
            metric=summary.get("metric"),
            chosen_round=progress.chosen_round if progress is not None else None,
            score=summary.get("test", {}).get("weighted_mean"),
            begun=begun,
            bytes=size,
            unneeded_bytes=unneeded_bytes(folder) if state == "finished" else 0,
        )
    except UserError as error:
        return ListedRun(path, "damaged", str(error), sweep=sweep, begun=begun, bytes=size)
