"""Damages to files of a run folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from fedsa.store.commits import Commit, read_commit
from fedsa.store.files import hash_of
from fedsa.store.run_folder import RunFolder

__all__ = ["FILES", "JSON", "damages_of", "reseal", "with_a_wrong_value"]

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


def reseal(run: Path, name: str) -> None:
    """Make the hash of a small file right again, as somebody who wants to break a run folder would."""
    folder = RunFolder(run)
    commit = read_commit(run)
    assert commit is not None
    folder._files = dict(commit.files)
    content = (run / name).read_text(encoding="utf-8")
    if name != "metrics.jsonl":
        folder._files[name] = hash_of(content.encode())
    progress = commit.progress
    metrics = (run / "metrics.jsonl").read_bytes()
    if name == "metrics.jsonl":
        progress.metrics_bytes = len(metrics)
    made = Commit(progress, commit.run, folder._files, hash_of(metrics[: progress.metrics_bytes]))
    (run / "state.json").write_text(made.text(), encoding="utf-8")
