"""How frequent each class is at a client, as a part of its head that is known and need not be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from fedsa.adapters.heads import bias_of_classes
from fedsa.algorithms.base import Algorithm
from fedsa.types import Key, State

__all__ = ["ClassPriors", "class_priors"]

_ADDED = 1.0
"""Rows that are added to each class's, so that no class is impossible."""


@final
@dataclass(frozen=True)
class ClassPriors:
    """What is added to the head's bias in a client's model, in training and in use, and taken off before it is sent.

    That is log((nᵢ + 1) / (n + classes)) of each class, with nᵢ of the client's n training rows, less its mean over the
    classes. A head under it learns how likely a row is in each class, whatever the class's frequency at the client;
    this is what clients have in common where they differ in frequencies alone. Such an adjustment of logits in training
    is known (arXiv:2007.07314), in federations too (arXiv:2107.00778, arXiv:2209.00189).

    Attributes:
        bias: the head's bias, a number for each class.
        counts: client id to the number of its training rows of each class.
    """

    bias: Key
    counts: Mapping[str, Sequence[int]]

    def added(self, client: str, tensors: State) -> State:
        """A client's tensors as its model has them."""
        return self._changed(client, tensors, 1)

    def taken_off(self, client: str, tensors: State) -> State:
        """A client's tensors as the method has them, from those of its model."""
        return self._changed(client, tensors, -1)

    def _changed(self, client: str, tensors: State, sign: int) -> State:
        if self.bias not in tensors:
            return tensors
        frequencies = torch.tensor(self.counts[client], dtype=torch.float64) + _ADDED
        prior = frequencies.log() - frequencies.log().mean()
        value = tensors[self.bias]
        return {**tensors, self.bias: (value.double() + sign * prior.to(value.device)).to(value.dtype)}


def class_priors(
    algorithm: Algorithm, tensors: State, counts: Mapping[str, Sequence[int]] | None
) -> ClassPriors | None:
    """Return what clients' heads have of their own from the start; None: the method or the head has no place for it.

    Args:
        algorithm: the method.
        tensors: the model's.
        counts: client id to the number of its training rows of each class; None or empty: there are no classes.
    """
    if not algorithm.class_prior or not counts:
        return None
    bias = bias_of_classes(tensors, len(next(iter(counts.values()))))
    return None if bias is None else ClassPriors(bias, counts)
