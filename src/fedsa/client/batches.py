"""Groups of a fixed size, for things that come one by one: `itertools.batched`, which Python 3.11 does not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

__all__ = ["batched"]

T = TypeVar("T")


def batched(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the things in lists of ``size``; the last one may be shorter. They are taken as they are needed.

    >>> list(batched("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    remaining = iter(things)
    while group := list(islice(remaining, size)):
        yield group
