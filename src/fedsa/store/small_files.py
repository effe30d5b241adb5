"""The small text files of a run folder: written whole, and read only if they are what was written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsa.errors import RunFolderError
from fedsa.store.commits import read_commit
from fedsa.store.files import hash_of, read_file, write_atomically
from fedsa.store.states import Progress
from fedsa.texts.json_text import parsed_json

__all__ = ["MEASURED", "SEAL", "SUMMARY", "SmallFiles"]

SUMMARY = "summary.json"
MEASURED = (SUMMARY, "samples.json")
"""What is written when all rounds are done, and can be made again."""

SEAL = "# sha256 of the lines above, so that a change is noticed: "
"""How the last line of a run folder's recipe begins; a recipe of the user's own has none."""


class SmallFiles:
    """A run folder's text files. Their hashes stand in the commit point, but for the recipe's, which stands in it.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, str] = {}  # the hash of each small file of the run; two while one is being replaced

    def take(self, files: Mapping[str, str]) -> None:
        """Take up which small files belong to the run, and the hash of each, as a commit point names them."""
        self._files = dict(files)

    def has(self, name: str) -> bool:
        """Whether a small file belongs to the run."""
        return name in self._files

    @property
    def is_measured(self) -> bool:
        """Whether there is a summary, by the commit point."""
        return self.has(SUMMARY)

    def progress(self) -> Progress | None:
        """Return how far the run is, or None before its first commit.

        Raises:
            RunFolderError: it is damaged, or of another format version.
        """
        commit = read_commit(self.path)
        return None if commit is None else commit.progress

    def finished(self, rounds: int) -> dict[str, Any] | None:
        """Return the summary if all ``rounds`` are done and measured, else None: what is lost is measured again."""
        commit = read_commit(self.path)
        if commit is None or commit.progress.round != rounds or SUMMARY not in commit.files:
            return None
        try:
            read = {name: self.read_json(name) for name in MEASURED if self.has(name)}
        except RunFolderError:
            return None
        summary: dict[str, Any] = read[SUMMARY]
        return summary

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run, atomically; the next commit point has its hash."""
        content = text.encode()
        write_atomically(self.path / name, content)
        self._files[name] = hash_of(content)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the run, atomically."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_table(self, name: str, table: Mapping[str, Any]) -> None:
        """Write a JSON file of the run that has an entry for every client, atomically; each on a line of its own."""
        self.write_text(name, _table_text(table))

    def expect_table(self, name: str, table: Mapping[str, Any]) -> None:
        """Take a file for what it should be also if it holds this table: it is written after the next commit."""
        self._files[name] = f"{self._files[name]} {hash_of(_table_text(table).encode())}"

    def write_recipe(self, recipe: str) -> None:
        """Write ``recipe.toml``, with its hash in a last line: it is there before any commit point."""
        self.write_text("recipe.toml", f"{recipe}{SEAL}{hash_of(recipe.encode())}\n")

    def recipe_text(self) -> str:
        """Return the recipe, as `write_recipe` was given it.

        Raises:
            RunFolderError: it is missing or was changed.
        """
        text, _, seal = self.read_text("recipe.toml").rpartition(SEAL)
        if seal.strip() != hash_of(text.encode()):
            raise self.changed("recipe.toml")
        return text

    def check_hashes(self) -> None:
        """Read all files of the run but those that can be made again.

        Raises:
            RunFolderError: one is missing, or is not what was written.
        """
        for name in self._files:
            if name not in MEASURED:
                self.read_bytes(name)
        self.recipe_text()

    def read_text(self, name: str) -> str:
        """Return a small text file of the run.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        try:
            return self.read_bytes(name).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(name, error) from None

    def read_json(self, name: str) -> Any:
        """The contents of a JSON file of the run.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        try:
            return parsed_json(self.read_text(name))
        except ValueError as error:
            raise self.damaged(name, error) from None

    def check_file(self, name: str) -> Path:
        """Return the path of a small file of the run, for others to read.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        self.read_bytes(name)
        return self.path / name

    def read_bytes(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        try:
            content = read_file(self.path / name)
        except FileNotFoundError:
            raise RunFolderError(f"{self.path / name} is missing: {self._mend(name)}") from None
        except OSError as error:
            raise self.damaged(name, error.strerror or error) from None
        if hash_of(content) not in self._files.get(name, hash_of(content)).split():
            raise self.changed(name)
        return content

    def changed(self, name: str) -> RunFolderError:
        """The error to raise for a file that is not what was written."""
        return RunFolderError(
            f"{self.path / name} was changed after it was written, or is of another run: {self._mend(name)}"
        )

    def damaged(self, name: str, why: object) -> RunFolderError:
        """The error to raise for a file that cannot be read."""
        return RunFolderError(f"{self.path / name} is damaged ({why}): {self._mend(name)}")

    def _mend(self, name: str) -> str:
        if name in MEASURED:
            return f"`fedsa resume {shlex.quote(str(self.path))}` measures the finished run again and writes it anew"
        return "put it back as it was from a copy, or start a new run"


def _table_text(table: Mapping[str, Any]) -> str:
    """A JSON object with each entry on a line of its own."""
    lines = [f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(table[key], ensure_ascii=False)}" for key in table]
    return "{\n" + ",\n".join(lines) + "\n}\n"
