"""The splits that a recipe names, of those that there are: whole, a part (``train[:10%]``), or a sum."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from fedsa.data.reading.tables import Table
from fedsa.errors import DataError

__all__ = ["chosen_splits", "first_reason"]


def chosen_splits(splits: Sequence[str], loaders: Mapping[str, Callable[[], Table]], shown: str) -> dict[str, Table]:
    """Load the splits that are asked for, and no others.

    Args:
        splits: the names of splits, of parts (``train[:10%]``), or sums of these (``train+test``).
        loaders: the name of each split that there is, and what reads it.
        shown: the name of the data, for messages.

    Raises:
        DataError: there is no such split, or it has no rows.
    """
    import datasets
    import pyarrow as pa

    words = {word for split in splits for word in re.findall(r"\w+(?:\.\w+)*", split)}
    tables = {name: load() for name, load in loaders.items() if name in words}
    sizes = {name: len(tables[name].arrow) if name in tables else 0 for name in loaders}
    chosen = {}
    for split in splits:
        try:
            pieces = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            raise DataError(
                f"{shown}: no split {split!r} ({first_reason(error)}); the splits are: {', '.join(loaders)}"
            ) from None
        parts = [tables[piece.splitname].arrow.slice(piece.from_, piece.to - piece.from_) for piece in pieces]
        features = tables[pieces[0].splitname].features
        whole = parts[0] if len(parts) == 1 else pa.concat_tables(part.select(list(features)) for part in parts)
        if not len(whole):
            raise DataError(f"{shown}: split {split!r} has no rows; add rows, or name another split in [data]")
        chosen[split] = Table(whole, features)
    return chosen


def first_reason(error: BaseException) -> str:
    """The first line of the first cause of an error: that line names the place in the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
