"""The secret of one machine that noise is made from, so that nobody else can work the noise out."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fedsa.errors import RunFolderError
from fedsa.store.files import read_file, remove, write_error
from fedsa.texts.words import counted

__all__ = ["forget_secret", "secret_in"]

_NAME, _BYTES = "privacy.secret", 32


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
                file.write(secrets.token_bytes(_BYTES))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise write_error(path, error) from error
    content = read_file(path)
    if len(content) != _BYTES:
        raise RunFolderError(
            f"{path} is damaged ({counted(len(content), 'byte')}, {_BYTES} were written): put it back from a copy"
        )
    return content


def forget_secret(folder: Path) -> None:
    """Remove the secret of a folder, when no noise is needed any more."""
    remove(folder / _NAME)
