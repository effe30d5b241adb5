"""Files of a run: written whole or not at all; tensors as safetensors whose equal states are equal bytes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsa.errors import RunFolderError, UserError
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMAT",
    "by_key",
    "by_name",
    "load_tensors",
    "make_folder",
    "packed",
    "remove",
    "save_tensors",
    "write_atomically",
    "write_error",
]

FORMAT = 3
"""The version of the run folder's layout."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the process dies on the way.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        try:
            temporary.unlink(missing_ok=True)
        finally:
            raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> UserError:
    """Return what to tell the user when a file cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full: {path} could not be written. What was finished is safe: free some space, then repeat "
            "the command (a run that has begun goes on with `fedsa resume`)"
        )
    return UserError(
        f"cannot write {path}: {error.strerror or error}; make its folder writable, or take another folder"
    )


def by_name(tensors: State) -> dict[str, Tensor]:
    """Return the tensors under their keys' texts."""
    return {str(key): tensor for key, tensor in tensors.items()}


def by_key(tensors: Mapping[str, Tensor]) -> dict[Key, Tensor]:
    """Return tensors that `by_name` named under their keys."""
    return {Key.parse(name): tensor for name, tensor in tensors.items()}


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there.

    Raises:
        UserError: the disk is full, or the folder above cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        UserError: its folder cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def packed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Return the content of a file of named tensors, and of what is to be known about them."""
    # One metadata entry: the order of several is not fixed, and equal states must give equal bytes.
    metadata = {"fedsa": json.dumps({"format": FORMAT, **about}, sort_keys=True)}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors, and what is to be known about them.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    make_folder(path.parent)
    write_atomically(path, packed(tensors, about))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `packed` packed.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        # Not by safe_open: a Ctrl-C inside it comes out as a damaged file.
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(content), json.loads(header["__metadata__"]["fedsa"])
    except FileNotFoundError:
        raise RunFolderError(f"checkpoint {path} is missing: restore it from a copy, or start the run again") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"checkpoint {path} is unreadable ({error}): restore it from a copy, or start the run again"
        ) from None
