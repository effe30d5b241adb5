"""Unpack wanted files of a wheel or sdist, and hash them on the way. Nothing is imported or built."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fedsa.errors import FetchError
from fedsa.packages.catalogue import Part

__all__ = ["CHUNK_BYTES", "DISK_FULL", "TooLongError", "copy_hashed", "unpack"]

CHUNK_BYTES = 1 << 20
"""How much is read at once."""

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
"""The errors of a full disk, or of a used-up quota."""


class TooLongError(Exception):
    """A file is longer than the one that was asked for; the source would send the same file again."""


def unpack(part: Part, archive: Path, folder: Path) -> None:
    """Write the part's members and ``part.json`` into a new folder.

    Raises:
        FetchError: a member is not in the archive.
    """
    folder.mkdir()
    files: dict[str, dict[str, Any]] = {}
    with archive.open("rb") as stream:
        for member, content in _members(stream, archive.name, "", part.members):
            file = PurePosixPath(member).name
            with (folder / file).open("wb") as target:
                digest, size = copy_hashed(iter(partial(content.read, CHUNK_BYTES), b""), target)
            files[file] = {"bytes": size, "sha256": digest}
    missing = [member for member in part.members if PurePosixPath(member).name not in files]
    if missing:
        raise FetchError(f"{part.filename} does not hold {', '.join(missing)}; please report this to fedsa")
    record = {
        "name": part.name,
        "distribution": part.distribution,
        "version": part.version,
        "license": part.license,
        "archive_sha256": part.sha256,
        "files": files,
    }
    (folder / "part.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _members(stream: IO[bytes], name: str, prefix: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the wanted files of an archive, each with its path and content, going into archives within it."""
    for path, content in _walk(stream, name):
        if prefix + path in wanted:
            yield prefix + path, content
        elif any(member.startswith(f"{prefix}{path}/") for member in wanted):
            yield from _members(content, path, f"{prefix}{path}/", wanted)


def _walk(stream: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes]]]:
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(stream) as archive:
            for path in archive.namelist():
                with archive.open(path) as content:
                    yield path, content
    else:
        with tarfile.open(fileobj=stream) as tar:
            for member in tar:
                extracted = tar.extractfile(member) if member.isreg() else None
                if extracted is not None:
                    yield member.name, extracted


def copy_hashed(chunks: Iterator[bytes], target: IO[bytes], limit: float = math.inf) -> tuple[str, int]:
    """Write chunks to a file; return their sha256 and their size in bytes.

    Raises:
        TooLongError: there are more bytes than ``limit``; the rest is not read.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += target.write(chunk)
        if size > limit:
            raise TooLongError(f"it is longer than the {limit:,} bytes of the right file")
    return digest.hexdigest(), size
