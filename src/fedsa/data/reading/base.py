"""What every reader of a format uses: the columns that are wanted, the rows of one file, and a log of the reading.

A reader is a function from a path and a `Wanted` to `FileRows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fedsa.data.labels import IntArray
from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["FROM_0", "PLACE", "FileRows", "Log", "Places", "Shape", "Shaped", "Wanted", "some", "typed_table"]

PLACE = "__place__"
"""The column that tells where a row stands: the file's number times 2**32, and the line or row in the file."""

FROM_0 = "row {} (counted from 0)"
"""What the number of a row is called where a format has no lines."""

_FILES = 2**32
_SHOWN = 5


def some(names: Iterable[str]) -> str:
    """Return a list of names, cut after a few.

    >>> some("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


class Shaped(NamedTuple):
    """A table in a `Shape`, the columns of it that were looked at and not read, and how it was read."""

    table: pa.Table
    unread: tuple[str, ...]
    what: str


class Shape(Protocol):
    """One form for rows that people have in several: which columns of a table they are made of is found by looking."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of texts that come out."""
        ...

    @property
    def sources(self) -> frozenset[str]:
        """Every column that may be read for it."""
        ...

    def __call__(self, table: pa.Table, place: Callable[[int], str], where: str, others: Sequence[str] = ()) -> Shaped:
        """Return a table in the shape.

        Args:
            table: the rows.
            place: of a row number: where the row is, for messages.
            where: what the rows are, for messages.
            others: columns that the rows have beside these, for messages.

        Raises:
            DataError: no columns of it are there, or a row does not fit.
        """
        ...


@dataclass(frozen=True)
class Wanted:
    """What is to be read of a table, and how.

    Attributes:
        columns: those that are read; None: all.
        texts: those whose cells are texts in every format: the text itself, the label, the client, the group.
        numbers: those whose cells may be numbers, or true and false, where a format has texts alone.
        separator: of CSV and TSV; None: found by looking.
        encoding: of text files; None: found by looking.
        shape: what the rows of a file are made into when they are read; None: they stay as they are.
        turns: columns whose lists may be turns; without a shape, those of JSON files are read as texts of JSON.
    """

    columns: frozenset[str] | None = None
    texts: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    separator: str | None = None
    encoding: str | None = None
    shape: Shape | None = None
    turns: frozenset[str] = frozenset()

    def __contains__(self, column: str) -> bool:
        return (
            self.columns is None or column in self.columns or (self.shape is not None and column in self.shape.sources)
        )

    def is_turns(self, column: str) -> bool:
        """Whether lists in a column of a JSON file are read as they are written."""
        return column in (self.turns if self.shape is None else self.shape.sources)

    @property
    def needed(self) -> frozenset[str]:
        """The columns that a table has when it has been read: none where all are read, whichever they are."""
        return (self.columns or frozenset()) | ({*self.shape.columns} if self.shape is not None else frozenset())


