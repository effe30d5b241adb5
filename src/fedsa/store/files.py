"""Files of a run: written whole or not at all, and never through a link; read only if they are what was written.

A file of tensors is a safetensors file whose equal states are equal bytes. Its metadata begin with the SHA-256 of the
file (taken with zeros in the place of the hash), and say whose it is: of which run, client and round.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsa.errors import RunFolderError, UserError
from fedsa.texts.json_text import parsed_json
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMAT",
    "by_key",
    "by_name",
    "hash_of",
    "load_tensors",
    "packed",
    "read_file",
    "remove",
    "save_tensors",
    "sealed",
    "write_atomically",
    "write_error",
]

FORMAT = 4
"""The version of the run folder's layout."""

_HEAD = b'{"__metadata__":{"fedsa":"'  # how the header of a file of tensors begins; the hash comes right after it
_PLACE = 8 + len(_HEAD)
_NO_HASH = b"0" * 64
_MEND = "put it back from a copy, or start the run again"


def hash_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        OSError: it is missing, cannot be read, or is not a regular file (a pipe would never end).
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.read_bytes()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the process dies on the way.

    A link of that name is replaced; what it points to is left alone.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        try:
            file = temporary.open("xb")
        except FileExistsError:  # left by an interruption
            temporary.unlink()
            file = temporary.open("xb")
        with file:
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
    """The error where a file cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full: {path} could not be written. What was finished is safe: free some space, then repeat "
            "the command (a run that has begun goes on with `fedsa resume`; a party across machines is started again)"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return UserError(
            f"cannot write {path}: its folder is not there (any more); put it back, then repeat the command (a run "
            "that has begun goes on with `fedsa resume`; a party across machines is started again)"
        )
    return UserError(
        f"cannot write {path}: {error.strerror or error}; make its folder writable, or take another folder"
    )


def by_name(tensors: State) -> dict[str, Tensor]:
    """Return the tensors under their keys' texts."""
    return {str(key): tensor for key, tensor in tensors.items()}


def by_key(tensors: Mapping[str, Tensor]) -> dict[Key, Tensor]:
    """Return tensors that `by_name` named under their keys.

    Raises:
        RunFolderError: a name is none of a tensor's.
    """
    try:
        return {Key.parse(name): tensor for name, tensor in tensors.items()}
    except ValueError as error:
        raise RunFolderError(f"a file of tensors has a name that fedsa does not write ({error}): {_MEND}") from None


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
    """Return the content of a file of named tensors, and of what is to be known about them; its hash is still zeros."""
    # One metadata entry: the order of several is not fixed, and equal states must give equal bytes.
    metadata = {"fedsa": _NO_HASH.decode() + json.dumps({"format": FORMAT, **about}, sort_keys=True)}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def sealed(content: bytes) -> bytes:
    """The bytes of `packed`, with their hash in its place."""
    if content[8:_PLACE] != _HEAD or content[_PLACE : _PLACE + 64] != _NO_HASH:
        raise RuntimeError("this version of safetensors does not put the metadata first: use one of constraints.txt")
    return b"".join((content[:_PLACE], hash_of(content).encode(), memoryview(content)[_PLACE + 64 :]))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors, and what is to be known about them.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    write_atomically(path, sealed(packed(tensors, about)))


def load_tensors(path: Path, whose: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that `packed` packed, in the order of their names.

    Args:
        path: the file.
        whose: what must stand in it: ``run``, and ``client`` and ``round`` where it is one's.

    Raises:
        RunFolderError: the file is missing, damaged, or somebody else's.
    """
    try:
        # Not by safe_open: a Ctrl-C inside it comes out as a damaged file.
        content = read_file(path)
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: {_MEND}") from None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror or error}): {_MEND}") from None
    _check_hash(path, content)
    try:
        header = parsed_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about: dict[str, Any] = parsed_json(header["__metadata__"]["fedsa"][64:])
        # The library gives another order at each call, and a trainer adds up in the order that it is given.
        tensors = dict(sorted(load(content).items()))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): {_MEND}") from None
    other = {name: about.get(name) for name, value in (whose or {}).items() if about.get(name) != value}
    if other:
        raise RunFolderError(f"{path} is {_told(about, other)}: {_MEND}")
    return tensors, about


def _check_hash(path: Path, content: bytes) -> None:
    """Refuse a file of tensors that is not as it was written."""
    digest = hashlib.sha256(content[:_PLACE])
    digest.update(_NO_HASH)
    digest.update(memoryview(content)[_PLACE + 64 :])
    if content[8:_PLACE] != _HEAD or content[_PLACE : _PLACE + 64] != digest.hexdigest().encode():
        raise RunFolderError(f"{path} is damaged (its content does not fit the hash in it): {_MEND}")


def _told(about: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say whose a file is that is not where it belongs."""
    if "run" in other:
        return "the file of another run"
    named = [f"{name} {about[name]!r}" for name in ("client", "round") if about.get(name) is not None]
    return f"the file of {', '.join(named) or 'something else'}"
