"""The path that a recipe gives for its data: here, or a name on the hub."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from fedsa.data.reading.formats import is_known
from fedsa.errors import DataError

__all__ = ["expanded", "is_local"]


def expanded(path: str) -> Path:
    """Return the path with ``~`` replaced; unlike Path.expanduser it leaves the ``~`` of an unknown user as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_local(path: str) -> bool:
    """Return whether ``path`` exists here; false means that it can only be a name on the hub.

    Raises:
        DataError: it does not exist and looks like a path, not like a name on the hub.
    """
    place = expanded(path)
    if place.exists():
        return True
    hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path) is not None
    if hub_name and not is_known(place) and not ("/" in path and place.parent.is_dir()):
        return False
    raise DataError(f"no file or folder {path}{_near_files(place)}")


def _near_files(place: Path) -> str:
    folder = place.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    missing = place.relative_to(folder).parts[0] if place != folder else ""
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(missing, entries, n=3)
    if close:
        return f"; in {folder} there is {', '.join(close)}"
    if not entries:
        return f"; {folder} is empty"
    shown = ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    return f"; {folder} has {shown}"
