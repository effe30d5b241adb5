"""A run folder that was just made, and goes again if nothing comes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import final

from fedsa.errors import RunFolderError
from fedsa.store.files import write_error

__all__ = ["NewFolder"]

_FIRST_FILES = {"recipe.toml", ".recipe.toml.partial", ".lock"}  # all that is written before a run begins


@final
class NewFolder:
    """A folder for a new run, made with the folders around it.

    Args:
        path: the folder.

    Raises:
        RunFolderError: there is a run already, or something else.
        UserError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        if (path / "recipe.toml").exists():
            raise RunFolderError(
                f"{path} holds a run already: `fedsa resume {path}` continues it, --out (in Python `out`) takes "
                "another folder"
            )
        # A run that was killed before it began may have left its first files.
        if path.exists() and (not path.is_dir() or not _is_new(path)):
            raise RunFolderError(f"{path} is not an empty folder: give --out (in Python `out`) a new one")
        self.is_discarded = False
        self._path = path
        self._made = [place for place in (path, *path.parents) if not place.exists()]  # innermost first
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error

    def discard(self, release: Callable[[], None]) -> None:
        """Remove the folder and those that were made around it, if there is nothing in it but a run's first files.

        Args:
            release: gives back the folder's lock.
        """
        if not _is_new(self._path):
            return
        self.is_discarded = True
        with suppress(OSError):
            (self._path / "recipe.toml").unlink(missing_ok=True)
            release()
            for entry in list(self._path.iterdir()):
                entry.unlink()
            for place in self._made:
                place.rmdir()


def _is_new(path: Path) -> bool:
    return {entry.name for entry in path.iterdir()} <= _FIRST_FILES
