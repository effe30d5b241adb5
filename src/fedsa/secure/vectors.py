"""Encoded tensors and their weight as one row of integers, which masks are laid over; and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsa.types import Key, State

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["as_state", "as_vector"]


def as_vector(tensors: State, weight: int) -> NDArray[np.uint64]:
    """Integers of 64 bits: those of the tensors, in the order of their names, and the weight.

    Args:
        tensors: encoded, or masked.
        weight: a count, or a masked one, below 2^64.
    """
    rows = [tensors[key].contiguous().flatten().numpy().view(np.uint64) for key in sorted(tensors)]
    return np.concatenate([*rows, np.array([weight], dtype=np.uint64)])


def as_state(vector: NDArray[np.uint64], shapes: Mapping[Key, tuple[int, ...]]) -> tuple[dict[Key, Tensor], int]:
    """The tensors and the weight of a row of integers.

    Args:
        vector: as `as_vector` made it.
        shapes: of the tensors.
    """
    tensors, place = {}, 0
    for key in sorted(shapes):
        size = math.prod(shapes[key])
        row = vector[place : place + size].view(np.int64).copy()
        tensors[key] = torch.from_numpy(row).reshape(shapes[key])
        place += size
    return tensors, int(vector[place])
