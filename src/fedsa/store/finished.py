"""A finished run: what every verb reads a run folder through once the run is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from fedsa.errors import RunFolderError
from fedsa.recipe import OBJECTS, Recipe
from fedsa.store.run_folder import RunFolder, recipe_of
from fedsa.texts.json_text import parsed_json

__all__ = ["FinishedRun", "check_base", "label_names_of"]


class _Sent(BaseModel):
    """What must stand in a row of the summary's ``sharing_plan``."""

    model_config = ConfigDict(strict=True, extra="allow")
    factor: str
    trained: bool
    sent: bool


class _Summary(BaseModel):
    """What must stand in ``summary.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    algorithm: str
    rounds: NonNegativeInt
    metric: str = "accuracy"
    chosen_round: NonNegativeInt = 0
    test: dict[str, Any]
    test_final: dict[str, Any]
    per_client: dict[str, dict[str, Any]]
    clients: NonNegativeInt = 0
    source: str = ""
    variant: str = ""
    evaluated_after: str = "aggregate"
    sharing_plan: list[_Sent] = []


class _Client(BaseModel):
    """What must stand in an entry of ``clients.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    folder: str
    train_examples: NonNegativeInt = 0
    validation_examples: NonNegativeInt = 0
    test_examples: NonNegativeInt = 0
    labels: dict[str, NonNegativeInt] = {}
    held_out: bool = False


class _Line(BaseModel):
    """What must stand in a line of ``metrics.jsonl``."""

    model_config = ConfigDict(strict=True, extra="allow")
    round: NonNegativeInt
    client: str
    train: dict[str, Any] | None = None


class _Sample(BaseModel):
    """What must stand in an entry of ``samples.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    client: str
    prompt: str
    written: str
    right: list[str]


@dataclass(frozen=True)
class FinishedRun:
    """A run that is finished. What is read of it is checked: it is what was written, and of this run.

    Attributes:
        folder: its folder, open for reading.
        summary: what ``summary.json`` holds.
        clients: what ``clients.json`` holds.
    """

    folder: RunFolder
    summary: dict[str, Any]
    clients: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Open a finished run.

        Raises:
            RunFolderError: there is no such run, it is not finished, or a file is damaged or somebody else's.
        """
        folder = RunFolder.open(path)
        if not folder.is_measured:
            raise RunFolderError(f"{path} is not finished: `fedsa resume {path}` takes it to the end")
        summary = folder.read_json("summary.json")
        _check(folder, "summary.json", _Summary, summary)
        clients = folder.read_json("clients.json")
        _check(folder, "clients.json", dict[str, _Client], clients)
        return cls(folder, summary, clients)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, as it was resolved.

        Raises:
            RunFolderError: it was changed.
            ConfigError: it does not fit this version of fedsa.
        """
        return recipe_of(self.folder)

    @property
    def label_names(self) -> list[str]:
        """The names of the classes, in the order of their numbers; none where the task has no classes."""
        return label_names_of(self.clients)

    @property
    def base_fingerprint(self) -> str | None:
        """The hash of the base model as it was loaded; None: the run is of a version that did not keep it."""
        progress = self.folder.progress()
        return None if progress is None else progress.fingerprints.get("base_as_loaded")

    def environment(self) -> dict[str, Any]:
        """The contents of ``environment.json``.

        Raises:
            RunFolderError: it is damaged.
        """
        environment: dict[str, Any] = self.folder.read_json("environment.json")
        _check(self.folder, "environment.json", dict[str, Any], environment)
        return environment

    def samples(self) -> list[dict[str, Any]]:
        """Return the rows that the run kept with what the model wrote; none, where it kept none.

        Raises:
            RunFolderError: the file is damaged.
        """
        if not self.folder.has("samples.json"):
            return []
        samples: list[dict[str, Any]] = self.folder.read_json("samples.json")
        _check(self.folder, "samples.json", list[_Sample], samples)
        return samples

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``metrics.jsonl``.

        Raises:
            RunFolderError: it is damaged.
        """
        for number, text in enumerate(self.folder.read_metrics().splitlines(), start=1):
            name = f"metrics.jsonl, line {number}"
            try:
                line = parsed_json(text)
            except ValueError as error:
                raise _unreadable(self.folder, name, error) from None
            _check(self.folder, name, _Line, line)
            yield line

    def check_base(self, fingerprint: str, which: Literal["base_as_loaded", "base_model"] = "base_as_loaded") -> None:
        """Refuse another base model than the run's.

        Args:
            fingerprint: of the base.
            which: as it was loaded, or with the run's adapter in it.

        Raises:
            RunFolderError: its weights are not those of the run. Bases in 4 or 8 bits are not compared.
        """
        check_base(self.folder, self.recipe, fingerprint, which)


def label_names_of(clients: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the classes, in the order of their numbers, by what ``clients.json`` holds."""
    return list(next(iter(clients.values()), {}).get("labels", {}))


def check_base(
    folder: RunFolder,
    recipe: Recipe,
    fingerprint: str,
    which: Literal["base_as_loaded", "base_model"] = "base_as_loaded",
) -> None:
    """Refuse another base model than a run's.

    Args:
        folder: the run's.
        recipe: the run's.
        fingerprint: of the base.
        which: as it was loaded, or with the run's adapter in it.

    Raises:
        RunFolderError: its weights are not those of the run. Bases in 4 or 8 bits are not compared.
    """
    progress = folder.progress()
    if recipe.model.quantization or progress is None:
        return
    if progress.fingerprints.get(which) != fingerprint:
        named = "" if recipe.model.path == OBJECTS else f" ({recipe.model.path})"
        raise RunFolderError(
            f"{folder.path}: the base model's weights{named} are not those that the run was trained on, so "
            "its adapters do not fit them: put the model back as it was, or give it as it was before the run"
        )


def _check(folder: RunFolder, name: str, form: Any, data: Any) -> None:
    """Refuse a file whose content has not the form that this version of fedsa writes."""
    try:
        TypeAdapter(form).validate_python(data)
    except (ValidationError, RecursionError) as error:
        raise _unreadable(folder, name, error) from None


def _unreadable(folder: RunFolder, name: str, error: Exception) -> RunFolderError:
    if isinstance(error, ValidationError):
        first, *_ = error.errors(include_url=False, include_input=False)
        what = f"{'.'.join(str(part)[:40] for part in first['loc'])}: {first['msg']}"
    else:
        what = str(error)
    return RunFolderError(
        f"{folder.path / name} has not the form that this version of fedsa writes ({what:.300}): use the version that "
        f"{folder.path / 'environment.json'} names, or start the run again"
    )
