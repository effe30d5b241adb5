"""A run as far as it has come: read beside the process that writes it, from its small files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsa.errors import RunFolderError
from fedsa.recipe import Recipe
from fedsa.store.commits import Commit, read_commit
from fedsa.store.forms import CLIENTS_FORM, ENVIRONMENT_FORM, check_form, lines_of
from fedsa.store.lines import METRICS, LinesFile
from fedsa.store.run_folder import recipe_of
from fedsa.store.small_files import SmallFiles
from fedsa.store.states import Progress

__all__ = ["BegunRun"]

_TRIES = 5  # to read all files of one and the same round


@dataclass(frozen=True)
class BegunRun:
    """A run that has begun, and may go on while it is looked at. All of it is of one finished round.

    Attributes:
        path: its folder.
        recipe: the recipe; resolved, once there is progress.
        recipe_text: the same as text.
        progress: how far the run is; None: before its first commit.
        is_measured: whether it is finished: there is a summary.
        clients: what ``clients.json`` holds; empty before the first commit, as all that follows.
        environment: what ``environment.json`` holds.
        lines: those of ``metrics.jsonl``.
    """

    path: Path
    recipe: Recipe
    recipe_text: str
    progress: Progress | None = None
    is_measured: bool = False
    clients: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, path: Path) -> BegunRun:
        """Read a run folder. Files of tensors are not looked at.

        Raises:
            RunFolderError: there is no run yet, or a file is damaged or of another run.
            ConfigError: its recipe does not fit this version of fedsa.
        """
        if not (path / "recipe.toml").is_file():
            raise RunFolderError(f"{path} is not a run folder (no recipe.toml in it)")
        for _ in range(_TRIES):
            commit = read_commit(path)
            try:
                return cls._as_of(path, commit)
            except RunFolderError:
                if read_commit(path) == commit:  # else a round was finished while its files were read
                    raise
        return cls._as_of(path, read_commit(path))

    @classmethod
    def _as_of(cls, path: Path, commit: Commit | None) -> BegunRun:
        files = SmallFiles(path)
        if commit is not None:
            files.take(commit.files)
        recipe, text = recipe_of(files), files.recipe_text()
        if commit is None:
            return cls(path, recipe, text)
        clients, environment = files.read_json("clients.json"), files.read_json("environment.json")
        check_form(files, "clients.json", CLIENTS_FORM, clients)
        check_form(files, "environment.json", ENVIRONMENT_FORM, environment)
        lines = tuple(lines_of(files, LinesFile(path, METRICS).read(files, commit).decode()))
        return cls(path, recipe, text, commit.progress, files.is_measured, clients, environment, lines)
