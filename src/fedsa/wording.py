"""Numbers in words, the same in terminal and report."""

from __future__ import annotations

from collections.abc import Sequence

from fedsa.words import counted

__all__ = ["counted", "some"]


def some(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, the middle of many left out.

    >>> some([1, 3]), some(range(1, 1000, 2))
    ('1, 3', '1, 3, 5, ..., 999')
    """
    shown = [f"{number:,}" for number in numbers]
    return ", ".join(shown if len(shown) < 6 else [*shown[:3], "...", shown[-1]])
