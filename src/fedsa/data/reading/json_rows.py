"""Read rows from JSON: one object a line, a list of objects, or an object with a list for each column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsa.data.reading.base import FROM_0, FileRows, Wanted, typed_table
from fedsa.data.reading.cells import kind_of, refuse_cell, text_of
from fedsa.data.reading.decoding import open_text, with_encoding
from fedsa.errors import DataError
from fedsa.texts.json_text import parsed_json

__all__ = ["as_json", "read_json"]

_BLOCK = 10_000

Numbered = Iterable[tuple[int, Any]]


def read_json(path: Path, wanted: Wanted, *, lines: bool) -> FileRows:
    """Return the rows of a JSON file.

    Args:
        path: the file; one that ends in ``.gz`` is unpacked.
        wanted: columns; those that are texts are read as texts, the others keep their types.
        lines: one object a line; else a whole document, or lines where it is none.

    Raises:
        DataError: it is not JSON, a row is not an object, or a column's cells do not fit; the line or row is named.
    """
    rows, remark = with_encoding(path, wanted.encoding, lambda encoding: _read(path, wanted, encoding, lines=lines))
    return replace(rows, remarks=remark)


def _read(path: Path, wanted: Wanted, encoding: str, *, lines: bool) -> FileRows:
    if lines:
        return _table(path, wanted, _by_line(path, encoding), "line {}")
    with open_text(path, encoding) as file:
        text = file.read().removeprefix("\ufeff")
    try:
        content = parsed_json(text)
    except ValueError as error:
        if not text.lstrip().startswith("{"):
            raise DataError(f"{path} is not JSON: {error}") from None
        return _table(path, wanted, _by_line(path, encoding), "line {}")
    if isinstance(content, Mapping) and content and all(isinstance(cells, list) for cells in content.values()):
        sizes = {len(cells) for cells in content.values()}
        if len(sizes) > 1:
            raise DataError(
                f"{path}: its columns have different numbers of rows ({', '.join(map(str, sorted(sizes)))})"
            )
        content = [dict(zip(content, cells, strict=True)) for cells in zip(*content.values(), strict=True)]
    if isinstance(content, Mapping):
        inner = [name for name, value in content.items() if isinstance(value, list | Mapping)]
        if inner and not any(name in wanted for name in content if wanted.columns is not None):
            raise DataError(f"{path} is one object ({', '.join(inner[:5])}, ...); write its rows as a list of objects")
        content = [content]
    if not isinstance(content, list):
        raise DataError(f"{path} holds {kind_of(content)}; it needs a list of objects")
    return _table(path, wanted, enumerate(content), FROM_0)


def _by_line(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    with open_text(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            text = line.strip().removeprefix("\ufeff")
            if text:
                try:
                    yield number, parsed_json(text)
                except ValueError as error:
                    raise DataError(f"{path}, line {number} is not JSON: {error}") from None


def _table(path: Path, wanted: Wanted, rows: Numbered, unit: str) -> FileRows:
    blocks: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    unread: dict[str, None] = {}
    kinds: dict[str, dict[str, int]] = {}
    places: list[int] = []
    block: list[Mapping[str, Any]] = []
    starts: list[int] = []
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{path}, {unit.format(number)} holds {kind_of(row)}; each row must be an object, {{...}}")
        for name in row:
            (names if name in wanted else unread).setdefault(name)
        places.append(number)
        block.append(row)
        if len(block) == _BLOCK:
            starts.append(len(places) - len(block))
            blocks.append(_columns(path, wanted, block, names, kinds, places[-len(block) :], unit))
            block = []
    starts.append(len(places) - len(block))
    blocks.append(_columns(path, wanted, block, names, kinds, places[len(places) - len(block) :], unit))
    sizes = np.diff([*starts, len(places)]).tolist()
    for each, size in zip(blocks, sizes, strict=True):  # a column may come up late
        for name in names:
            each.setdefault(name, [None] * size)
    table = typed_table(blocks, list(names), path)
    return FileRows(table, np.array(places, dtype=np.int64), unit, tuple(unread), kinds=kinds)


def _columns(
    path: Path,
    wanted: Wanted,
    rows: list[Mapping[str, Any]],
    names: Iterable[str],
    kinds: dict[str, dict[str, int]],
    places: list[int],
    unit: str,
) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        if name in wanted.texts:
            for place, cell in zip(places, cells, strict=True):
                if cell is not None:
                    kinds.setdefault(name, {}).setdefault(kind_of(cell), place)
            columns[name] = pa.array(list(_texts(path, name, cells, places, unit)), pa.string())
        elif wanted.is_turns(name):  # they need not all have the same keys
            columns[name] = pa.array([as_json(cell) for cell in cells], pa.string())
        else:
            columns[name] = cells
    return columns


def as_json(cell: Any) -> str | None:
    """Return a cell as a text; what is no text is written as JSON."""
    return cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


def _texts(path: Path, name: str, cells: Iterable[Any], places: Iterable[int], unit: str) -> Iterator[str | None]:
    for cell, place in zip(cells, places, strict=True):
        try:
            yield text_of(cell)
        except ValueError as error:
            raise refuse_cell(name, f"{path}, {unit.format(place)}", str(error)) from None
