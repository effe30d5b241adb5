"""Read tables that are stored with their types: Parquet, Arrow, and Excel's workbooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsa.data.reading.base import FROM_0, FileRows, Wanted
from fedsa.data.reading.cells import as_texts, text_of
from fedsa.data.reading.separated import as_numbers
from fedsa.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_arrow", "read_excel", "read_parquet"]


def read_parquet(path: Path, wanted: Wanted) -> FileRows:
    """Return the rows of a Parquet file: the wanted columns alone are read.

    Raises:
        DataError: it is not Parquet, or a cell that must be a text is a list, a table or bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            table = file.read(columns=[name for name in schema.names if name in wanted])
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from None
    return _stored(path, table, schema, wanted)


def read_arrow(path: Path, wanted: Wanted) -> FileRows:
    """Return the rows of an Arrow file or stream, which is mapped into memory.

    Raises:
        DataError: as `read_parquet`.
    """
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(source).read_all()
        schema, table = table.schema, table.select([name for name in table.column_names if name in wanted])
        table.validate(full=True)  # Arrow itself reads from any place that a damaged file names
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from None
    return _stored(path, table, schema, wanted)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _stored(path: Path, table: pa.Table, schema: pa.Schema, wanted: Wanted) -> FileRows:
    import datasets

    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}; rename one of them")
    try:
        features = datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # what "huggingface" in it says
        raise DataError(f"{path}: what it says of its columns' types cannot be read ({_first_line(error)})") from None
    kept = {name: features[name] for name in table.column_names}
    kinds: dict[str, dict[str, int]] = {}
    for name in table.column_names:
        if name in wanted.texts and not isinstance(kept[name], datasets.ClassLabel):
            kinds[name] = {_kind(table[name].type): 0}
            texts = as_texts(table[name], name, lambda row: f"{path}, {FROM_0.format(row)}")
            table = table.set_column(table.column_names.index(name), name, texts)
            kept[name] = datasets.Value("string")
    unread = tuple(name for name in schema.names if name not in kept)
    places = np.arange(len(table), dtype=np.int64)
    return FileRows(table.replace_schema_metadata(None), places, FROM_0, unread, datasets.Features(kept), kinds=kinds)


def _kind(kind: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "a number"
    return "true or false" if pa.types.is_boolean(kind) else "a text"


def read_excel(path: Path, wanted: Wanted) -> FileRows:
    """Return the rows of a workbook's first sheet, whose first row is the header.

    A cell that Excel holds as a number or a date is a text here, as in CSV: 7 is "7". A formula is its last result.

    Raises:
        MissingExtraError: python-calamine is not installed.
        DataError: it is no workbook, a row has cells beyond the header, or a column that is read is there twice.
    """
    try:
        import python_calamine
    except ImportError:
        raise MissingExtraError(f"the Excel file {path}", "excel") from None
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            book = python_calamine.CalamineWorkbook.from_filelike(file)
            sheets = book.sheet_names
            rows = book.get_sheet_by_index(0).to_python(skip_empty_area=False) if sheets else []
    except (OSError, python_calamine.CalamineError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from None
    texts = [[_excel_text(cell) for cell in row] for row in rows]
    header = [name or "" for name in texts[0]] if texts else []
    kept = {name: place for place, name in enumerate(header) if name and name in wanted}
    twice = sorted(name for name in kept if header.count(name) > 1)
    if twice:
        raise DataError(f"{path}: the header names column {twice[0]!r} twice; rename one of them")
    body = [(number, row) for number, row in enumerate(texts[1:], start=2) if any(cell is not None for cell in row)]
    for number, row in body:
        beyond = [cell for cell, name in zip(row, header, strict=True) if cell is not None and not name]
        if beyond:
            raise DataError(f"{path}, row {number}: {beyond[0]!r} stands in a column without a name in the header: "
                            "name that column, or remove the cell")  # fmt: skip
    columns: Mapping[str, Any] = {
        name: pa.chunked_array([pa.array([row[place] for _, row in body], pa.string())]) for name, place in kept.items()
    }
    table = pa.table({name: as_numbers(cells) if name in wanted.numbers else cells for name, cells in columns.items()})
    unread = tuple(dict.fromkeys(name for name in header if name and name not in kept))
    others = f"{sheets[0]!r}; {len(sheets) - 1} more: {', '.join(map(repr, sheets[1:4]))}" if len(sheets) > 1 else ""
    places = np.array([number for number, _ in body], dtype=np.int64)
    return FileRows(table, places, "row {}", unread, remarks={"sheet": others} if others else {})


def _excel_text(cell: Any) -> str | None:
    """Return a cell of a sheet as text; None where it is empty."""
    if cell is None or cell == "":
        return None
    return text_of(cell) if isinstance(cell, str | bool | int | float) else str(cell)
