"""The runs that a sweep asks for: each one's recipe, its folder, and what does not go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsa.algorithms import algorithm_names, check_algorithm, make_algorithm
from fedsa.callbacks import check_callbacks
from fedsa.errors import ConfigError, Mistake, UserError, near
from fedsa.recipe import (
    Recipe,
    Scope,
    apply_overrides,
    is_resolved,
    parse_recipe,
    read_recipe,
    refuse_objects,
    scope_of,
    with_absolute_paths,
)
from fedsa.steps import CHECKS, check_steps
from fedsa.sweep.files import (
    ALL,
    MethodEntry,
    SettingEntry,
    SweepFile,
    VariantEntry,
    part_of_a_name,
    repeated_labels,
)

__all__ = ["Cell", "Grid", "Group", "differences", "make_grid"]

_RATE, _SEED = "training.learning_rate", "seed"

_TIME = {"compute.threads", "compute.memory_budget"}
"""What changes time and memory, and figures by rounding at most."""


@dataclass(frozen=True, order=True)
class Group:
    """What a learning rate is chosen for: a row of a table. The names are labels; empty where there is but one."""

    setting: str
    variant: str
    method: str

    def __str__(self) -> str:
        return ", ".join(name for name in (self.method, self.variant, self.setting) if name)


@dataclass(frozen=True, order=True)
class Cell:
    """One run."""

    group: Group
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.group}, rate {self.rate:g}, seed {self.seed}"

    @property
    def settings(self) -> list[str]:
        """Its own settings, beside those of its group."""
        return [f"{_RATE}={self.rate:g}", f"{_SEED}={self.seed}"]


@dataclass(frozen=True)
class Grid:
    """All that a sweep asks for.

    Attributes:
        file: the sweep.
        groups: each with the recipe that ``fedsa run`` is given and its settings.
        refused: what does not go together, with the reason.
    """

    file: SweepFile
    groups: Mapping[Group, tuple[str, tuple[str, ...]]]
    refused: Mapping[Group, str]

    def rates(self, group: Group) -> list[float]:
        """The rates that a row of the table tries first, as they stand in folders' names, ascending."""
        return sorted(float(f"{rate:g}") for rate in self._setting(group).rates or self.file.rates)

    def seeds(self, group: Group) -> list[int]:
        """The seeds of a row of the table: its setting's, or the sweep's."""
        return self._setting(group).seeds or self.file.seeds

    def _setting(self, group: Group) -> SettingEntry:
        return next((entry for entry in self.file.settings if entry.label == group.setting), SettingEntry())

    def tuning_seeds(self, group: Group) -> list[int]:
        """Those of them that a rate is chosen on."""
        return self.seeds(group)[: self.file.tuning_seeds]

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell's run; settings that only the run itself resolves are left open."""
        source, settings = self.groups[cell.group]
        data = apply_overrides(read_recipe(source)[0], [*settings, *cell.settings])
        return with_absolute_paths(parse_recipe(data, source=f"recipe {source}", checks=CHECKS))

    def arguments(self, cell: Cell, folder: Path) -> list[str]:
        """The arguments after ``fedsa`` that start a cell's run."""
        source, settings = self.groups[cell.group]
        words = [word for setting in (*settings, *cell.settings) for word in ("--set", setting)]
        return ["run", source, "--out", str(folder), *words]

    def folder(self, cell: Cell, out: Path) -> Path:
        """Return a cell's run folder. Variant and setting are in its name only where the file has several."""
        group = cell.group
        names = [group.method]
        names += [group.variant] if len(self.file.variants) > 1 else []
        names += [group.setting] if len(self.file.settings) > 1 else []
        return out / f"{'_'.join(map(part_of_a_name, names))}_lr{cell.rate:g}_seed{cell.seed}"