@dataclass(frozen=True)
class FileRows:
    """The rows of one file.

    Attributes:
        table: the wanted columns that the file has.
        places: shape (rows,): the line or row of the file where each begins.
        unit: what a number is called: "line {}", "row {}", or `FROM_0`.
        unread: its other columns.
        features: the types that the file stores with its columns, where it does.
        remarks: how it was read, where that had to be found out: "separator", "encoding", "quotes", "sheet" or "shape"
            to what.
        kinds: column to the kinds of its cells before they became texts, each with the place of the first.
    """

    table: pa.Table
    places: IntArray
    unit: str
    unread: tuple[str, ...] = ()
    features: datasets.Features | None = None
    remarks: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Places:
    """Where rows stand in the files that they were read from.

    Attributes:
        files: each file's name and the unit of its numbers.
        codes: shape (rows,): as the column `PLACE`.
    """

    files: Sequence[tuple[str, str]]
    codes: IntArray

    def __call__(self, row: int) -> str:
        """Return the place of a row, as "west.csv, line 2"."""
        file, number = divmod(int(self.codes[row]), _FILES)
        name, unit = self.files[file]
        return f"{name}, {unit.format(number)}" if unit else name

    def file(self, row: int) -> str:
        """Return the name of a row's file."""
        return self.files[int(self.codes[row]) // _FILES][0]


_REMARKS = {
    "separator": "{files}: cells are separated by {what} (found by looking; if that is wrong, set data.separator).",
    "encoding": "{files}: not UTF-8, so read as {what}. If that looks wrong, set data.encoding.",
    "quotes": "{files}: quotation marks do not stand around cells there, so they are taken as part of the text.",
    "shape": "{files}: {what}.",
    "sheet": "{files}: only the first sheet is read: {what}.",
}


class Log:
    """One reading of data: the files that were read, and what is to be said of them."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str]] = []
        self.left_out: dict[str, str] = {}
        self.sentences: list[str] = []
        self._remarks: dict[tuple[str, str], list[str]] = {}
        self._unread: dict[str, list[str]] = {}
        self._tables: list[str] = []
        self._kinds: dict[str, dict[str, str]] = {}

    @property
    def unread(self) -> tuple[str, ...]:
        """Columns of files that were not read."""
        return tuple(self._unread)

    def add(self, rows: FileRows, name: str) -> pa.Table:
        """Return a file's table with the column `PLACE`, and keep what is to be said of it under its name."""
        import pyarrow as pa

        codes = len(self.files) * _FILES + rows.places
        self.files.append((name, rows.unit))
        self._tables.append(name)
        for kind, what in rows.remarks.items():
            self._remarks.setdefault((kind, what), []).append(name)
        for column in rows.unread:
            self._unread.setdefault(column, []).append(name)
        for column, kinds in rows.kinds.items():
            for kind, number in kinds.items():
                self._kinds.setdefault(column, {}).setdefault(kind, f"{name}, {rows.unit.format(number)}")
        column = pa.array(codes, pa.int64())
        return rows.table.append_column(PLACE, column) if rows.table.num_columns else pa.table({PLACE: column})

    def join(self, other: Log) -> None:
        """Take over what is to be said of some more files."""
        self.sentences += other.sentences
        self._tables += other._tables
        for key, names in other._remarks.items():
            self._remarks.setdefault(key, []).extend(names)
        for column, names in other._unread.items():
            self._unread.setdefault(column, []).extend(names)
        for column, kinds in other._kinds.items():
            self._kinds[column] = {**kinds, **self._kinds.get(column, {})}

    def notes(self) -> tuple[str, ...]:
        """The notes on this reading, in whole sentences."""
        found = [*self.sentences]
        if self._unread:
            named = [
                repr(column) if len(files) == len(self._tables) else f"{column!r} (in {some(files)})"
                for column, files in self._unread.items()
            ]
            found.append(f"Columns that the recipe does not use are not read: {some(named)}.")
        found += [_REMARKS[kind].format(files=some(files), what=what) for (kind, what), files in self._remarks.items()]
        for column, kinds in self._kinds.items():
            if len(kinds) > 1:
                listed = " and ".join(f"{kind} (first: {place})" for kind, place in kinds.items())
                found.append(
                    f'Column {column!r} holds {listed}: all are read as texts, so that 7 and "7" are one value.'
                )
        if self.left_out:
            listed = "; ".join(f"{name} ({why})" for name, why in self.left_out.items())
            found.append(f"Left out, since they cannot be read (data.partition.leave_out_unreadable): {listed}.")
        return tuple(found)


def typed_table(blocks: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> pa.Table:
    """Return one table of blocks of columns whose types were found block by block.

    Args:
        blocks: column to its cells (Python values or an Arrow array), the same columns in each.
        columns: their names.
        path: the file, for the message.

    Raises:
        DataError: the cells of a column are of several kinds.
    """
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for name in columns:
        parts, start = [], 0
        for block in blocks:
            cells = block[name]
            try:
                parts.append(cells if isinstance(cells, pa.Array) else pa.array(cells))
            except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
                row = _odd_one(cells)
                raise DataError(
                    f"{path}: column {name!r} holds cells of several kinds, or numbers that are too large; the first "
                    f"that does not fit is in row {start + row + 1} (counted from 1, without a header): "
                    f"{str(error).splitlines()[0]}"
                ) from None
            start += len(cells)
        try:
            arrays[name] = pa.concat_tables([pa.table({name: part}) for part in parts], promote_options="permissive")[
                name
            ]
        except pa.ArrowException:
            kinds: dict[str, int] = {}
            start = 1
            for part in parts:
                kinds.setdefault(str(part.type), start)
                start += len(part)
            listed = "; ".join(f"{kind} from row {row} on" for kind, row in kinds.items() if kind != "null")
            raise DataError(
                f"{path}: column {name!r} holds cells of several kinds: {listed}; write them one way"
            ) from None
    return pa.table(arrays)


def _odd_one(cells: Sequence[Any]) -> int:
    """Return the place of the first cell that cannot be in one array with those before it."""
    import pyarrow as pa

    low, high = 0, len(cells)
    while high - low > 1:  # the cells before `low` fit, those before `high` do not
        middle = (low + high) // 2
        try:
            pa.array(cells[:middle])
            low = middle
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            high = middle
    return high - 1
