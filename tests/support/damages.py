"""Damages to files of a run folder, and what a verb makes of a damaged folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load, save

import fedsa
from fedsa.cost.hours import time_like
from fedsa.deploy.status import sent_of, status_of
from fedsa.errors import FedsaError, RunFolderError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.analysis import analyze
from fedsa.runs.compare import compare, table_of
from fedsa.runs.export import export
from fedsa.runs.listing import list_runs
from fedsa.runs.report import write_report
from fedsa.store import BegunRun, clean, recipe_of
from fedsa.store.run_folder import RunFolder
from fedsa.sweep.running import read_result

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


FILES = (
    "recipe.toml",
    "environment.json",
    "clients.json",
    "partition.json",
    "adapter_config.json",
    "initial.safetensors",
    "state.json",
    "metrics.jsonl",
    "sent.jsonl",
    "summary.json",
    "server/round-000001.safetensors",
    "server/round-000002.safetensors",
    "clients/00000-site 0/round-000001.safetensors",
    "clients/00001-site 1/round-000002.safetensors",
    "clients/00002-site 2/round-000002.safetensors",
)

Damage = Callable[[Path, Path, random.Random], None]
"""Given the file, the same file of another run, and coins."""


def _flipped(place: float) -> Damage:
    def damage(path: Path, other: Path, coins: random.Random) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(place * len(content)), len(content) - 1)] ^= 1 << coins.randrange(8)
        path.write_bytes(content)

    return damage


def _cut(part: float) -> Damage:
    def damage(path: Path, other: Path, coins: random.Random) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])

    return damage


def _appended(path: Path, other: Path, coins: random.Random) -> None:
    path.write_bytes(path.read_bytes() + b"\0x")


def _deleted(path: Path, other: Path, coins: random.Random) -> None:
    path.unlink()


def _folder(path: Path, other: Path, coins: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, other: Path, coins: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path, other: Path, coins: random.Random) -> None:
    elsewhere = _elsewhere(path)
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def _hard_link(path: Path, other: Path, coins: random.Random) -> None:
    os.link(path, _elsewhere(path))


def _dangling(path: Path, other: Path, coins: random.Random) -> None:
    path.unlink()
    path.symlink_to(_elsewhere(path).with_name("nothing"))


def _elsewhere(path: Path) -> Path:
    folder = next(parent for parent in path.parents if (parent / "recipe.toml").exists() or parent.name == "run")
    place = folder.with_name("elsewhere")
    place.mkdir(exist_ok=True)
    return place / path.name


def _of_another_run(path: Path, other: Path, coins: random.Random) -> None:
    shutil.copy(other, path)


def _sibling(path: Path, other: Path, coins: random.Random) -> None:
    """Put another file of the same kind and run in the place: another client's, another round's."""
    root = next(parent for parent in path.parents if parent.name == "run")
    kind = path.relative_to(root).parts[0]
    siblings = [each for each in sorted((root / kind).rglob("*.safetensors")) if each != path]
    shutil.copy(coins.choice(siblings or sorted((root / "clients").rglob("*.safetensors"))), path)


def _swapped(path: Path, other: Path, coins: random.Random) -> None:
    """Swap two clients' files."""
    root = next(parent for parent in path.parents if parent.name == "run")
    others = [each for each in sorted((root / "clients").rglob(path.name)) if each != path]
    chosen = coins.choice(others)
    content = path.read_bytes()
    path.write_bytes(chosen.read_bytes())
    chosen.write_bytes(content)


