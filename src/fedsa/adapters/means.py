"""Means over clients: of their tensors, and of their updates of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from fedsa.adapters.algebra import padded, pairs
from fedsa.types import Factor, Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["completed", "mean_update", "product", "weighted_mean"]


def weighted_mean(states: Iterable[tuple[State, int]], before: State | None = None) -> dict[Key, Tensor]:
    """The weighted mean Σ wᵢxᵢ / Σ wᵢ of each tensor, in float64; empty if there are no states.

    Only the sums are in memory, whatever the number of states. A product wᵢxᵢ is exact for x of 24 bits (fp32, bf16)
    and weights below 2²⁹, so the only error is the rounding of a float64 sum. Rounded to x's own dtype, the mean of one
    state is that state, bit for bit. If ranks differ, each row of A and column of B is the mean over the states that
    have it.

    Args:
        states: states with the same keys, each with its weight, a count > 0.
        before: tensors of the full shapes, for rows and columns that no state has; only needed if ranks differ.
    """
    sums: dict[Key, Tensor] = {}
    weights: dict[Key, Tensor] = {}
    for tensors, weight in states:
        for key, tensor in tensors.items():
            term = tensor.double() * weight
            there = torch.full((1,) * term.dim(), weight, dtype=torch.float64)
            if key in sums and sums[key].shape == term.shape and weights[key].numel() == 1:
                sums[key].add_(term)
                weights[key] = weights[key] + there
            elif key in sums:
                shape = [max(sizes) for sizes in zip(sums[key].shape, term.shape, strict=True)]
                weights[key] = padded(weights[key].expand(sums[key].shape), shape) + padded(
                    there.expand(term.shape), shape
                )
                sums[key] = padded(sums[key], shape) + padded(term, shape)
            else:
                sums[key], weights[key] = term, there
    means = {key: total / weights[key] for key, total in sums.items()}
    return {key: completed(mean, (before or {}).get(key)) for key, mean in means.items()}


def mean_update(
    tensors: State, scaling: Mapping[str, float], updates: Iterable[tuple[State, int]]
) -> dict[str, Tensor]:
    """The mean update Σ wᵢ·s·Bᵢ·Aᵢ / Σ wᵢ of each module, shape (out, in), in float64; empty if there are no updates.

    Args:
        tensors: the server's. A factor that a client did not send is taken from them. Clients' ranks may differ.
        scaling: s of each module.
        updates: clients' tensors, each with its weight.
    """
    sums: dict[str, Tensor] = {}
    whole = 0
    for sent, weight in updates:
        whole += weight
        for module, (b, a) in pairs({**tensors, **sent}).items():
            rank = min(b.shape[1], a.shape[0])  # a factor that was not sent has the server's rank
            term = b[:, :rank].double() @ a[:rank].double() * (weight * scaling[module])
            sums[module] = sums[module].add_(term) if module in sums else term
    return {module: total / whole for module, total in sums.items()}


def product(tensors: State, scaling: Mapping[str, float], module: str) -> Tensor:
    """The update s·B·A of a module, shape (out, in), in float64."""
    b, a = (tensors[Key(module, factor)].double() for factor in (Factor.B, Factor.A))
    return b @ a * scaling[module]


def completed(value: Tensor, before: Tensor | None) -> Tensor:
    """A tensor of a lower rank, completed with the rows and columns of ``before`` that it lacks, in float64."""
    if before is None or value.shape == before.shape:
        return value
    whole = before.double().clone()
    whole[tuple(slice(0, size) for size in value.shape)] = value
    return whole
