"""A fleet: all clients of a federation, as the round loop sees them, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fedsa.types import Moment, Payloads, SplitName, Update

__all__ = ["Fleet"]


class Fleet(Protocol):
    """The clients of a federation, as the server sees them."""

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have clients train, and yield their updates in the order of their ids, each when it is asked for.

        A client whose update does not come is left out.
        """
        ...

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield each client's id and metrics on a split, as of the end of the round before the payloads'."""
        ...
