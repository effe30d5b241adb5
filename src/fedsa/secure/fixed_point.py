"""Numbers as integers that can be added up without rounding: with a fixed number of bits after the binary point.

A value x becomes the integer nearest to x · 2^f, and a weight w times it. Integers add up exactly, modulo 2^64, in
whatever order and grouping. So masks cancel without a trace, and a site may sum its clients before it sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from fedsa.errors import TrainingError, UserError
from fedsa.texts.words import counted
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LARGEST", "FixedPoint", "added", "fixed_point_for"]

_RANGE_BITS = 20
LARGEST = 2.0**_RANGE_BITS
"""The largest absolute value that can be sent. A larger one is refused, never clipped."""

_SUM_BITS = 62  # of the absolute value of a sum; 63 would be enough, and a sum of 2^62 is seen to be none
_FEWEST_BITS = 10  # after the point: with fewer of them the error could show in a model's figures


@final
@dataclass(frozen=True)
class FixedPoint:
    """A number of bits after the point, the same for all who are in one sum.

    Attributes:
        bits: f.
    """

    bits: int

    @property
    def largest_error(self) -> float:
        """By how much a mean of encoded values can differ from the mean of the values: half a step.

        The mean itself is rounded to float64 as any other.
        """
        return float(2.0 ** -(self.bits + 1))

    def encode(self, tensors: State, weight: int, whose: str) -> dict[Key, Tensor]:
        """The values as integers of 64 bits, times a weight.

        Args:
            tensors: float tensors.
            weight: a count > 0.
            whose: for the error.

        Raises:
            TrainingError: a value is not finite, or larger than `LARGEST`.
        """
        encoded = {}
        for key, tensor in tensors.items():
            values = tensor.double()
            if not bool((values.abs() <= LARGEST).all()):
                raise TrainingError(
                    f"{whose}: {key} has a value that is not finite or larger than {LARGEST:,.0f}, which secure "
                    "aggregation cannot add up: lower the learning rate, or set secure_aggregation = false"
                )
            encoded[key] = torch.round(values * 2.0**self.bits).to(torch.int64) * weight
        return encoded

    def decode_mean(self, sums: State, weight: int) -> dict[Key, Tensor]:
        """The weighted mean, in float64, from the sums of `encode`.

        Args:
            sums: integers of 64 bits.
            weight: the sum of the weights.
        """
        return {key: total.double() / (weight * 2.0**self.bits) for key, total in sums.items()}


def fixed_point_for(weight: int) -> FixedPoint:
    """The finest fixed point with which no sum can overflow.

    Args:
        weight: the sum of all weights that can come together.

    Raises:
        UserError: the weights are so large that hardly any bits would be left.

    >>> fixed_point_for(2600).largest_error < 1e-9
    True
    """
    bits = _SUM_BITS - _RANGE_BITS - weight.bit_length()
    if bits < _FEWEST_BITS:
        raise UserError(
            f"secure_aggregation: clients with {counted(weight, 'row')} in all leave "
            f"{counted(max(bits, 0), 'bit')} for what comes after the point of a number, and {_FEWEST_BITS} are "
            "needed: set weighting = 'uniform'"
        )
    return FixedPoint(bits)


def added(states: Iterable[State]) -> dict[Key, Tensor]:
    """The sum of encoded tensors, modulo 2^64; empty states are passed over."""
    sums: dict[Key, Tensor] = {}
    for state in states:
        for key, tensor in state.items():
            sums[key] = sums[key].add_(tensor) if key in sums else tensor.clone()
    return sums
