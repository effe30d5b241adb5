"""The secret of one machine that noise is made from, so that nobody else can work the noise out."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from fedsa.errors import RunFolderError
from fedsa.store.files import read_file, remove, write_error

__all__ = ["forget_secret", "secret_in"]

_NAME, _BYTES = "privacy.secret", 32  # and as many of its hash


def secret_in(folder: Path) -> bytes:
    """Return the secret in a folder, which is drawn there the first time; only its owner can read the file.

    It is kept so that a message that is made again after a crash has the same noise: two noises on the same numbers
    tell more than one.

    Args:
        folder: is there.

    Raises:
        RunFolderError: the file is not one that was written here.
        UserError: it cannot be written.
    """
    path = folder / _NAME
    if not path.exists():
        draft = folder / f".{_NAME}.partial"
        try:
            remove(draft)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                secret = secrets.token_bytes(_BYTES)
                file.write(secret + hashlib.sha256(secret).digest())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise write_error(path, error) from error
    try:
        content = read_file(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror or error}): put it back from a copy") from None
    secret, digest = content[:_BYTES], content[_BYTES:]
    # One of before there were hashes is as long as the secret.
    if len(secret) < _BYTES or digest not in (b"", hashlib.sha256(secret).digest()):
        raise RunFolderError(f"{path} is damaged (its content does not fit its hash): put it back from a copy")
    return secret


def forget_secret(folder: Path) -> None:
    """Remove the secret of a folder, when no noise is needed any more."""
    remove(folder / _NAME)
