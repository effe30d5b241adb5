"""Texts that stay short and readable, whatever is put into them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

__all__ = ["brief", "counted", "cut", "shortened", "sized", "some"]

_LINE = 1000
_LINES = 60


class _Brief(reprlib.Repr):
    """Python's spelling of a value, a few entries and levels of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 80, 40
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 5

    def repr_int(self, x: int, level: int) -> str:
        """Return the number, or how long it is: Python refuses to spell thousands of digits."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a number of {x.bit_length()} bits"


_brief = _Brief()


def brief(value: Any) -> str:
    """Return a value as Python spells it; of a long or deep one, the beginning and the end.

    >>> brief("lora"), brief(10**5000), brief([[[[["deep"]]]]])
    ("'lora'", 'a number of 16610 bits', '[[[[...]]]]')
    """
    return cut(_brief.repr(value), 200)


def counted(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun, in the plural (with s, where none is given) unless there is one.

    >>> counted(1, "round"), counted(2000, "round"), counted(2, "class", "classes")
    ('1 round', '2,000 rounds', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def cut(text: str, limit: int) -> str:
    """Return a text, or its beginning and its end where it is longer than ``limit`` characters.

    >>> cut("a long, long text", 9)
    'a l...ext'
    """
    if len(text) <= limit:
        return text
    end = (limit - 3) // 2
    return f"{text[: limit - 3 - end]}...{text[len(text) - end :]}"


def shortened(text: str) -> str:
    """Return a message of bounded length: long lines lose their middle, and many lines their end."""
    lines = text.split("\n")
    more = [f"... and {counted(len(lines) - _LINES, 'line')} more"] if len(lines) > _LINES else []
    return "\n".join([cut(line, _LINE) for line in lines[:_LINES]] + more)


def sized(count: float) -> str:
    """Return a number of bytes as text, in decimal units.

    >>> sized(999), sized(147_456), sized(1.5e9)
    ('999 bytes', '147.5 kB', '1.5 GB')
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} {'byte' if count == 1 else 'bytes'}"


def some(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, the middle of many left out.

    >>> some([1, 3]), some(range(1, 1000, 2))
    ('1, 3', '1, 3, 5, ..., 999')
    """
    shown = [f"{number:,}" for number in numbers]
    return ", ".join(shown if len(shown) < 6 else [*shown[:3], "...", shown[-1]])
