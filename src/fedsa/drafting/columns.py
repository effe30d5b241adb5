"""What the columns of a table look like: texts, classes, numbers, lists, names that come again and again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

from fedsa.data.conversations import in_words, turns_of

__all__ = ["Column", "ColumnKind", "looked_at"]

ColumnKind: TypeAlias = Literal[
    "text", "class", "name", "number", "words", "tags", "choices", "answers", "turns", "image", "empty", "other"
]
"""text: whole phrases; class: few values, each of many rows; name: short values; words: a list of words; tags: a list
of O, B-KIND, I-KIND; choices: a list of phrases, or ARC's text and label; answers: SQuAD's text and answer_start;
turns: a conversation's, with who says what."""

_MOST_CLASSES = 200
_PHRASE_WORDS = 3.0


@final
@dataclass(frozen=True)
class Column:
    """A column and what its cells look like.

    Attributes:
        name: its name.
        kind: what it holds.
        values: of cells that are short: each value and its number of rows, the most frequent first.
        words: words in a cell, of nineteen cells in twenty at most; 0 where cells are no texts.
        whole: numbers are whole ones.
        tags: of a column of tags: all of them, sorted.
    """

    name: str
    kind: ColumnKind
    values: dict[str, int] = field(default_factory=dict)
    words: int = 0
    whole: bool = False
    tags: tuple[str, ...] = ()


def looked_at(name: str, cells: Sequence[Any], *, is_image: bool = False) -> Column:
    """Say what a column holds.

    Args:
        name: the column's.
        cells: of all rows, or of many of them.
        is_image: the data set says that they are pictures.

    >>> looked_at("mood", ["good", "bad"] * 20).kind, looked_at("score", ["0.5", "2", "3.25"] * 9).kind
    ('class', 'number')
    >>> looked_at("text", ["it rained the whole day", "the sun came out at noon"]).kind
    'text'
    """
    if is_image:
        return Column(name, "image")
    known = [cell for cell in cells if cell is not None and cell != "" and cell != []]
    if not known:
        return Column(name, "empty")
    if all(in_words(cell) is not None for cell in known):
        return Column(name, "turns", words=_most([_words_of(cell) for cell in known]))
    if all(isinstance(cell, dict) for cell in known):
        keys = {*known[0]}
        kind: ColumnKind = "answers" if {"text", "answer_start"} <= keys else "other"
        return Column(name, "choices" if {"text", "label"} <= keys else kind)
    if all(isinstance(cell, list) for cell in known):
        return _of_lists(name, known)
    if any(isinstance(cell, list | dict | bytes) for cell in known):
        return Column(name, "other")
    return _of_texts(name, known)


def _of_lists(name: str, cells: Sequence[list[Any]]) -> Column:
    entries = [entry for cell in cells for entry in cell]
    if not all(isinstance(entry, str) for entry in entries):
        return Column(name, "other")
    if all(entry == "O" or entry[:2] in ("B-", "I-") for entry in entries):
        return Column(name, "tags", tags=tuple(sorted({*entries} | {"O"}, key=lambda tag: (tag != "O", tag[2:], tag))))
    is_words = all(" " not in entry.strip() for entry in entries) and sum(map(len, cells)) > 6 * len(cells)
    return Column(name, "words" if is_words else "choices", words=_most([len(cell) for cell in cells]))


def _of_texts(name: str, cells: Sequence[Any]) -> Column:
    texts = [str(cell).strip() for cell in cells]
    counts = dict(Counter(texts).most_common())
    lengths = [len(text.split()) for text in texts]
    words, mean = _most(lengths), sum(lengths) / len(lengths)
    few = len(counts) <= min(_MOST_CLASSES, len(texts) // 5)
    numbers = [_number(text) for text in texts]
    if all(number is not None for number in numbers):
        whole = all(number is not None and number.is_integer() for number in numbers)
        if whole and few and not any(isinstance(cell, float) for cell in cells):
            return Column(name, "class", counts, words, whole=True)
        return Column(name, "number", counts if few else {}, words, whole=whole)
    if few and len(counts) > 1:
        return Column(name, "class", counts, words)
    if few:
        return Column(name, "name", counts, words)
    return Column(name, "text" if mean >= _PHRASE_WORDS else "name", {} if mean >= _PHRASE_WORDS else counts, words)


def _words_of(cell: Any) -> int:
    """Return how many words a conversation has."""
    try:
        return sum(len(turn["content"].split()) for turn in turns_of(cell, role="user"))
    except ValueError:  # a turn that cannot be read: reading the rows tells it
        return 0


def _most(lengths: Sequence[int]) -> int:
    """Return a length that nineteen of twenty do not exceed.

    >>> _most([*range(100)])
    95
    """
    return sorted(lengths)[min(len(lengths) - 1, math.ceil(0.95 * len(lengths)))]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
