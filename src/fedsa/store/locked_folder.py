"""A folder that one process writes: locked, noticed when it is moved away, and never written through a link."""

from __future__ import annotations

from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from fedsa.errors import RunFolderError
from fedsa.store.files import write_error

__all__ = ["LockedFolder", "entries_of", "is_in_use"]

_LOOKED_AT = 0.5
"""Seconds: longer than `is_in_use` ever has the lock."""


@final
class LockedFolder:
    """A folder that is written by one process at a time.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock")
        self._identity: tuple[int, int] | None = None  # device and inode of the folder that is written

    def acquire(self) -> None:
        """Take the lock. It waits for a moment only: whoever looks whether a run goes on has the lock as long as that.

        Raises:
            RunFolderError: another process has it.
            UserError: the folder cannot be written.
        """
        try:
            self._lock.acquire(timeout=_LOOKED_AT, poll_interval=_LOOKED_AT / 25)
            status = self.path.stat()
            self._identity = (status.st_dev, status.st_ino)
        except Timeout:
            raise RunFolderError(
                f"{self.path} is in use: another fedsa process is writing this run; wait for it, or end it first"
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from error

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        self._lock.release()

    def is_there(self) -> bool:
        """Say whether the folder that was locked is where it was: not moved, deleted or replaced."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        return self._identity in (None, (status.st_dev, status.st_ino))

    def require_there(self) -> None:
        """Refuse to write where another folder, or none, has taken this one's place.

        Raises:
            RunFolderError: it was moved, deleted or replaced.
        """
        if not self.is_there():
            raise RunFolderError(
                f"{self.path} was moved, deleted or replaced while it was being written. What was finished is safe in "
                "it, wherever it is now: put it back, then go on with `fedsa resume` (across machines, start the party "
                "again); if it is gone, start the run again"
            )

    def make(self, place: Path) -> None:
        """Make a folder inside this one. This one itself is never made again: it would be empty beside what was moved.

        Args:
            place: at most two levels below this folder.

        Raises:
            RunFolderError: another folder is in this one's place.
            UserError: it cannot be made.
        """
        self.require_there()
        try:
            if place.parent != self.path:
                place.parent.mkdir(exist_ok=True)
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(place, error) from error

    def refuse_links(self, *places: Path) -> None:
        """Refuse to write and delete through links: they may lead anywhere.

        The folder itself may be reached through one: that is what the user named.

        Args:
            places: folders whose entries must be no links; those that are not there have none.

        Raises:
            RunFolderError: one of the entries is a link.
        """
        for place in places:
            for entry in entries_of(place):
                if entry.is_symlink():
                    raise RunFolderError(
                        f"{entry} is a link, and a run writes and deletes nothing through links: put the file or "
                        "folder itself there, or move the link out of the run folder"
                    )


def is_in_use(folder: Path) -> bool:
    """Whether a process is writing in a folder; of one that may not be looked at that closely, it is taken to be no."""
    if not (folder / ".lock").exists():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def entries_of(folder: Path) -> list[Path]:
    """What is in a folder; nothing, where it is not there."""
    return list(folder.iterdir()) if folder.is_dir() else []
