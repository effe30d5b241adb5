"""How laws compare tensors, and say what does not hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["are_close", "are_equal", "hold", "mean_effects"]


def hold(condition: bool, what: str) -> None:
    """Say what is wrong where a condition does not hold.

    Raises:
        AssertionError: it does not hold.
    """
    if not condition:
        raise AssertionError(what)


def are_equal(one: Mapping[Any, Tensor], two: Mapping[Any, Tensor]) -> bool:
    """Whether two states have the same tensors, value by value."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def are_close(one: Mapping[str, Tensor], two: Mapping[str, Tensor], tolerance: float) -> bool:
    """Whether two states have the same names, and their tensors differ by less than a part of their size."""
    if one.keys() != two.keys():
        return False
    return all(float((one[name] - two[name]).norm()) <= tolerance * (1e-9 + float(two[name].norm())) for name in one)


def mean_effects(effects: Collection[Mapping[str, Tensor]], weights: Sequence[int]) -> dict[str, Tensor]:
    """The weighted mean of clients' effects, by name."""
    whole = sum(weights)
    names = next(iter(effects))
    return {
        name: torch.stack([own[name] * weight for own, weight in zip(effects, weights, strict=True)]).sum(0) / whole
        for name in names
    }
