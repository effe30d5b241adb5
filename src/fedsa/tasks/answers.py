"""Which choice an answer names: its number, its letter, its label, its text, or true and false.

A column is read in one way for all rows: read row by row, the answer 0 would be the first choice in most rows, and in
those with a choice "0" that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray
from fedsa.tasks.values import shown
from fedsa.texts.words import counted

__all__ = ["Question", "right_places"]

_TRUTH = "true or false"


class Question(NamedTuple):
    """A row's choices, what they are called (empty: they have no names), and its answer as it stands in the cell."""

    choices: list[str]
    labels: list[str]
    answer: Any


_Reading: TypeAlias = Callable[[Question, Any], int]
"""Says which of a row's choices its answer names; none of them: it is no such answer."""


def right_places(
    questions: Sequence[Question], rows: IntArray, column: str, first_choice: int
) -> tuple[IntArray, str | None]:
    """Return the place of each row's right choice, and a sentence where the column could be read in another way, too.

    Whole numbers are numbers, if that goes with every row. Texts are labels where choices have labels, else texts,
    letters, numbers, or true and false.

    Args:
        questions: of each row.
        rows: their numbers, for messages.
        column: of the answers, for messages.
        first_choice: the number of the first choice.

    Returns:
        Places, shape (rows,), and the sentence or None.

    Raises:
        DataError: no reading fits all rows, or several of a column of texts do, and do not mean the same.

    >>> right_places([Question(["1", "0"], [], 0), Question(["5", "7"], [], 1)], np.arange(2), "answer", 0)
    (array([0, 1]), None)
    """
    cells = [each.answer.item() if isinstance(each.answer, np.generic) else each.answer for each in questions]
    kind = _kind(cells, rows, column)
    found = {name: _read(how, questions, cells) for name, how in _readings(kind, first_choice).items()}
    whole = {name: places for name, places in found.items() if (places >= 0).all()}
    if not whole:
        _refuse(found, questions, cells, rows, column)
    name, places = next(iter(whole.items()))
    others = {other: int((own != places).sum()) for other, own in whole.items() if (own != places).any()}
    if not others or name == "label":
        return places, None
    other, count = next(iter(others.items()))
    told = (
        f"column {column!r} can be read as the choice's {name} and as its {other} in all of "
        f"{counted(len(cells), 'row')}, and in {count:,} that is another choice"
    )
    if kind is str:
        raise DataError(
            f"{told}: write the right choice's number into it (from task.first_choice = {first_choice} on), as a number"
        )
    return places, f"{told[0].upper()}{told[1:]}: it is read as the {name}."


def _kind(cells: Sequence[Any], rows: IntArray, column: str) -> type:
    """The one type of all answers: bool, int (also for whole floats) or str.

    Raises:
        DataError: one is anything else, or they are of several kinds.
    """
    kinds: dict[type, int] = {}
    for row, cell in zip(rows.tolist(), cells, strict=True):
        kind = int if isinstance(cell, float) and cell.is_integer() else type(cell)
        if kind not in (bool, int, str):
            raise DataError(
                f"row {row}: column {column!r} says {shown(cell)}, which names no choice: give its number, letter, "
                "label or text, or true and false"
            )
        kinds.setdefault(kind, row)
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise DataError(
            f"column {column!r} names the right choice in several ways: row {first} by a value of type {one.__name__}, "
            f"row {second} by one of type {other.__name__}: write them all in one way"
        )
    return next(iter(kinds), str)


def _readings(kind: type, first_choice: int) -> dict[str, _Reading]:
    """The possible readings of answers of a type, the preferred first; a place outside the choices means no reading."""
    by_number: _Reading = lambda _, cell: int(cell) - first_choice  # noqa: E731
    if kind is bool:
        return {_TRUTH: _truth}
    if kind is int:
        return {
            "number": by_number,
            "label": lambda question, cell: _place(question.labels, str(int(cell))),
            "text": lambda question, cell: _place(question.choices, str(int(cell))),
        }
    return {
        "label": lambda question, cell: _place(question.labels, cell.strip()),
        "text": lambda question, cell: _place(question.choices, cell.strip()),
        "letter": lambda _, cell: _letter(cell.strip()),
        "number": lambda _, cell: by_number(_, cell) if cell.strip().isdecimal() and len(cell) < 10 else -1,
        _TRUTH: _truth,
    }


def _truth(question: Question, cell: Any) -> int:
    """Return the choice that true or false names: one of that name, else the second and the first."""
    said, choices = str(cell).strip().casefold(), [choice.strip().casefold() for choice in question.choices]
    return _place(choices if {"true", "false"} <= set(choices) else ["false", "true"], said)


def _place(names: Sequence[str], wanted: str) -> int:
    return next((place for place, name in enumerate(names) if name.strip() == wanted), -1)


def _letter(text: str) -> int:
    return ord(text.upper()) - ord("A") if len(text) == 1 and text.isascii() and text.isalpha() else -1


def _read(how: _Reading, questions: Sequence[Question], cells: Sequence[Any]) -> IntArray:
    """Return the places that one reading gives, -1 where it gives none."""
    places = np.array([how(question, cell) for question, cell in zip(questions, cells, strict=True)], dtype=np.int64)
    sizes = np.array([len(question.choices) for question in questions], dtype=np.int64)
    return np.where(places < sizes, places, -1)


def _refuse(
    found: dict[str, IntArray], questions: Sequence[Question], cells: Sequence[Any], rows: IntArray, column: str
) -> NoReturn:
    """Tell the first row that does not go with the reading that fits most rows.

    Raises:
        DataError: always.
    """
    name, places = max(found.items(), key=lambda each: int((each[1] >= 0).sum()))
    wrong = int(np.flatnonzero(places < 0)[0])
    count = int((places < 0).sum())
    choices = ", ".join(map(shown, questions[wrong].choices[:8]))
    read = f" (read as the choice's {name}, as in {len(rows) - count:,} of {counted(len(rows), 'row')})"
    said = f"{shown(cells[wrong])}{read if count < len(rows) else ''}"
    raise DataError(
        f"row {rows[wrong]}: column {column!r} says {said}, which is none of its "
        f"{counted(len(questions[wrong].choices), 'choice')} ({choices}): correct the row, task.answer, or "
        "task.first_choice"
    )
