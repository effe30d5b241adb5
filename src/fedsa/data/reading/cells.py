"""Cells as texts: one way for all formats, and a refusal of what is no text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedsa.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["as_texts", "kind_of", "refuse_cell", "text_of"]

_EXACT = 2**53
"""Whole numbers from here on are not told apart by floating-point numbers."""

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", bytes: "bytes"}


def kind_of(value: object) -> str:
    """The kind of a cell's content, in a user's words.

    >>> kind_of(3.5), kind_of(["a"]), kind_of({"a": 1})
    ('a number', 'a list', 'a table')
    """
    return _KINDS.get(type(value), "a table" if isinstance(value, dict) else "a list")


def text_of(value: Any) -> str | None:
    """Return a cell as text: a whole number without a decimal point, however it is stored; None for an empty cell.

    Raises:
        ValueError: it is a list, a table or bytes, or a number that is too large for its format to be exact.

    >>> [text_of(value) for value in ("007", 7, 7.0, 0.5, True, None, float("nan"))]
    ['007', '7', '7', '0.5', 'True', None, None]
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(value)
    if not isinstance(value, float):
        raise ValueError(f"holds {kind_of(value)}")
    if math.isnan(value):
        return None
    if not value.is_integer():
        return repr(value)
    if abs(value) >= _EXACT:
        raise ValueError(f"holds {value!r}, a floating-point number that is too large to be exact")
    return str(int(value))


def refuse_cell(column: str, place: str, problem: str) -> DataError:
    """Return the error of a cell that is no text."""
    return DataError(f"{place}: column {column!r} {problem}, and a text is needed: write these cells as texts")


def as_texts(column: pa.ChunkedArray, name: str, place: Callable[[int], str]) -> pa.ChunkedArray:
    """Return a column as texts, with null for an empty cell.

    Args:
        column: of any type.
        name: its name, for the message.
        place: of a row number: where the row is, for the message.

    Raises:
        DataError: it holds lists, tables or bytes, or numbers that are not exact; the first such row is named.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "True", "False")
    plain = pa.types.is_integer, pa.types.is_decimal, pa.types.is_temporal, pa.types.is_null
    if any(is_kind(kind) for is_kind in (*plain, pa.types.is_large_string, pa.types.is_string_view)):
        return column.cast(pa.string())
    texts: list[str | None] = []
    for row, value in enumerate(column.to_pylist()):
        try:
            texts.append(text_of(value))
        except ValueError as error:
            raise refuse_cell(name, place(row), str(error)) from None
    return pa.chunked_array([pa.array(texts, pa.string())])
