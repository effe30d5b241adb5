"""Arrays that are made once and kept on disk: mapped into memory, so that only what is touched takes room."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsa.packages.parts import cache_folder

__all__ = ["cached_arrays"]

Array = npt.NDArray[Any]


def cached_arrays(key: str, make: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """Return the arrays of a key, made now or by an earlier process; they cannot be written to.

    They are kept in ``tokens/KEY`` below ``$FEDSA_CACHE`` (else ``~/.cache/fedsa``), readable by their owner only. The
    folder may be deleted at any time. Where it cannot be written, the arrays stay in memory.

    Args:
        key: tells all that the arrays depend on.
        make: makes them.
    """
    cache = cache_folder() / "tokens"
    folder = cache / key
    if not folder.is_dir():
        arrays = dict(make())
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _write(arrays, Path(mkdtemp(prefix=f".{key}-", dir=cache)), folder)
        except OSError:
            return arrays
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def _write(arrays: Mapping[str, Array], place: Path, folder: Path) -> None:
    """Write the arrays into a new folder that appears whole."""
    try:
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array, allow_pickle=False)
        if not folder.is_dir():  # another process may have been first
            place.replace(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
