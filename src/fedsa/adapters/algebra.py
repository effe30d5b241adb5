"""Adapters as maths: ranks, products, and low-rank factors of a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fedsa.types import Factor, Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RANK_DIMENSION", "cropped", "fits", "low_rank", "norm_of", "padded", "pairs", "rank_of", "ranked"]

RANK_DIMENSION = {Factor.A: 0, Factor.B: 1}
"""The dimension of a tensor that is as long as the rank."""


def pairs(tensors: Mapping[Key, Tensor], adapter: str = "default") -> dict[str, tuple[Tensor, Tensor]]:
    """Return (B, A) of each module that has both: shapes (out, r) and (r, in)."""
    return {
        key.module: (tensors[key._replace(factor=Factor.B)], a)
        for key, a in tensors.items()
        if key.factor is Factor.A and key.adapter == adapter and key._replace(factor=Factor.B) in tensors
    }


def rank_of(tensors: Mapping[Key, Tensor]) -> int | None:
    """Return the rank of a client's A's and B's; None where it has none."""
    for key, tensor in tensors.items():
        if key.factor in RANK_DIMENSION:
            return tensor.shape[RANK_DIMENSION[key.factor]]
    return None


def ranked(tensors: State, rank: int | None) -> State:
    """Return the tensors with the first ``rank`` rows of A and columns of B; as they are where there are no more."""
    if rank is None:
        return tensors
    return {
        key: tensor.narrow(RANK_DIMENSION[key.factor], 0, rank)
        if key.factor in RANK_DIMENSION and tensor.shape[RANK_DIMENSION[key.factor]] > rank
        else tensor
        for key, tensor in tensors.items()
    }


def norm_of(tensors: State) -> float:
    """The Euclidean norm over all tensors together, in float64.

    They are added up in the order of their keys: those of a message come in another order than those of a simulation.
    """
    return float(sum(float(tensors[key].double().square().sum()) for key in sorted(tensors)) ** 0.5)


def fits(key: Key, shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Say whether a client's tensor is one of a model's: of its shape, or of a lower rank."""
    free = RANK_DIMENSION.get(key.factor)
    return len(shape) == len(whole) and all(
        own == size or (dimension == free and own < size)
        for dimension, (own, size) in enumerate(zip(shape, whole, strict=True))
    )


def cropped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the first values of a tensor, of at most a shape: what `padded` put behind them is cut off again."""
    return tensor if tuple(tensor.shape) == tuple(shape) else tensor[tuple(slice(0, size) for size in shape)]


def padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the tensor with zeros behind its values, of a shape that is nowhere smaller."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    missing = [
        pad for own, size in zip(reversed(tensor.shape), reversed(shape), strict=True) for pad in (0, size - own)
    ]
    return F.pad(tensor, missing)


def low_rank(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of rank ``rank`` of the product b·a: (U·σ, Vᵀ), singular values falling.

    The product is never formed where the inner dimension is the smallest: b = QR, aᵀ = PS, and R·Sᵀ is small.

    Args:
        b: shape (out, n).
        a: shape (n, in).
        rank: at most min(out, in).

    Returns:
        Shapes (out, rank) and (rank, in); columns and rows beyond the product's own rank are zero and arbitrary.
    """
    (out, inner), width = b.shape, a.shape[1]
    if inner < min(out, width):
        q, r = torch.linalg.qr(b)
        p, s = torch.linalg.qr(a.T)
        u, sigma, v = torch.linalg.svd(r @ s.T)
        left, right = q @ (u * sigma), v @ p.T
    else:
        u, sigma, v = torch.linalg.svd(b @ a, full_matrices=False)
        left, right = u * sigma, v
    left, right = left[:, :rank], right[:rank]
    return padded(left, (out, rank)), padded(right, (rank, width))