def _json(make: Callable[[Any, random.Random], Any]) -> Damage:
    """Write what a function makes of the JSON in a file; of a file of lines, of one of the lines."""

    def damage(path: Path, other: Path, coins: random.Random) -> None:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            lines = text.splitlines()
            number = coins.randrange(len(lines))
            made = make(json.loads(lines[number]), coins)
            lines[number] = made if isinstance(made, str) else json.dumps(made)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        else:
            made = make(json.loads(text), coins)
            path.write_text(made if isinstance(made, str) else json.dumps(made), encoding="utf-8")

    return damage


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below a JSON value."""
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [place for key in keys for place in ((data, key), *_places(data[key]))]


WRONG = (None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x" * 5000, "../..", [], {}, [[1]], {"a": 0})


def with_a_wrong_value(data: Any, coins: random.Random) -> Any:
    """Put a value of another kind somewhere, or leave an entry out."""
    places = _places(data)
    if not places:
        return [data]
    container, key = coins.choice(places)
    if coins.random() < 0.2:
        del container[key]
    else:
        container[key] = coins.choice(WRONG)
    return data


JSON: Mapping[str, Damage] = {
    "a list": _json(lambda data, coins: [data]),
    "a number": _json(lambda data, coins: 7),
    "null": _json(lambda data, coins: None),
    "a text": _json(lambda data, coins: json.dumps("text")),
    "an empty table": _json(lambda data, coins: {}),
    "nested deeply": _json(lambda data, coins: "[" * 200_000 + "]" * 200_000),
    "a number of 5,000 digits": _json(lambda data, coins: f'{{"format": {"9" * 5000}}}'),
    "not a number": _json(lambda data, coins: '{"round": NaN, "format": NaN}'),
    "a wrong value": _json(with_a_wrong_value),
    "another wrong value": _json(with_a_wrong_value),
    "no text": lambda path, other, coins: path.write_bytes(b"\xff\xfe{}") and None,
}


def _tensors(make: Callable[[dict[str, torch.Tensor], str, random.Random], Any]) -> Damage:
    """Write what a function makes of the tensors in a file, with the metadata as they were."""

    def damage(path: Path, other: Path, coins: random.Random) -> None:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        tensors = load(content)
        make(tensors, coins.choice(sorted(tensors)), coins)
        path.write_bytes(save(tensors, header["__metadata__"]))

    return damage


def _renamed(tensors: dict[str, torch.Tensor], name: str, coins: random.Random) -> None:
    tensors[f"{name}x"] = tensors.pop(name)


TENSORS: Mapping[str, Damage] = {
    "not a number": _tensors(
        lambda tensors, name, coins: (
            tensors[name].view(-1)[:1].fill_(float("nan"))
            if tensors[name].is_floating_point()
            else tensors[name].fill_(-1)
        )
    ),
    "renamed": _tensors(_renamed),
    "left out": _tensors(lambda tensors, name, coins: tensors.pop(name)),
    "one more": _tensors(lambda tensors, name, coins: tensors.update(more=torch.zeros(1))),
    "another dtype": _tensors(lambda tensors, name, coins: tensors.update({name: tensors[name].to(torch.float64)})),
    "another shape": _tensors(lambda tensors, name, coins: tensors.update({name: tensors[name][None]})),
    "other values": _tensors(lambda tensors, name, coins: tensors.update({name: 3 - tensors[name]})),
    "of the same kind": _sibling,
}

ANY: Mapping[str, Damage] = {
    "first bit": _flipped(0),
    "a bit at a third": _flipped(1 / 3),
    "a bit at two thirds": _flipped(2 / 3),
    "last bit": _flipped(1),
    "a bit at a tenth": _flipped(0.1),
    "a bit in the middle": _flipped(0.5),
    "a bit near the end": _flipped(0.95),
    "a tenth": _cut(0.1),
    "all but the end": _cut(0.999),
    "twice": lambda path, other, coins: path.write_bytes(2 * path.read_bytes()) and None,
    "zeros": lambda path, other, coins: path.write_bytes(bytes(path.stat().st_size)) and None,
    "a half": _cut(0.5),
    "nearly all": _cut(0.97),
    "empty": _cut(0),
    "appended": _appended,
    "deleted": _deleted,
    "a folder": _folder,
    "a pipe": _pipe,
    "a link": _link,
    "a link to nothing": _dangling,
    "a hard link": _hard_link,
    "of another run": _of_another_run,
}


def damages_of(name: str) -> dict[str, Damage]:
    """Return the damages that a file can have, by their names."""
    found = dict(ANY)
    if name.endswith(".safetensors"):
        found |= {f"tensors: {what}": damage for what, damage in TENSORS.items()}
        if name.startswith("initial"):
            del found["tensors: of the same kind"]
        if name.startswith("clients/"):
            found["swapped with another client's"] = _swapped
    if name.endswith((".json", ".jsonl")):
        found |= {f"JSON: {what}": damage for what, damage in JSON.items()}
    if name == "adapter_config.json":
        found["lora_alpha 400"] = _json(lambda data, coins: {**data, "lora_alpha": 400})
    return found


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


# -- verbs -------------------------------------------------------------------------------------------------------------


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
    (listed,) = list_runs(run)
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


def reseal(run: Path, name: str) -> None:
    """Make the hash of a small file right again, as somebody who wants to break a run folder would."""
    folder = RunFolder(run)
    commit = fedsa.store.commits.read_commit(run)
    assert commit is not None
    folder._files = dict(commit.files)
    content = (run / name).read_text(encoding="utf-8")
    if name != "metrics.jsonl":
        folder._files[name] = fedsa.store.files.hash_of(content.encode())
    progress = commit.progress
    metrics = (run / "metrics.jsonl").read_bytes()
    if name == "metrics.jsonl":
        progress.metrics_bytes = len(metrics)
    made = fedsa.store.commits.Commit(
        progress, commit.run, folder._files, fedsa.store.files.hash_of(metrics[: progress.metrics_bytes])
    )
    (run / "state.json").write_text(made.text(), encoding="utf-8")


__all__ = ["FILES", "VERBS", "World", "copied", "damages_of", "outcome", "recipe_of", "reseal", "with_a_wrong_value"]
