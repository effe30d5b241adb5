"""The mean of each number over clients, without the smallest and the largest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.means import completed
from fedsa.steps.base import Reduction
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TrimmedMean", "middle_mean"]


@final
@dataclass(frozen=True)
class TrimmedMean(Reduction):
    """Each number by itself: of n clients' values the ⌊βn⌋ smallest and as many largest are left out; the rest's mean.

    Every client counts once, whatever its number of rows. It stands ⌊βn⌋ clients that send anything at all. The server
    holds all updates of a round.

    Source: Yin et al., arXiv:1803.01498.

    Attributes:
        trim_fraction: β, from 0 up to 0.5.
    """

    trim_fraction: float

    setting: ClassVar[str] = "robust.kind"

    @property
    def name(self) -> str:
        """What it is called in the recipe."""
        return "trimmed_mean"

    def reduce(self, updates: Iterable[tuple[State, int]], before: State) -> State:
        """The trimmed mean of each number."""
        return middle_mean(updates, before, lambda count: int(self.trim_fraction * count))


def middle_mean(
    updates: Iterable[tuple[State, int]], before: State, trimmed: Callable[[int], int]
) -> dict[Key, Tensor]:
    """The mean of the middle values of each number, in float64; nothing where no update came.

    Args:
        updates: what each client sent; the weights do not count.
        before: the server's tensors; what an update of a lower rank lacks is taken to be as it was.
        trimmed: of a number of clients, how many of the smallest and how many of the largest are left out.
    """
    sent = [tensors for tensors, _ in updates]
    if not sent:
        return {}
    count, left_out = len(sent), trimmed(len(sent))
    means = {}
    for key in sent[0]:
        values = torch.stack([completed(tensors[key].double(), before[key]) for tensors in sent])
        means[key] = values.sort(0).values[left_out : count - left_out].mean(0)
    return means
