"""What each verb makes of a run folder, perhaps of a damaged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fedsa
from fedsa.cost.hours import time_like
from fedsa.deploy.status import sent_of, status_of
from fedsa.errors import FedsaError, RunFolderError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.analysis import analyze
from fedsa.runs.audit import Subject
from fedsa.runs.compare import compare, table_of
from fedsa.runs.export import export
from fedsa.runs.listing import list_runs
from fedsa.runs.report import write_report
from fedsa.store import BegunRun, clean
from fedsa.store.run_folder import RunFolder
from fedsa.sweep.running import read_result

__all__ = ["VERBS", "World", "copied", "outcome"]

TIMES = {"seconds", "train_seconds", "evaluation_seconds", "wall_seconds", "peak_rss_bytes", "interruptions"}
TIMES |= {"metrics_bytes", "metrics_sha256", "sha256", "summary.json"}  # of what has times in it


@dataclass(frozen=True)
class World:
    """A run, and all that is needed to go on with it.

    Attributes:
        federation: the run's.
        finished: its folder.
        unfinished: the same run, stopped after its first round.
        other: a finished run of another seed.
        rows: of a client that was not in it.
    """

    federation: Federation
    finished: Path
    unfinished: Path
    other: Path
    rows: Path


def without_times(value: Any) -> Any:
    """Return JSON values without what a clock measured."""
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """Return every file below a folder: bytes, or JSON without what a clock measured."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == "metrics.jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif name in ("state.json", "summary.json"):
            found[name] = without_times(json.loads(path.read_text()))
        elif path.is_file() and name not in (".lock", "report.html"):
            found[name] = path.read_bytes()
    return found


def _resume(world: World, run: Path, out: Path) -> Any:
    fedsa.resume(world.federation, run)
    return contents(run)


def _export(world: World, run: Path, out: Path) -> Any:
    export(run, out, base=world.federation.model, tokenizer=world.federation.tokenizer, with_base=False)
    return contents(out)


def _export_final(world: World, run: Path, out: Path) -> Any:
    export(run, out, base=world.federation.model, tokenizer=world.federation.tokenizer, round="final", with_base=False)
    return contents(out)


def _adapt(world: World, run: Path, out: Path) -> Any:
    return fedsa.adapt(run, world.rows, steps=1).tried


def _analyze(world: World, run: Path, out: Path) -> Any:
    # A sum's last bits depend on where in memory tensors lie.
    return [
        {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}
        for row in analyze(run).means()
    ]


def _report(world: World, run: Path, out: Path) -> Any:
    return write_report(run).read_bytes()


def _sweep(world: World, run: Path, out: Path) -> Any:
    cell: Any = None
    grid: Any = SimpleNamespace(folder=lambda cell, out: run, recipe=lambda cell: world.federation.recipe)
    result = read_result(cell, grid, run.parent)
    if result is None:  # no run to a sweep: it begins one, which is refused where anything is in the folder
        RunFolder.create(run, "").close()
    return result and (without_times(result.summary), _plain(result.recipe))


def _report_live(world: World, run: Path, out: Path) -> Any:
    begun = BegunRun.read(run)  # what a page of a run that goes on is made of; the page itself tells all errors
    return (
        without_times(begun.progress and vars(begun.progress)),
        _plain(begun.recipe),
        begun.clients,
        len(begun.lines),
    )


def _predict(world: World, run: Path, out: Path) -> Any:
    federation = world.federation
    predictor = fedsa.Predictor.open(run, base=federation.model, tokenizer=federation.tokenizer)
    said = predictor.predict(predictor.read(world.rows), client="all")
    return [(each.client, each.row, each.prediction) for each in said]


def _compare(world: World, run: Path, out: Path) -> Any:
    return str(table_of(compare([run, world.other])))


def _runs(world: World, run: Path, out: Path) -> Any:
    found = list_runs(run)
    if not found:
        raise RunFolderError(f"{run} is not a run folder")  # without a recipe it is not in the list
    (listed,) = found
    if listed.state == "damaged":
        raise RunFolderError(listed.reason)
    return without_times({**vars(listed), "path": 0, "bytes": 0, "begun": 0})


def _clean(world: World, run: Path, out: Path) -> Any:
    clean(run)
    return {path.name: path.read_bytes() for path in sorted((run / "clients").rglob("*.safetensors"))}


def _sent(world: World, run: Path, out: Path) -> Any:
    return list(sent_of(run))


def _status(world: World, run: Path, out: Path) -> Any:
    return status_of(run)


def _plan_like(world: World, run: Path, out: Path) -> Any:
    # Raises where it has no figures: how many seconds they are a clock says.
    return sorted(time_like(world.federation.recipe, 3, run))


def _audit(world: World, run: Path, out: Path) -> Any:
    """What the attacks are made of: they only train on it."""
    subject = Subject.open(run, federation=world.federation)
    held = {client: (subject.start(client), subject.state(client)) for client in subject.clients}
    return {
        client: [{str(key): tensor.tolist() for key, tensor in tensors.items()} for tensors in both]
        for client, both in held.items()
    }


def _plain(recipe: Recipe | None) -> Any:
    return recipe and recipe.model_dump()


VERBS: Mapping[str, Callable[[World, Path, Path], Any]] = {
    "resume": _resume,
    "export": _export,
    "export final": _export_final,
    "adapt": _adapt,
    "analyze": _analyze,
    "report": _report,
    "sweep": _sweep,
    "report live": _report_live,
    "predict": _predict,
    "compare": _compare,
    "runs": _runs,
    "clean": _clean,
    "sent": _sent,
    "status": _status,
    "plan --like": _plan_like,
    "audit": _audit,
}


def outcome(verb: str, world: World, run: Path) -> tuple[str, Any]:
    """Return what a verb comes to on a run folder: ``done`` and its result, or ``told`` and the message.

    Raises:
        BaseException: what is no error of fedsa's: a traceback.
    """
    out = run.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    try:
        return "done", VERBS[verb](world, run, out)
    except FedsaError as error:
        return "told", str(error)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def copied(run: Path, place: Path) -> Path:
    """Return a fresh copy of a run folder at ``place``/run."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return Path(shutil.copytree(run, place / "run"))
