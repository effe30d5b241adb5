"""Class labels as numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsa.errors import DataError, near
from fedsa.texts.words import counted

__all__ = ["IntArray", "encode_labels", "is_missing"]

IntArray: TypeAlias = NDArray[np.int64]

_SHOWN = 5
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d{1,3})?")
_NOT_WHOLE = {
    "what": "label that is not a whole number",
    "mend": "a class needs a number or a name of its own (predicting a number is another task)",
}


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: None, NaN or an empty string."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def encode_labels(
    values: Iterable[Any],
    names: Sequence[str] | None,
    where: str,
    *,
    min_classes: int = 2,
    place: Callable[[int], str] = "row {}".format,
) -> tuple[IntArray, list[str]]:
    """Return each row's class number and the class names in order of their number.

    Without ``names`` the classes are the values that occur, sorted; with them a word must be one of the names, and a
    number must be in range(len(names)) (or, where all names are numbers themselves, one of the names).
    Texts that are all whole numbers count as numbers (3 and 3.0 are one), unless one is written as 007: such names are
    words. A negative number marks a row without a label in many hub data sets and is refused.

    Args:
        values: the label column: strings, integers, booleans or whole-number floats, all of one kind.
        names: class names in order of their number (the recipe's, or those stored with the data).
        where: what the rows are, for the message (a path, a split and a column).
        min_classes: fewest classes that must occur; 1 for a split that is only evaluated on.
        place: of a row's number: where the row is, for the message.

    Returns:
        Class numbers (int64, one per row) and the class names.

    Raises:
        DataError: a label is missing, negative, not whole, of another kind, unknown or outside the range (the first
            rows are listed, with the number of them), a name is given twice, or there are too few classes.

    >>> encode_labels(["b", "a", "b"], None, "rows")
    (array([1, 0, 1]), ['a', 'b'])
    >>> encode_labels([3, 7], None, "rows")
    (array([0, 1]), ['3', '7'])
    """
    cells: list[Any] = [value.item() if isinstance(value, np.generic) else value for value in values]
    refuse = partial(_refuse, where=where, place=place)
    refuse(cells, is_missing, what="missing label", mend="label or drop them (data.drop_empty = true drops them)")
    kind = _kind(cells, where, refuse)
    if kind is str:
        cells, kind = _numbers_of(cells, names, refuse)
    if kind is not str:
        cells = [int(value) for value in cells]
        refuse(cells, lambda value: value < 0, what="negative label", mend="such rows have no label: drop them")
    if names is not None:
        numbers, found = _by_name(cells, list(names), kind, where, refuse), list(names)
    else:
        classes = sorted(set(cells))
        rank = {value: number for number, value in enumerate(classes)}
        numbers, found = [rank[value] for value in cells], [str(bool(v)) if kind is bool else str(v) for v in classes]
    present = len(set(numbers))
    if present < min_classes:
        raise DataError(
            f"{where}: {counted(present, 'class', 'classes')} in {counted(len(cells), 'row')}, at least {min_classes} "
            "are needed; check the label column and the split"
        )
    return np.asarray(numbers, dtype=np.int64), found


def _kind(cells: Sequence[Any], where: str, refuse: Callable[..., None]) -> type:
    """Return the one kind of all cells: str, bool or int."""
    kinds = Counter(type(value) for value in cells)
    strange = [kind.__name__ for kind in kinds if kind not in (str, bool, int, float)]
    if strange:
        raise DataError(f"{where}: a label must be a word or a whole number, not {', '.join(strange)}")
    refuse(cells, lambda value: isinstance(value, float) and not value.is_integer(), **_NOT_WHOLE)
    merged = {int if kind is float else kind for kind in kinds}
    if len(merged) > 1:
        listed = ", ".join(f"{count} {kind.__name__}" for kind, count in kinds.most_common())
        raise DataError(f"{where}: labels of several kinds ({listed}); write them all one way")
    return merged.pop() if merged else int


def _numbers_of(cells: list[str], names: Sequence[str] | None, refuse: Callable[..., None]) -> tuple[list[Any], type]:
    """Return texts as what they say: numbers, true and false where the classes have other names, or words."""
    different = set(cells)
    if not different or (names is not None and different <= {*names}):
        return cells, str
    if names is not None and {cell.lower() for cell in different} <= {"true", "false"}:
        return [cell.lower() == "true" for cell in cells], bool
    if not all(_NUMBER.fullmatch(cell) for cell in different):
        return cells, str
    value = {cell: float(cell) for cell in different}
    refuse(cells, lambda cell: not value[cell].is_integer(), **_NOT_WHOLE)
    whole = {cell: int(cell) if cell.lstrip("-").isdecimal() else int(value[cell]) for cell in different}
    return [whole[cell] for cell in cells], int


def _by_name(cells: Sequence[Any], names: list[str], kind: type, where: str, refuse: Callable[..., None]) -> list[int]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or len(names) < 2:
        what = f"{', '.join(map(repr, repeated))} twice" if repeated else f"only {len(names)} class"
        raise DataError(f"{where}: task.labels names {what}; give each class once, at least two of them")
    number = {name: index for index, name in enumerate(names)}
    if kind is str:
        hint = f"task.labels: {', '.join(names)}"
        unknown = next((value for value in cells if value not in number), None)
        if unknown is not None and near(unknown, names).startswith("did you mean"):
            hint = f"{near(unknown, names)} ({hint})"
        refuse(cells, lambda value: value not in number, what="label outside task.labels", mend=hint)
        return [number[value] for value in cells]
    if kind is bool and {"True", "False"} == set(names):
        return [number[str(bool(value))] for value in cells]
    if all(name.isdecimal() for name in names):
        hint = f"task.labels: {', '.join(names)}"
        refuse(cells, lambda value: str(value) not in number, what="label out of range", mend=hint)
        return [number[str(value)] for value in cells]
    top = len(names) - 1
    hint = f"with {counted(len(names), 'class', 'classes')} labels run from 0 to {top}: mend task.labels or the rows"
    refuse(cells, lambda value: value > top, what="label out of range", mend=hint)
    return list(cells)


def _refuse(
    cells: Sequence[Any], wrong: Callable[[Any], bool], where: str, what: str, mend: str, place: Callable[[int], str]
) -> None:
    rows = [(row, value) for row, value in enumerate(cells) if wrong(value)]
    if rows:
        shown = ", ".join(f"{place(row)}: {value!r}" for row, value in rows[:_SHOWN])
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        raise DataError(f"{where}: {len(rows)} of {counted(len(cells), 'row')} have a {what} ({shown}{more}); {mend}")
