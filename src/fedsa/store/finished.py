"""A finished run: what every verb reads a run folder through once the run is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedsa.errors import RunFolderError
from fedsa.recipe import OBJECTS, Recipe
from fedsa.store.forms import CLIENTS_FORM, ENVIRONMENT_FORM, SAMPLES_FORM, SUMMARY_FORM, check_form, lines_of
from fedsa.store.run_folder import RunFolder, recipe_of

__all__ = ["FinishedRun", "check_base", "label_names_of"]


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
        check_form(folder, "summary.json", SUMMARY_FORM, summary)
        clients = folder.read_json("clients.json")
        check_form(folder, "clients.json", CLIENTS_FORM, clients)
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
        check_form(self.folder, "environment.json", ENVIRONMENT_FORM, environment)
        return environment

    def samples(self) -> list[dict[str, Any]]:
        """Return the rows that the run kept with what the model wrote; none, where it kept none.

        Raises:
            RunFolderError: the file is damaged.
        """
        if not self.folder.has("samples.json"):
            return []
        samples: list[dict[str, Any]] = self.folder.read_json("samples.json")
        check_form(self.folder, "samples.json", SAMPLES_FORM, samples)
        return samples

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``metrics.jsonl``.

        Raises:
            RunFolderError: it is damaged.
        """
        yield from lines_of(self.folder, self.folder.read_metrics())

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
