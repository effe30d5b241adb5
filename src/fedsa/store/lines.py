"""Files of lines, such as ``metrics.jsonl``: lines are only appended, and the commit point says which bytes count."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

from fedsa.store.commits import Commit
from fedsa.store.files import hash_of, write_atomically, write_error
from fedsa.store.small_files import SmallFiles
from fedsa.texts.words import counted

__all__ = ["METRICS", "SENT", "LinesFile"]

METRICS, SENT = "metrics.jsonl", "sent.jsonl"


@final
class LinesFile:
    """A file of lines that a run's rounds come to.

    Args:
        folder: the run folder.
        name: of the file in it, `METRICS` or `SENT`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path, self._name = folder / name, name
        self._hash = hashlib.sha256()  # of the file, as far as it is written: appending must not read it again

    @property
    def sha256(self) -> str:
        """The hash of all that is written, in hexadecimal digits."""
        return self._hash.hexdigest()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> int:
        """Append lines, and return the file's length in bytes.

        Raises:
            UserError: they cannot be written.
        """
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()
        try:
            with self._path.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                length = file.tell()
        except OSError as error:
            raise write_error(self._path, error) from error
        self._hash.update(text)
        return length

    def read(self, files: SmallFiles, commit: Commit) -> bytes:
        """The lines that a commit wrote; an interruption may have left more.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        size, digest = _committed(commit, self._name)
        content = self._read_all(files, size)
        if files.is_measured and len(content) > size:
            raise files.changed(self._name)
        if hash_of(content[:size]) != digest:
            raise files.changed(self._name)
        return content[:size]

    def go_on(self, files: SmallFiles, commit: Commit) -> None:
        """Check what was written by a commit, and take up its hash, so that lines can be appended.

        Raises:
            RunFolderError: it is missing, or is not what was written.
        """
        self._hash = hashlib.sha256(self.read(files, commit))

    def cut(self, files: SmallFiles, size: int) -> None:
        """Remove what an interruption left after the first ``size`` bytes.

        Raises:
            RunFolderError: there are fewer bytes.
            UserError: it cannot be written.
        """
        content = self._read_all(files, size)
        self._hash = hashlib.sha256(content[:size])
        if len(content) > size or (content and self._path.stat().st_nlink > 1):
            # Written anew, not cut or appended to: the same file may have another name elsewhere (a hard link).
            write_atomically(self._path, content[:size])

    def _read_all(self, files: SmallFiles, size: int) -> bytes:
        """Return all that is there, at least ``size`` bytes."""
        content = files.read_bytes(self._name) if size or self._path.exists() else b""
        if len(content) < size:
            raise files.damaged(self._name, f"{counted(len(content), 'byte')}, {size} were written")
        return content


def _committed(commit: Commit, name: str) -> tuple[int, str]:
    """The bytes of a file of lines that belong to the run, and the hash of these."""
    if name == SENT:
        return commit.progress.sent_bytes, commit.sent
    return commit.progress.metrics_bytes, commit.metrics
