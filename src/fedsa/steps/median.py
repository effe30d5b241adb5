"""The median of each number over clients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

from fedsa.steps.base import Reduction
from fedsa.steps.trimmed_mean import middle_mean
from fedsa.types import State

__all__ = ["Median"]


@final
@dataclass(frozen=True)
class Median(Reduction):
    """Each number by itself: the middle one of the clients' values, or the mean of the two in the middle.

    Every client counts once, whatever its number of rows. It stands clients that send anything at all, as long as they
    are fewer than half. The server holds all updates of a round.

    Source: Yin et al., arXiv:1803.01498.
    """

    setting: ClassVar[str] = "robust.kind"

    def reduce(self, updates: Iterable[tuple[State, int]], before: State) -> State:
        """The median of each number."""
        return middle_mean(updates, before, lambda count: (count - 1) // 2)
