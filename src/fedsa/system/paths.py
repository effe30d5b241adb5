"""Paths that a user gives, and what the operating system says about them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fedsa.errors import UserError
from fedsa.texts.words import brief

__all__ = ["is_about_files", "local_path", "refuse_unwritable", "told"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_ABOUT_FILES = _FULL | {
    errno.EACCES,
    errno.EBUSY,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENFILE,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def local_path(path: str | Path, what: str) -> Path:
    """Return a path whose ``~`` is the home folder. Nothing needs to be there.

    Args:
        path: as the user gave it.
        what: the setting or option, for messages.

    Raises:
        UserError: no file can have that path: it is too long, has a NUL in it, or names the home of nobody.
    """
    try:
        place = Path(path).expanduser()
        place.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return place
    except RuntimeError:  # expanduser's
        raise UserError(f"{what}: {brief(str(path))} begins with ~ and the name of no user: write the folder") from None
    except ValueError:
        raise UserError(
            f"{what}: {brief(str(path))} has a character that no path can have (such as NUL): remove it"
        ) from None
    except OSError as error:
        raise UserError(f"{what}: {brief(str(path))} cannot be a path: {error.strerror}") from None
    return place


def refuse_unwritable(path: Path, what: str, *, folder: bool = True) -> None:
    """Refuse a target that cannot be made, before the work that it is for; nothing is made.

    Args:
        path: a file or folder that is to be made, or to be written again.
        what: the option, for messages.
        folder: it is to be a folder.

    Raises:
        UserError: a file is where a folder has to be, or the other way round; or it may not be written.
    """
    if path.is_dir() != folder and path.exists():
        raise UserError(f"{what} {path}: this is a {'file' if folder else 'folder'}; give another name")
    place = path if path.exists() else next((each for each in path.parents if each.exists()), Path())
    if place != path and not place.is_dir():
        raise UserError(f"{what} {path}: {place} is a file, not a folder; give another name")
    if not folder and place not in (path, path.parent):
        raise UserError(f"{what} {path}: there is no folder {path.parent}; make it, or give another name")
    if not os.access(place, os.W_OK):
        raise UserError(f"{what} {path}: {place} cannot be written; give another place")


def is_about_files(error: OSError) -> bool:
    """Whether an error comes from the file system, not from the program."""
    return error.errno in _ABOUT_FILES


def told(error: OSError) -> str:
    """The message for the user about an error that `is_about_files`."""
    where = f": {error.filename}" if error.filename else ""
    if error.errno in _FULL:
        return f"the disk is full{where}; free some space, then repeat the command"
    return f"a file or folder cannot be used ({error.strerror or error}){where}; correct that, then repeat the command"
