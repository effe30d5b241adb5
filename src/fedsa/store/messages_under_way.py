"""Messages that outlive a round: they are written before the round exists, and go when they have been used."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar, final

from fedsa.errors import ProtocolError, RunFolderError
from fedsa.store.files import read_file, remove, write_atomically, write_error

__all__ = ["MessagesUnderWay"]

T = TypeVar("T")


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

    def read(self, whose: str, round: int, decoded: Callable[[bytes], T]) -> T:
        """Return a message that was kept.

        Args:
            whose: the client or the site.
            round: in which it was asked.
            decoded: makes of the bytes what is wanted; it raises ProtocolError where they are no whole message.

        Raises:
            RunFolderError: it is not there any more, or damaged.
        """
        path = self._place(whose, round)
        try:
            return decoded(read_file(path))
        except (OSError, ProtocolError) as error:
            why = error.strerror or error if isinstance(error, OSError) else error
            raise RunFolderError(
                f"{path} cannot be read ({why}): put it back from a copy, or start the run again"
            ) from None

    def find(self, whose: str, round: int, decoded: Callable[[bytes], T]) -> T | None:
        """Return a message if it was kept.

        Raises:
            RunFolderError: it is damaged.
        """
        return self.read(whose, round, decoded) if self._place(whose, round).exists() else None

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
