"""``SHA256SUMS``: the hashes of the files in a folder that others may carry away, as ``sha256sum -c`` reads them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["SUMS", "changed_file", "file_hash", "write_sums"]

SUMS = "SHA256SUMS"
"""The name of the list in its folder."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file of any size, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> dict[str, str]:
    """List all files that are in a folder and in those within; it is the last file to be written there.

    Returns:
        The hash of each file by its name in the folder; the list's own too.

    Raises:
        OSError: it cannot be written.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    hashes = {name: file_hash(path) for name, path in sorted(files.items()) if name != SUMS}
    with (folder / SUMS).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in hashes.items())
        file.flush()
        os.fsync(file.fileno())
    return {**hashes, SUMS: file_hash(folder / SUMS)}


def changed_file(folder: Path, names: Iterable[str] | None = None) -> Path | None:
    """Return the first file that is not as it was when the folder was listed, or is not in the list; None: none is.

    Args:
        folder: a folder without a list is of a version that wrote none, and is taken as it is.
        names: of the files to look at; None: all that are listed.

    Raises:
        OSError: a file cannot be read.
    """
    path = folder / SUMS
    if not path.is_file():
        return None
    lines = [_LINE.fullmatch(line) for line in path.read_bytes().decode(errors="replace").split("\n")[:-1]]
    listed = {line[2]: line[1] for line in lines if line is not None}
    strange = [name for name in listed if name.startswith(("/", "\\")) or ".." in Path(name).parts]
    if strange or len(listed) < len(lines) or not path.read_bytes().endswith(b"\n"):
        return path
    for name in sorted(listed) if names is None else names:
        if name not in listed:
            return path  # also where a damaged list names it otherwise
        if not (folder / name).is_file() or file_hash(folder / name) != listed[name]:
            return folder / name
    return None
