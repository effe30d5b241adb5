"""What stands in a row's cell, read as a text; what is none is refused and not spelt out as Python code."""

from __future__ import annotations

import datetime
import decimal
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from fedsa.errors import DataError

__all__ = ["check_template", "shown", "text_of", "texts_of"]

_PLAIN = (bool, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)
"""Types whose values are written as anybody would write them."""


def text_of(value: Any, row: int, column: str) -> str:
    """Return a cell's value as a text: a text as it is, a number, a date or true and false as they are written.

    Args:
        value: of the cell.
        row: its row's number, for the message.
        column: its column, for the message.

    Raises:
        DataError: it is empty, a list, a table or anything else.

    >>> text_of("so", 0, "text"), text_of(3, 0, "text")
    ('so', '3')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, _PLAIN) and value == value:  # NaN is no value
        return str(value)
    raise DataError(f"row {row}: column {column!r} holds {_kind(value)} where a text is needed: {_mend(value)}")


def texts_of(values: Any, row: int, column: str, what: str) -> list[str]:
    """Return a cell's list of texts.

    Args:
        values: of the cell.
        row: its row's number.
        column: its column.
        what: what the list is of, e.g. ``words``.

    Raises:
        DataError: it is no list, or something in it is no text.
    """
    if not isinstance(values, list | tuple):
        raise DataError(f"row {row}: column {column!r} must hold a list of {what} (got {shown(values)})")
    for value in values:
        if not isinstance(value, str) and (value is None or not isinstance(value, _PLAIN) or value != value):
            raise DataError(
                f"row {row}: the list of {what} in column {column!r} holds {_kind(value)} where a text is needed: "
                "correct the row or leave it out"
            )
    return [value if isinstance(value, str) else str(value) for value in values]


def check_template(cell: Mapping[str, Any], columns: Iterable[str], row: int) -> None:
    """Refuse a row whose columns cannot stand in a template: a template's value is a text.

    Args:
        cell: the row's columns.
        columns: those that the template names.
        row: the row's number.

    Raises:
        DataError: with the column.
    """
    for column in columns:
        if not isinstance(cell[column], str):
            text_of(cell[column], row, column)


def shown(value: Any) -> str:
    """Return a value for a message, in one short line."""
    return textwrap.shorten(repr(value), 80, placeholder=" ...") if not isinstance(value, str) else f"{value[:60]!r}"


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "nothing"
    if isinstance(value, Mapping):
        return f"a table ({shown(value)})"
    if isinstance(value, list | tuple):
        return f"a list ({shown(value)})"
    return f"a value of type {type(value).__name__}"


def _mend(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return "write what is to be read of it into a column of its own, as a text, and name that column"
    return "fill it in, leave the row out, or name another column"
