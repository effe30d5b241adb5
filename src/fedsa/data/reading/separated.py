"""Read CSV and TSV as their header says: every line has the header's fields, all cells are texts, "" alone is empty."""

from __future__ import annotations

import csv
import gc
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from fedsa.data.reading.base import FileRows, Wanted, some
from fedsa.data.reading.decoding import open_text, with_encoding
from fedsa.errors import DataError
from fedsa.texts.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["as_numbers", "read_separated"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_BLOCK = 10_000
_LOOKED_AT = 1 << 16
_LONGEST_CELL = 2**31 - 1


def read_separated(path: Path, wanted: Wanted, separator: str) -> FileRows:
    """Return the rows of a CSV or TSV file.

    Args:
        path: the file; one that ends in ``.gz`` is unpacked.
        wanted: columns, and separator and encoding where they are known.
        separator: what its ending stands for; another one is taken where the header's columns are found with it alone.

    Raises:
        DataError: a line has more or fewer fields than the header, quotation marks do not fit, a column that is read
            is there twice, or the file cannot be read; the line is named.

    Cost: about 2 s of a core for a million rows of 130 bytes (benchmarks/reading.py); what is read is kept in memory.
    """
    rows, remark = with_encoding(path, wanted.encoding, lambda encoding: _read(path, wanted, separator, encoding))
    return replace(rows, remarks={**rows.remarks, **remark})


def _read(path: Path, wanted: Wanted, usual: str, encoding: str) -> FileRows:
    found = wanted.separator or _separator(path, wanted, usual, encoding)
    remarks = {} if found == usual or wanted.separator else {"separator": _SEPARATORS[found]}
    style = _Style(path, encoding, found, quoted=True)
    try:
        rows = style.rows(wanted)
    except DataError as error:
        try:
            plain = replace(style, quoted=False)
            rows = plain.rows(wanted)
        except DataError:
            raise error from None
        if not plain.has_loose_quotes():
            raise error from None
        remarks["quotes"] = ""
    return replace(rows, remarks=remarks)


def _separator(path: Path, wanted: Wanted, usual: str, encoding: str) -> str:
    """Return the separator that gives the header most of the wanted columns; else the widest."""
    with open_text(path, encoding, errors="replace") as file:
        head = file.read(_LOOKED_AT)
    headers = {}
    for separator in dict.fromkeys([usual, *_SEPARATORS]):
        try:
            headers[separator] = next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
        except csv.Error:
            continue
    known = {
        separator: len(wanted.columns & set(_names(cells))) if wanted.columns else 0
        for separator, cells in headers.items()
    }
    best = max(known.values(), default=0)
    if best and known.get(usual) == best:
        return usual
    return max(headers, key=lambda separator: (known[separator], len(headers[separator])), default=usual)


def _names(header: Sequence[str]) -> list[str]:
    return [name.removeprefix("\ufeff") if not place else name for place, name in enumerate(header)]


@dataclass(frozen=True)
class _Style:
    """A file, and how it is written."""

    path: Path
    encoding: str
    separator: str
    quoted: bool

    def rows(self, wanted: Wanted) -> FileRows:
        """Return the file's rows."""
        import pyarrow as pa

        with open_text(self.path, self.encoding) as file:
            records = self._records(file)
            _, header = next(records, (1, []))
            names = _names(header)
            kept = [place for place, name in enumerate(names) if name and name in wanted]
            twice = sorted({names[place] for place in kept if names.count(names[place]) > 1})
            if twice:
                raise DataError(f"{self.path}: the header names column {twice[0]!r} twice; rename one of them")
            blocks: list[list[pa.Array]] = [[] for _ in kept]
            lines: list[int] = []
            block: list[list[str]] = []

            def close() -> None:
                for cells, place in zip(blocks, kept, strict=True):
                    cells.append(pa.array([row[place] or None for row in block], pa.string()))
                block.clear()

            width = len(header)
            for line, cells in records:
                if len(cells) != width:
                    raise self._wrong_width(line, cells, header)
                lines.append(line)
                block.append(cells)
                if len(block) == _BLOCK:
                    close()
            close()
        columns = {names[place]: pa.chunked_array(cells) for place, cells in zip(kept, blocks, strict=True)}
        table = pa.table(
            {name: as_numbers(cells) if name in wanted.numbers else cells for name, cells in columns.items()}
        )
        unread = tuple(dict.fromkeys(name for name in names if name and name not in columns))
        return FileRows(table, np.array(lines, dtype=np.int64), "line {}", unread)

    def _records(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Yield the line where each record begins, and its cells; empty lines are passed over."""
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(file, delimiter=self.separator, quoting=quoting, strict=self.quoted)
        line = 1
        with _many_long_cells():
            try:
                for cells in reader:
                    if cells:
                        yield line, cells
                    line = reader.line_num + 1
            except csv.Error as error:
                raise self._wrong_quotes(line, reader.line_num, error) from None

    def _wrong_quotes(self, first: int, last: int, error: csv.Error) -> DataError:
        if "unexpected end" in str(error):
            return DataError(f"{self.path}, line {first}: a quotation mark opens a cell there, and none closes it")
        if "expected after" in str(error):
            return DataError(
                f"{self.path}, line {last}: a quotation mark stands inside a cell that begins with one: write it twice "
                '("") and one more at the cell\'s end'
            )
        return DataError(f"{self.path}, line {last}: {error}")

    def _wrong_width(self, line: int, cells: Sequence[str], header: Sequence[str]) -> DataError:
        shown = {",": "comma", ";": "semicolon", "\t": "tab"}.get(self.separator, self.separator)
        if len(cells) > len(header):
            extra = cells[len(header) :]
            mend = f"put a text that has a {shown} in it in quotation marks"
            if not any(extra):
                mend = f"remove the {shown} at the line's end, or give that column a name in the header"
        else:
            mend = "give it all of the header's fields, or remove the line"
        return DataError(
            f"{self.path}, line {line}: {counted(len(cells), 'field')}, but the header has {len(header)} "
            f"({some(map(repr, header))}): {mend}; if the {shown} does not separate cells, set data.separator"
        )

    def has_loose_quotes(self) -> bool:
        """Return whether most cells that begin with a quotation mark do not end with one: they are part of the text."""
        opened = closed = 0
        with open_text(self.path, self.encoding) as file:
            for _, cells in self._records(file):
                for cell in cells:
                    if cell.startswith('"'):
                        opened += 1
                        closed += len(cell) > 1 and cell.endswith('"')
        return 2 * closed < opened


@contextmanager
def _many_long_cells() -> Iterator[None]:
    """Allow cells of any length (Python's own limit is 128 KiB), and make no search for cycles among so many."""
    before, collects = csv.field_size_limit(_LONGEST_CELL), gc.isenabled()
    gc.disable()  # which takes a third of the time
    try:
        yield
    finally:
        csv.field_size_limit(before)
        if collects:
            gc.enable()


_WHOLE = re.compile(r"[+-]?\d+")
_TRUTH = {"true": True, "false": False}


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as whole numbers, numbers, or true and false, where all cells are of that kind; else as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = {value.strip() for value in column.unique().to_pylist() if value is not None}
    if not values:
        return column
    if {value.lower() for value in values} <= set(_TRUTH):
        return pc.equal(pc.utf8_lower(pc.utf8_trim_whitespace(column)), "true")
    whole = all(_WHOLE.fullmatch(value) for value in values)
    try:
        return pc.utf8_trim_whitespace(column).cast(pa.int64() if whole else pa.float64())
    except pa.ArrowInvalid:
        return column