def make_grid(
    file: SweepFile,
    source: str,
    *,
    recipe: str | None = None,
    methods: Sequence[str] = (),
    settings: Sequence[str] = (),
    extra: Sequence[str] = (),
    small: bool = False,
    threads: int = 1,
) -> Grid:
    """Return the runs that a sweep asks for.

    Args:
        file: the sweep.
        source: named in errors.
        recipe: in place of the sweep's; settings that bring a recipe of their own then go.
        methods: labels of those that are wanted; empty: all.
        settings: likewise.
        extra: settings for all runs; they come last.
        small: add the settings that the sweep has for that.
        threads: of each run.

    Raises:
        ConfigError: with every mistake in the sweep, its recipes and settings.
        UserError: a recipe, a method or a setting is not there.
    """
    if recipe is not None:
        own = [entry for entry in file.settings if entry.recipe is None]
        file = file.model_copy(update={"recipe": recipe, "settings": own})
    if small and not file.small:
        raise UserError(f'{source} has no settings for --small: add small = ["KEY=VALUE"] to it')
    entries = _methods(file.methods)
    mistakes = _mistakes(file, entries)
    _refuse_unknown("method", methods, [entry.label for entry in entries], source)
    _refuse_unknown("setting", settings, [entry.label for entry in file.settings], source)
    groups: dict[Group, tuple[str, tuple[str, ...]]] = {}
    refused: dict[Group, str] = {}
    last = (f"compute.threads={threads}", *(file.small if small else ()), *extra)
    for setting in file.settings or [SettingEntry()]:
        base = setting.recipe or file.recipe
        if base is None:
            continue  # said already
        data, _ = read_recipe(base)
        variants: Sequence[VariantEntry | None] = file.variants or [None]
        for variant in variants:
            for method in entries:
                group = Group(setting.label, variant.name if variant else "", method.label)
                every = (*file.set, *setting.set, *_variant_settings(variant), *method.set, *last)
                chosen = apply_overrides(data, [*every, f"{_RATE}={file.rates[0]:g}", f"{_SEED}={file.seeds[0]}"])
                found, reason = _check(chosen, f"recipe {base}")
                mistakes += [each for each in found if each not in mistakes]
                if reason:
                    refused[group] = reason
                else:
                    groups[group] = (base, every)
    if mistakes:
        raise ConfigError(mistakes, source)

    def is_wanted(group: Group) -> bool:
        return (not methods or group.method in methods) and (not settings or group.setting in settings)

    return Grid(
        file,
        {group: how for group, how in groups.items() if is_wanted(group)},
        {group: reason for group, reason in refused.items() if is_wanted(group)},
    )


def _refuse_unknown(what: str, wanted: Sequence[str], known: Sequence[str], source: str) -> None:
    for name in wanted:
        if name not in known:
            hint = near(name, known) if known else f"it has no {what}s"
            raise UserError(f"{source} has no {what} {name!r}; {hint}")


def _methods(entries: Sequence[MethodEntry]) -> list[MethodEntry]:
    """Return the methods, ``all`` replaced by every algorithm."""
    every = [MethodEntry(label=name, set=[f"algorithm={name}"]) for name in algorithm_names()]
    return [method for entry in entries for method in (every if entry.label == ALL else [entry])]


def _mistakes(file: SweepFile, methods: Sequence[MethodEntry]) -> list[Mistake]:
    labels = [method.label for method in methods]
    mistakes = [Mistake("methods", twice) for twice in repeated_labels(labels)]
    if file.reference is not None and file.reference not in labels:
        mistakes.append(Mistake("reference", f"no method {file.reference!r}; {near(file.reference, labels)}"))
    lists = [("set", file.set), ("small", file.small)]
    for name, entries in (("methods", methods), ("variants", file.variants), ("settings", file.settings)):
        lists += [(f"{name}.set", entry.set) for entry in entries]
    for where, settings in lists:
        for setting in settings:
            if setting.partition("=")[0].strip() in (_RATE, _SEED):
                mistakes.append(Mistake(where, f"{setting}: remove it, because `rates` and `seeds` set this"))
    return mistakes


def _variant_settings(variant: VariantEntry | None) -> list[str]:
    return [f"adapter.variant={variant.variant}", *variant.set] if variant else []


def _check(data: Mapping[str, Any], source: str) -> tuple[list[Mistake], str]:
    """Return the mistakes in a run's settings, and why the method refuses them where there are none."""
    name, options, share_head = (
        data.get("algorithm", "fedsa"),
        data.get("algorithm_options", {}),
        data.get("share_head"),
    )
    try:
        refuse_objects(parse_recipe(data, source=source, checks=[check_callbacks]), source)
        make_algorithm(name, options, share_head)
    except ConfigError as error:
        return list(error.mistakes), ""
    except UserError as error:
        return [Mistake("algorithm", str(error))], ""
    return [], "; ".join(mistake.what for mistake in [*check_algorithm(data), *check_steps(data)])


def differences(asked: Recipe, made: Recipe) -> list[str]:
    """Return in what a run is not what is asked for, each as ``key: asked, made``.

    What is asked may be open where a run resolves it. What changes no figure (threads, say) may differ.

    Args:
        asked: a recipe as it is given to ``fedsa run``.
        made: the one in the run folder, resolved or not.
    """
    wanted, found = _compared(asked), _compared(made)
    left_open = {key for key, field, value in asked.entries() if is_resolved(field) and value in (None, 0, "auto")}
    return [
        f"{key}: {wanted.get(key)!r} is asked for, {found.get(key)!r} was run"
        for key in sorted({*wanted, *found} - left_open)
        if _sorted(wanted.get(key)) != _sorted(found.get(key))
        and not (key == "task.max_length" and found[key] < wanted[key])  # a run cuts it to what the model takes
    ]


def _compared(recipe: Recipe) -> dict[str, Any]:
    """Return the values by dotted key of the settings that change figures."""
    return {
        key: value for key, field, value in recipe.entries() if scope_of(field) is not Scope.NOTE and key not in _TIME
    }


def _sorted(value: Any) -> Any:
    """Return a list of names in order: a run sorts the names of layers."""
    return sorted(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
