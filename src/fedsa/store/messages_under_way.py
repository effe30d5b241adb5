"""Messages that outlive a round: they are written before the round exists, and go when they have been used."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import final

from fedsa.errors import RunFolderError
from fedsa.store.files import read_file, remove, write_atomically, write_error

__all__ = ["MessagesUnderWay"]


@final
class MessagesUnderWay:
    """Messages to or from clients that still train, one file each, in a run folder.

    What is in a message says whether it is whole: it has a digest of its own.

    Args:
        run: the run folder. They are in a folder in it, ``under-way``, which is there as long as there are any.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "under-way"

    def keep(self, whose: str, round: int, data: bytes) -> None:
        """Write a message; it is safe when this returns.

        Args:
            whose: the client or the site.
            round: in which it was asked.
            data: the message.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        try:
            self._path.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self._path, error) from error
        write_atomically(self._place(whose, round), data)

    def read(self, whose: str, round: int) -> bytes:
        """Return a message that was kept.

        Raises:
            RunFolderError: it is not there any more.
        """
        path = self._place(whose, round)
        try:
            return read_file(path)
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be read ({error.strerror or error}): put it back from a copy, or start the run again"
            ) from None

    def find(self, whose: str, round: int) -> bytes | None:
        """Return a message if it was kept."""
        return self.read(whose, round) if self._place(whose, round).exists() else None

    def only(self, needed: Collection[tuple[str, int]]) -> None:
        """Remove all messages but those of some clients or sites and rounds, and what half a write left.

        Raises:
            UserError: one cannot be removed.
        """
        stay = {self._place(whose, round) for whose, round in needed}
        for path in [*self._path.glob("*.message"), *self._path.glob(".*.partial")]:
            if path not in stay:
                remove(path)
        if not stay:
            with contextlib.suppress(OSError):  # it is not there, or has something of somebody else in it
                self._path.rmdir()

    def _place(self, whose: str, round: int) -> Path:
        return self._path / f"{round:06d}-{hashlib.sha256(whose.encode()).hexdigest()[:32]}.message"
