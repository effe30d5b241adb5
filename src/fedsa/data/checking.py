"""Checks of rows before they are dealt to clients: texts where texts belong, empty cells, labels of two kinds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedsa.data.labels import IntArray, is_missing
from fedsa.data.reading.base import Places, some
from fedsa.data.reading.cells import as_texts
from fedsa.data.reading.tables import Table, as_dataset
from fedsa.errors import DataError
from fedsa.texts.words import counted

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["clients_without_rows", "filled_rows", "require_one_writing", "rows_of", "with_texts"]

_SHOWN = 5


def with_texts(table: datasets.Dataset, texts: Collection[str], place: Callable[[int], str]) -> datasets.Dataset:
    """Return a table some of whose columns are texts, whatever they were; class numbers with names stay as they are.

    Args:
        table: the rows.
        texts: those columns.
        place: of a row number: where the row is, for the message.

    Raises:
        DataError: a cell is a list, a table or bytes.
    """
    import datasets
    import pyarrow as pa

    order = table.column_names
    for name in sorted(texts):
        kind = table.features[name]
        if isinstance(kind, datasets.ClassLabel) or getattr(kind, "dtype", None) == "string":
            continue
        cells = as_texts(_cells(table, name), name, place)
        table = table.remove_columns(name).add_column(name, pa.array(cells.to_pylist(), pa.string()))
    return table if table.column_names == order else table.select_columns(order)


def _cells(table: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """Return a column of a table, of its own rows alone."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def rows_of(table: datasets.Dataset, rows: IntArray) -> datasets.Dataset:
    """Return some rows of a table."""
    import pyarrow as pa

    return as_dataset(Table(table.with_format("arrow")[:].take(pa.array(rows)), dict(table.features)))


def filled_rows(
    table: datasets.Dataset,
    columns: Mapping[str, bool],
    place: Callable[[int], str] | None,
    where: str,
    *,
    drop: bool,
    mend: str = "fill them in, drop these rows, or set data.drop_empty = true",
) -> tuple[IntArray | None, list[str]]:
    """Return the rows without an empty cell, where some have one and are dropped; else nothing. And what is to be said.

    Args:
        table: the rows.
        columns: those that must have a value, and whether a text of no letters is none there.
        place: where the rows stand in files.
        where: what the rows are.
        drop: rows with an empty cell are dropped.
        mend: what to do about them.

    Raises:
        DataError: with the number of such rows and the first of them, for every column; or no row would be left.
    """
    import pyarrow as pa

    empty: dict[str, IntArray] = {}
    for name, of_words in columns.items():
        cells = _cells(table, name)
        if of_words or cells.null_count or pa.types.is_floating(cells.type):
            rows = [row for row, cell in enumerate(cells.to_pylist()) if is_missing(cell) and (of_words or cell != "")]
            if rows:
                empty[name] = np.array(rows, dtype=np.int64)
    if not empty:
        return None, []
    counts = ", ".join(f"{len(rows)} in {name!r}" for name, rows in empty.items())
    if not drop:
        listed = "; ".join(_listed(name, rows, place) for name, rows in empty.items())
        raise DataError(f"{where}: {listed}; {mend}")
    dropped = np.unique(np.concatenate(list(empty.values())))
    if len(dropped) == len(table):
        raise DataError(f"{where}: every row has an empty cell ({counts}), so that none is left; fill them in")
    files = f"; {some(_by_file(dropped, place))}" if isinstance(place, Places) else ""
    split = where.rpartition("(")[2].rstrip(")")
    left_out = f"{len(dropped)} of {len(table)} {split} have an empty cell and are left out (data.drop_empty)"
    return np.setdiff1d(np.arange(len(table)), dropped), [f"{left_out}: {counts}{files}."]


def _listed(name: str, rows: IntArray, place: Callable[[int], str] | None) -> str:
    """Return which cells of a column are empty."""
    first = rows[:_SHOWN].tolist()
    more = "" if len(rows) <= _SHOWN else f" and {len(rows) - _SHOWN} more"
    if place is None:
        shown = f"counted from 0: {', '.join(map(str, first))}{more}"
    else:
        shown = f"{'; '.join(map(place, first))}{more}"
    return f"column {name!r} is empty in {counted(len(rows), 'row')} ({shown})"


def _by_file(rows: IntArray, place: Places) -> list[str]:
    """Return how many of some rows are in each file, the most first."""
    files, counts = np.unique([place.file(row) for row in rows.tolist()], return_counts=True)
    pairs = sorted(zip(files.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    return [f"{count} in {file}" for file, count in pairs]


def clients_without_rows(table: datasets.Dataset, kept: IntArray, column: str, *, leave_out: bool) -> list[str]:
    """Return a sentence on the clients none of whose rows is kept, if there are some.

    Args:
        table: all rows.
        kept: those that stay.
        column: the one that names the client.
        leave_out: such clients may be left out.

    Raises:
        DataError: there are some, and they may not.
    """
    import pyarrow as pa

    cells = _cells(table, column)
    gone = sorted({*cells.unique().to_pylist()} - {*cells.take(pa.array(kept)).unique().to_pylist(), None, ""})
    if gone and not leave_out:
        raise DataError(
            f"every row of {some(map(repr, gone))} has an empty cell, so that none is left: fill them in, or set "
            "data.partition.leave_out_small = true"
        )
    return [f"Clients left out, since each of their rows has an empty cell: {some(map(str, gone))}."] if gone else []


def require_one_writing(table: datasets.Dataset, column: str, place: Places, path: str) -> None:
    """Refuse labels that are numbers in some files and words in others: they would be classes of their own.

    Raises:
        DataError: with files of both kinds.
    """
    import datasets

    if isinstance(table.features[column], datasets.ClassLabel):
        return
    encoded = _cells(table, column).dictionary_encode().unify_dictionaries()
    classes = encoded.chunk(0).dictionary.to_pylist()
    of_number = np.array([str(cell).lstrip("-").replace(".", "", 1).isdecimal() for cell in classes])
    numbers = of_number[np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])]
    files = place.codes >> 32
    rows, of_numbers = np.bincount(files), np.bincount(files, weights=numbers)
    kinds = {
        "numbers": np.flatnonzero((rows > 0) & (of_numbers == rows)).tolist(),
        "words": np.flatnonzero((rows > 0) & (of_numbers == 0)).tolist(),
    }
    if all(kinds.values()):
        listed = "; ".join(f"{kind} in {some(place.files[file][0] for file in found)}" for kind, found in kinds.items())
        raise DataError(f"{path}: column {column!r} has several types: {listed}; write the labels one way")
