"""A sweep as pure data: which runs, and how a learning rate is chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsa.errors import ConfigError
from fedsa.recipe import find_toml, mistakes_of
from fedsa.texts.words import counted

__all__ = [
    "ALL",
    "MethodEntry",
    "Printed",
    "SettingEntry",
    "SweepFile",
    "VariantEntry",
    "part_of_a_name",
    "read_sweep",
    "repeated_labels",
    "sweep_names",
]

ALL = "all"
"""Stands for every algorithm that is discovered."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodEntry(_Entry):
    """A row of the table: a method, with its options."""

    label: str = Field(min_length=1, description="its name in tables and folders")
    set: list[str] = Field([], description="settings as for --set, algorithm= among them")


class VariantEntry(_Entry):
    """An adapter variant."""

    variant: str = Field(min_length=1, description="adapter.variant")
    label: str = Field("", description="its name in tables and folders; empty: the variant's")
    set: list[str] = Field([], description="settings as for --set")

    @property
    def name(self) -> str:
        """The label, or else the variant."""
        return self.label or self.variant


class SettingEntry(_Entry):
    """A named group of settings: another split, more clients, another task."""

    label: str = Field("", description="its name in tables and folders")
    recipe: str | None = Field(None, description="a recipe of its own; empty: the sweep's")
    set: list[str] = Field([], description="settings as for --set")
    seeds: list[int] = Field([], description="seeds of its own; empty: the sweep's")
    rates: list[float] = Field([], description="learning rates of its own; empty: the sweep's")


class Printed(_Entry):
    """Numbers that somebody else printed, to stand beside ours."""

    source: str = Field(description="where they are printed")
    scale: str = Field(description="what they were measured with")
    values: dict[str, dict[str, float]] = Field(description="method to setting to number, in %")


class SweepFile(_Entry):
    """Which runs a sweep makes, and how it chooses learning rates."""

    description: str = Field("", description="one line for `fedsa sweep --list`")
    recipe: str | None = Field(None, description="a recipe's file or name; where each setting has its own: none")
    methods: list[MethodEntry] = Field(min_length=1, description="methods; a name is one as it is, 'all' is all")
    variants: list[VariantEntry] = Field([], description="adapter variants; empty: the recipe's own")
    settings: list[SettingEntry] = Field([], description="groups of settings; empty: the recipe as it is")
    seeds: list[int] = Field([0], min_length=1, description="a run of each")
    rates: list[float] = Field(min_length=1, description="learning rates to try; one alone is taken without a choice")
    tuning_seeds: int = Field(1, gt=0, description="how many of the seeds the rate is chosen on")
    max_extensions: int = Field(
        4, ge=0, description="how often a rate is added (by a factor of two) while the best is the lowest or highest"
    )
    reference: str | None = Field(None, description="the method whose runs the others' are compared with")
    set: list[str] = Field([], description="settings as for --set, of all runs")
    small: list[str] = Field([], description="settings that --small adds")
    printed: list[Printed] = Field([], description="others' numbers, beside ours")

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_methods(cls, methods: Any) -> Any:
        if isinstance(methods, str):
            methods = [methods]
        if not isinstance(methods, list):
            return methods
        return [
            {"label": entry, "set": [] if entry == ALL else [f"algorithm={entry}"]} if isinstance(entry, str) else entry
            for entry in methods
        ]

    @field_validator("variants", mode="before")
    @classmethod
    def _names_are_variants(cls, variants: Any) -> Any:
        if not isinstance(variants, list):
            return variants
        return [{"variant": entry} if isinstance(entry, str) else entry for entry in variants]

    @model_validator(mode="after")
    def _fits_together(self) -> SweepFile:
        problems = []
        for name, labels in (
            ("variants", [entry.name for entry in self.variants]),
            ("settings", [entry.label for entry in self.settings]),
        ):
            problems += [f"{name}: {twice}" for twice in repeated_labels(labels)]
            if len(labels) > 1 and "" in labels:
                problems.append(f"{name}: each needs a label")
        for seeds in (self.seeds, *(entry.seeds for entry in self.settings)):
            if len(set(seeds)) < len(seeds) or min(seeds, default=0) < 0:
                problems.append("seeds must differ, and be 0 or more")
        for rates in (self.rates, *(entry.rates for entry in self.settings)):
            if min(rates, default=1) <= 0 or len({f"{rate:g}" for rate in rates}) < len(rates):
                problems.append("rates must differ, and be greater than 0")
        if self.tuning_seeds > len(self.seeds):
            problems.append(f"tuning_seeds = {self.tuning_seeds}, and there are {counted(len(self.seeds), 'seed')}")
        if self.recipe is None and not (self.settings and all(entry.recipe for entry in self.settings)):
            problems.append("recipe is missing: give one here, or one to each of settings")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def part_of_a_name(label: str) -> str:
    """Return a label as a part of a folder's name.

    >>> part_of_a_name("fedit, head local")
    'fedit-head-local'
    """
    return re.sub(r"[^\w.+]+", "-", label).strip("-")


def repeated_labels(labels: Sequence[str]) -> list[str]:
    """An error text for each label whose folder another label already has."""
    parts = [part_of_a_name(label).casefold() for label in labels]
    return [
        f"{label!r} is there twice, or another label differs from it only in punctuation: rename one"
        for number, label in enumerate(labels)
        if parts[number] in parts[:number]
    ]


def sweep_names() -> dict[str, str]:
    """Return the sweeps that come with fedsa: name to TOML text, sorted by name."""
    folder = resources.files("fedsa.sweeps")
    texts = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    return {name: texts[name].read_text(encoding="utf-8") for name in sorted(texts)}


def read_sweep(sweep: str, rates: Sequence[float] = (), seeds: Sequence[int] = ()) -> tuple[SweepFile, str]:
    """Return a sweep and its short name.

    Args:
        sweep: a path to a TOML file, or the name of a sweep that comes with fedsa.
        rates: in place of its own; empty: its own.
        seeds: likewise; no more than these are then tuned on.

    Raises:
        UserError: there is no such file or sweep, or it is not TOML; a ConfigError lists all mistakes in it.
    """
    data, name = find_toml(sweep, "sweep", sweep_names())
    file = _parse(data, f"sweep {name}")
    given = {name: list(values) for name, values in (("rates", rates), ("seeds", seeds)) if values}
    own: dict[str, Any] = {
        **given,
        "settings": [entry.model_dump() | {key: [] for key in given} for entry in file.settings],
    }
    if seeds:
        own["tuning_seeds"] = min(len(seeds), file.tuning_seeds)
    return _parse(file.model_dump() | own, f"sweep {name}"), name


def _parse(data: Mapping[str, Any], source: str) -> SweepFile:
    try:
        return SweepFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(mistakes_of(error, SweepFile), source) from None
