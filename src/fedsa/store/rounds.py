"""Names of files that hold what one round left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedsa.errors import RunFolderError

__all__ = ["last_until", "round_file", "round_of"]

_NAME = re.compile(r"(?:round|personal)-(\d{6})\.safetensors")


def round_file(folder: Path, round: int, kind: str = "round") -> Path:
    """The path of a round's file in a folder."""
    return folder / f"{kind}-{round:06d}.safetensors"


def round_of(path: Path) -> int:
    """The round whose file this is.

    Raises:
        RunFolderError: its name is none that `round_file` gives.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise RunFolderError(f"{path} is not a file that fedsa wrote: move it out of the run folder")
    return int(match[1])


def last_until(rounds: Iterable[int], limit: int) -> int | None:
    """The last of some rounds that is not after ``limit``; None where there is none.

    >>> last_until([1, 4, 6], 5)
    4
    """
    return max((round for round in rounds if round <= limit), default=None)
