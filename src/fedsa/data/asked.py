"""Rows without answers, which models are asked about: from files, from lines, from Python. Labels need not be there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, final

import datasets
import numpy as np
import pyarrow as pa

from fedsa.data.checking import filled_rows, with_texts
from fedsa.data.reading.base import FROM_0, Wanted, typed_table
from fedsa.data.reading.cells import text_of
from fedsa.data.reading.json_rows import as_json
from fedsa.data.reading.paths import expanded
from fedsa.data.reading.pictures import is_picture
from fedsa.data.reading.tables import Table, as_dataset
from fedsa.data.shapes import dataset_in_shape, shape_of
from fedsa.data.sources import load_rows, require_columns
from fedsa.errors import DataError
from fedsa.recipe import DataSettings, PartitionSettings, TaskSettings, TokenClassificationSettings
from fedsa.texts.json_text import parsed_json
from fedsa.types import CLASS_NUMBER

__all__ = ["AskedRows", "Given", "asked_of_lines", "asked_of_objects", "read_asked"]

Given: TypeAlias = "str | Mapping[str, Any] | Sequence[Any] | datasets.Dataset"
"""Rows as Python has them: one text or picture, a row, several of either, or a data set."""

_STDIN = Path("standard input")


@final
@dataclass(frozen=True)
class AskedRows:
    """Rows to be predicted.

    Attributes:
        table: the columns that the task asks for, and ``CLASS_NUMBER``, which says nothing.
        place: of a row number: where the row stands.
        notes: whole sentences on how the rows were read.
    """

    table: datasets.Dataset
    place: Callable[[int], str]
    notes: tuple[str, ...] = ()


def read_asked(path: str, task: TaskSettings, data: DataSettings | None = None, *, split: str = "train") -> AskedRows:
    """Return the rows of a file or folder, or of what else a recipe's ``data.path`` may name; or one picture.

    Args:
        path: where they are.
        task: says which columns are read.
        data: how files are read (``separator``, ``encoding``); None: found by looking.
        split: whose rows, where there are several.

    Raises:
        DataError: nothing is there, it cannot be read, it has no rows, or a row has an empty cell.
    """
    if _takes_images(task) and is_picture(PurePosixPath(path)) and expanded(path).is_file():
        return _asked(_table_of(task, {task.asked_columns[0]: [path]}, Path(path)), task, lambda row: path, path)
    how = {} if data is None else data.model_dump(include={"separator", "encoding"})
    settings = DataSettings(path=path, split=split, partition=PartitionSettings(kind="iid", clients=1), **how)
    shape = shape_of(task, answered=False)
    columns = frozenset() if shape is not None else frozenset(task.asked_columns)
    texts, numbers = columns & {*task.plain_columns}, columns & task.number_columns
    rows = load_rows(settings, Wanted(columns, texts, numbers - texts, shape=shape))
    place: Callable[[int], str] = rows.places.get("table") or (lambda row: f"{path}, {FROM_0.format(row)}")
    return _asked(rows.table, task, place, path, unread=rows.unread, notes=rows.notes)


def asked_of_lines(lines: Iterable[str], task: TaskSettings) -> AskedRows:
    """Return rows of lines of text: a JSON object each, or the text of the task's one column (of images, a path).

    Empty lines are passed over.

    Raises:
        DataError: there are none, or the task needs several columns and the lines are no JSON objects.
    """
    kept = [(number, line.rstrip("\r\n")) for number, line in enumerate(lines, start=1)]
    kept = [(number, line) for number, line in kept if line.strip()]
    if not kept:
        raise DataError("nothing came from standard input: give a text or a JSON object a line, or name a file")
    objects = [_object(line) for _, line in kept]
    columns = task.asked_columns
    place: Callable[[int], str] = lambda row: f"standard input, line {kept[row][0]}"  # noqa: E731
    if all(each is not None for each in objects):
        return _of_rows([each or {} for each in objects], task, place, "standard input")
    if len(columns) != 1:
        example = ", ".join(f'"{name}": "..."' for name in columns)
        wrong = next(number for (number, _), each in zip(kept, objects, strict=True) if each is None)
        raise DataError(
            f"standard input, line {wrong} is no JSON object, and this task needs the columns "
            f"{', '.join(map(repr, columns))}: write {{{example}}} on each line, or name a file"
        )
    return _of_rows([{columns[0]: line} for _, line in kept], task, place, "standard input")


def asked_of_objects(given: Given, task: TaskSettings) -> AskedRows:
    """Return rows that are Python objects.

    Args:
        given: a data set; or one row or several: each a table of columns, or the value of the task's one column.
        task: says which columns are used.

    Raises:
        DataError: there are none, or they do not fit the task.
    """
    where = "the rows"
    if isinstance(given, datasets.Dataset):
        shape = shape_of(task, answered=False)
        if shape is None:
            return _asked(given, task, FROM_0.format, where)
        given, read = dataset_in_shape(given, shape, FROM_0.format, where)
        return _asked(given, task, FROM_0.format, where, unread=read.unread, notes=[f"The rows: {read.what}."])
    if _is_conversation(given, task):
        given = [given]
    several: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
    if not several:
        raise DataError("there are no rows: give one at least")
    if all(isinstance(each, Mapping) for each in several):
        return _of_rows(several, task, FROM_0.format, where)
    columns = task.asked_columns
    if len(columns) != 1 or any(isinstance(each, Mapping) for each in several):
        raise DataError(f"give each row as a table with the columns {', '.join(map(repr, columns))}")
    return _of_rows([{columns[0]: each} for each in several], task, FROM_0.format, where)


def _of_rows(
    rows: Sequence[Mapping[str, Any]], task: TaskSettings, place: Callable[[int], str], where: str
) -> AskedRows:
    """Return rows that are tables of columns; one that lacks a column has an empty cell there."""
    known, shape = list(dict.fromkeys(name for row in rows for name in row)), shape_of(task, answered=False)
    wanted = [name for name in known if name in (task.asked_columns if shape is None else shape.sources)]
    columns = {name: [row.get(name) for row in rows] for name in wanted}
    if shape is not None and wanted:
        columns = {name: [as_json(cell) for cell in cells] for name, cells in columns.items()}
        read = shape(pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()}), place, where)
        unread = [name for name in known if name not in wanted or name in read.unread]
        columns = {name: read.table[name].to_pylist() for name in shape.columns}
        return _asked(_table_of(task, columns, Path(where)), task, place, where, unread=unread)
    for name in {*wanted} & {*task.plain_columns}:
        columns[name] = [_text(value, name, place(row)) for row, value in enumerate(columns[name])]
    unread = [name for name in known if name not in wanted]
    if not wanted:
        require_columns(datasets.Dataset.from_dict({}), task.asked_columns, where, unread)
    return _asked(_table_of(task, columns, Path(where)), task, place, where, unread=unread)


def _table_of(task: TaskSettings, columns: Mapping[str, list[Any]], where: Path) -> datasets.Dataset:
    """Return columns as a data set; pictures may be paths, bytes or opened ones."""
    if _takes_images(task):
        features = datasets.Features({name: datasets.Image() for name in columns})
        try:
            return datasets.Dataset.from_dict(dict(columns), features=features)
        except (ValueError, TypeError, OSError, AttributeError) as error:
            raise DataError(f"{where}: what is there is no image: {error}") from None
    table = typed_table([columns], list(columns), where)
    return as_dataset(Table(table, dict(datasets.Features.from_arrow_schema(table.schema))))


def _asked(
    table: datasets.Dataset,
    task: TaskSettings,
    place: Callable[[int], str],
    where: str,
    *,
    unread: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> AskedRows:
    """Return the columns that are asked for, as the task reads them, without an empty cell."""
    columns = task.asked_columns
    require_columns(table, columns, where, [*unread, *(name for name in table.column_names if name not in columns)])
    own = table.select_columns(columns)
    arrow = own.with_format("arrow")[:].append_column(CLASS_NUMBER, pa.array(np.zeros(len(own), dtype=np.int64)))
    table = as_dataset(Table(arrow, {**own.features, CLASS_NUMBER: datasets.Value("int64")}))
    table = with_texts(table, {*columns} & {*task.plain_columns}, place)
    if isinstance(task, TokenClassificationSettings):
        table = _with_words(table, columns[0])
    filled_rows(
        table, dict.fromkeys(columns, False), place, where, drop=False, mend="fill them in, or leave these rows out"
    )
    return AskedRows(table, place, tuple(notes))


def _is_conversation(given: Any, task: TaskSettings) -> bool:
    """Whether a list is one row, and not several: it holds the turns of a conversation."""
    if task.shape != "conversation" or not isinstance(given, list) or not given:
        return False
    return all(isinstance(each, Mapping) and {"role", "from"} & {*each} for each in given)


def _with_words(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return a table whose texts are lists of words: split at blanks, where they are none."""
    if getattr(table.features[column], "dtype", None) != "string":
        return table
    words = [None if text is None else str(text).split() for text in table[column][:]]
    return table.remove_columns(column).add_column(column, pa.array(words, pa.list_(pa.string())))


def _takes_images(task: TaskSettings) -> bool:
    return task.kind == "image_classification"


def _object(line: str) -> dict[str, Any] | None:
    """Return the JSON object that a line is; None: it is none."""
    try:
        found = parsed_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _text(value: Any, column: str, place: str) -> str | None:
    try:
        return text_of(value)
    except ValueError as error:
        raise DataError(f"{place}: column {column!r} {error}, and a text is needed: write it as a text") from None
