"""The runs that are compared, in groups: runs of one recipe with other seeds are one group."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsa.recipe import Recipe, Scope, is_resolved, scope_of
from fedsa.store import FinishedRun

__all__ = ["ComparedRun", "Group", "Point", "grouped", "setting"]

_SEED = "seed"
_MOST_SETTINGS = 3  # in the name of a group; more make it unreadable


@dataclass(frozen=True)
class Point:
    """How far a run was after a round.

    Attributes:
        round: its number; 0 is before any training.
        value: the metric on validation, weighted mean over the clients that were evaluated.
        upload_bytes: sent by all clients, up to here.
        download_bytes: sent to all clients, up to here.
        train_seconds: of local training of all clients, up to here.
    """

    round: int
    value: float
    upload_bytes: int
    download_bytes: int
    train_seconds: float


@dataclass(frozen=True)
class ComparedRun:
    """One finished run.

    Attributes:
        path: its folder, as it was given.
        finished: what is in it.
    """

    path: Path
    finished: FinishedRun

    @property
    def summary(self) -> Mapping[str, Any]:
        """What ``summary.json`` holds."""
        return self.finished.summary

    @property
    def metric(self) -> str:
        """The name of the metric that its rounds were chosen by."""
        return str(self.summary["metric"])

    @property
    def seed(self) -> int:
        """Of its recipe."""
        return self.finished.recipe.seed

    @cached_property
    def partition(self) -> Mapping[str, Mapping[str, Sequence[int]]] | None:
        """Client id to split to row numbers; None: the folder does not tell (a server has no rows)."""
        folder = self.finished.folder
        return folder.read_json("partition.json") if folder.has("partition.json") else None

    @property
    def rows(self) -> str:
        """Fingerprint of all rows as the model reads them, and of who has which."""
        progress = self.finished.folder.progress()
        return progress.data if progress is not None else ""

    def results(self, which: str) -> dict[str, float]:
        """Each client's value of the metric under a name of the summary, such as ``test``."""
        return {
            client: float(entry[which][self.metric])
            for client, entry in self.summary["per_client"].items()
            if which in entry
        }

    @cached_property
    def curve(self) -> tuple[Point, ...]:
        """The rounds after which clients were evaluated on validation rows."""
        by_round: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for line in self.finished.lines():
            by_round[line["round"]].append(line)
        upload = download = 0
        seconds, points = 0.0, []
        for number, lines in sorted(by_round.items()):
            upload += sum(line.get("upload_bytes", 0) for line in lines)
            download += sum(line.get("download_bytes", 0) for line in lines)
            seconds += sum((line.get("train") or {}).get("seconds", 0.0) for line in lines)
            value = self._validation(lines)
            if value is not None:
                points.append(Point(number, value, upload, download, seconds))
        return tuple(points)

    def _validation(self, lines: Iterable[Mapping[str, Any]]) -> float | None:
        """The weighted mean over the clients that were evaluated; None where none was, or a value is not finite."""
        found = [line.get("validation") or line.get("validation_after_training") for line in lines]
        pairs = [(float(each[self.metric]), float(each["examples"])) for each in found if each]
        total = sum(weight for _, weight in pairs)
        value = sum(value * weight for value, weight in pairs) / total if total else math.nan
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, one for each seed.

    Attributes:
        name: in what it differs from the other groups.
        runs: by their seeds.
        settings: those in which groups differ, by dotted key.
    """

    name: str
    runs: tuple[ComparedRun, ...]
    settings: Mapping[str, Any]

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run.seed for run in self.runs]

    @property
    def recipe(self) -> Recipe:
        """Of its first run; the others' have other seeds."""
        return self.runs[0].finished.recipe


def grouped(runs: Sequence[ComparedRun]) -> list[Group]:
    """Return runs in groups, in the order in which their first runs are given.

    Runs whose recipes differ in the seed alone are one group, wherever and with whatever trainer they ran. Where two of
    them have the same seed, what differs between machines counts too: that is what is compared then.
    """
    agreed = _parted(runs, lambda run: _settings(run.finished.recipe, machine=False))
    groups: list[list[ComparedRun]] = []
    for group in agreed:
        parts = [group]
        if _has_twins(group):
            parts = _parted(group, lambda run: _settings(run.finished.recipe, machine=True))
        groups += [part for each in parts for part in ([[run] for run in each] if _has_twins(each) else [each])]
    groups.sort(key=lambda group: runs.index(group[0]))
    settings = [_settings(group[0].finished.recipe, machine=True) for group in groups]
    keys = dict.fromkeys(key for each in settings for key in each)
    differing = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    names = _names(groups, settings, differing)
    return [
        Group(name, tuple(sorted(group, key=lambda run: run.seed)), {key: own.get(key) for key in differing})
        for name, group, own in zip(names, groups, settings, strict=True)
    ]


def _parted(runs: Iterable[ComparedRun], key: Callable[[ComparedRun], Any]) -> list[list[ComparedRun]]:
    parts: dict[str, list[ComparedRun]] = {}
    for run in runs:
        parts.setdefault(repr(key(run)), []).append(run)
    return list(parts.values())


def _has_twins(group: Sequence[ComparedRun]) -> bool:
    return len({run.seed for run in group}) < len(group)


def _settings(recipe: Recipe, *, machine: bool) -> dict[str, Any]:
    """The settings by which runs are told apart: agreed ones and the places of model and rows; of a machine all."""
    return {
        key: value
        for key, field, value in recipe.entries()
        if key != _SEED
        and (
            scope_of(field) is Scope.AGREED
            or (scope_of(field) is Scope.MACHINE and (machine or (_is_a_place(key) and not is_resolved(field))))
        )
    }


def _is_a_place(key: str) -> bool:
    return key.startswith(("model.", "data."))


def _names(
    groups: Sequence[Sequence[ComparedRun]], settings: Sequence[Mapping[str, Any]], differing: Sequence[str]
) -> list[str]:
    """A name for each group: its values of the settings in which groups differ, or its folder."""
    fields = {key: field for group in groups for key, field, _ in group[0].finished.recipe.entries()}
    telling = [key for key in differing if not is_resolved(fields[key]) and not key.startswith("compute.")]
    if not telling or len(telling) > _MOST_SETTINGS:
        telling = [key for key in ("algorithm", "adapter.variant") if key in differing]
    names = [", ".join(_told(key, own.get(key)) for key in telling) for own in settings]
    folders = [group[0].path.name for group in groups]
    names = [name or str(own["algorithm"]) for name, own in zip(names, settings, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name}, {number}" for number, name in enumerate(names, start=1)]
    return names


def _told(key: str, value: Any) -> str:
    if key in ("algorithm", "adapter.variant"):
        return str(value)
    if key in ("model.path", "data.path"):
        return Path(str(value)).name
    return f"{key.rpartition('.')[2]} = {setting(value)}"


def setting(value: Any) -> str:
    """Return a setting's value as text, nearly as a recipe has it.

    >>> setting(None), setting(0.01), setting(True), setting(["query", "value"])
    ('–', '0.01', 'true', 'query, value')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
