"""The folders that an export writes: each gets its files whole, and an export that was interrupted can be repeated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError

from fedsa.errors import UserError
from fedsa.runs.export.base import BASE
from fedsa.store import write_error
from fedsa.system.sums import file_hash, write_sums
from fedsa.texts.json_text import parsed_json

__all__ = ["Journal", "require_empty", "written_whole"]

_STAGING = ".fedsa-export.partial"
_JOURNAL = ".fedsa-export.jsonl"
_LEFT = {_STAGING, BASE, f".{BASE}.partial"}
"""What an export that was killed may have left: `base_of` knows its own copy of a base."""


def require_empty(target: Path) -> None:
    """Refuse a target that something is in, but for what an interrupted export was writing.

    Raises:
        UserError: it exists and is not an empty folder.
    """
    try:
        _refuse_link(target / _STAGING)
        taken = target.exists() and (not target.is_dir() or {entry.name for entry in target.iterdir()} - _LEFT)
    except OSError as error:
        raise UserError(
            f"{target} cannot be read ({error.strerror}): give --to (in Python `to`) another folder"
        ) from error
    if taken:
        raise UserError(f"{target} exists and is not an empty folder: give --to (in Python `to`) another one")


@final
class Journal:
    """What an export has finished so far: a file beside what it writes, which goes when all is written.

    A folder's files are listed, with their hashes, before they come to their place. So when the export is repeated,
    what it left is known from what is somebody else's.

    Args:
        to: the folder of all.
        whose: what tells this export from any other.

    Raises:
        UserError: another export is not finished there.
    """

    def __init__(self, to: Path, whose: Mapping[str, Any]) -> None:
        self._to, self._path, self._whose = to, to / _JOURNAL, dict(whose)
        self._files: dict[str, dict[str, str]] = {}
        _refuse_link(self._path)
        if self._path.is_file():
            self._read()

    def _read(self) -> None:
        first, *lines = (_table(line) for line in self._path.read_bytes().splitlines() or [b""])
        if not first and not lines:  # killed as it began: nothing had come to its place
            self._path.unlink()
            return
        if first != self._whose:
            raise UserError(
                f"{self._to} holds a part of another export, which was interrupted (its {_JOURNAL} says which): give "
                "--to (in Python `to`) another folder, or delete what is in that one"
            )
        for line in lines:
            if isinstance(line.get("folder"), str) and isinstance(line.get("files"), dict):
                self._files[line["folder"]] = line["files"]

    def is_finished(self, target: Path) -> bool:
        """Say whether a folder was written whole; what else this export left in it is deleted.

        Raises:
            UserError: something is in it that this export did not write.
        """
        listed = self._files.get(self._name(target))
        if target != self._to:
            _refuse_link(target)
        if not listed or not target.is_dir():
            own = {_JOURNAL} if target == self._to else set()
            if own and target.is_dir() and {entry.name for entry in target.iterdir()} <= _LEFT | own:
                return False
            require_empty(target)
            return False
        _refuse_link(target / _STAGING)
        present = {
            path.relative_to(target).as_posix(): path
            for path in target.rglob("*")
            if path.relative_to(target).parts[0] not in _LEFT | {_JOURNAL} and (path.is_symlink() or not path.is_dir())
        }
        for name, path in present.items():
            if path.is_symlink() or not path.is_file() or listed.get(name) != file_hash(path):
                raise UserError(
                    f"{path} is not as the interrupted export wrote it, or was there before: give --to (in Python "
                    f"`to`) another folder, or delete {target}"
                )
        if present.keys() == listed.keys():
            shutil.rmtree(target / _STAGING, ignore_errors=True)
            return True
        for path in present.values():
            path.unlink()
        return False

    def add(self, target: Path, files: Mapping[str, str]) -> None:
        """Note the files of a folder with their hashes, which come to their place next.

        Raises:
            OSError: the journal cannot be written.
        """
        lines = [*([] if self._path.exists() else [self._whose]), {"folder": self._name(target), "files": dict(files)}]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Remove the journal: all is written."""
        self._path.unlink(missing_ok=True)

    def _name(self, target: Path) -> str:
        return target.relative_to(self._to).as_posix()


@contextmanager
def written_whole(target: Path, journal: Journal | None = None) -> Iterator[Path]:
    """Give a folder to write into; its files move to ``target`` once all are there.

    Args:
        target: an empty folder, or none yet.
        journal: told of the files before they move.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left in it.
    """
    staging, made = target / _STAGING, not target.exists()
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        files = write_sums(staging)
        if journal is not None:
            journal.add(target, files)
        for file in sorted(staging.iterdir()):
            file.replace(target / file.name)
        staging.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            with suppress(OSError):
                target.rmdir()
        if isinstance(error, OSError):
            raise write_error(target, error) from error
        raise UserError(f"cannot write {target}: {error}") from error


def _table(line: bytes) -> dict[str, Any]:
    """Return a line of the journal; an empty table where it is cut off or no table."""
    try:
        table = parsed_json(line)
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{path} is a link, and an export writes nothing through links: give --to (in Python `to`) another folder"
        )
