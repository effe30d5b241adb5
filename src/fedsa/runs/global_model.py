"""One model for all, from a federation's result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedsa.adapters.algebra import pairs
from fedsa.algorithms.base import Algorithm
from fedsa.client.state import personal_tensors
from fedsa.runs.personal import PersonalStates, Weighted, mean_personal, trained_keys
from fedsa.server import received_by
from fedsa.types import Factor, Key, State

__all__ = ["fit_global", "global_model"]

_RIDGE = 1e-6  # of the mean of ĀĀᵀ's diagonal: keeps a solvable system solvable, and changes nothing else


def global_model(states: PersonalStates, algorithm: Algorithm, how: Literal["average", "fit"]) -> State:
    """Return the tensors of one model for all.

    Args:
        states: the federation's result.
        algorithm: its method.
        how: ``average``: what is shared, and the mean of what is personal; ``fit``: each module's B as `fit_global`.
    """
    initial, recipe = states.initial, states.recipe
    keys = trained_keys(recipe.rounds, algorithm, initial, personal=True)
    received = received_by(algorithm, states.server, "", recipe.rounds + 1)
    shared = algorithm.models(personal_tensors(algorithm, algorithm.whole(initial), None, received))
    average = {**shared, **mean_personal(states.trained(), keys, initial)}
    return {**average, **fit_global(average, states.own(), algorithm.adapters)} if how == "fit" else average


def fit_global(average: State, own: Iterable[Weighted], adapters: Sequence[str]) -> dict[Key, Tensor]:
    """Return the B of each module whose B·Ā is nearest to the weighted mean of clients' B·A, Ā being the average's A.

    It is B̂ = mean(BᵢAᵢ)·Āᵀ·(ĀĀᵀ + εI)⁻¹, in float64. No BᵢAᵢ is ever made: BᵢAᵢĀᵀ is Bᵢ times a matrix of the ranks.

    Args:
        average: of all tensors.
        own: each client's tensors as its training left them, and its weight.
        adapters: the PEFT adapters.
    """
    known = {
        (adapter, module): a.double() for adapter in adapters for module, (_, a) in pairs(average, adapter).items()
    }
    sums: dict[tuple[str, str], Tensor] = {}
    total = 0
    for tensors, weight in own:
        total += weight
        for adapter in adapters:
            for module, (b, a) in pairs(tensors, adapter).items():
                term = weight * b.double() @ (a.double() @ known[adapter, module].T)
                sums[adapter, module] = sums[adapter, module] + term if (adapter, module) in sums else term
    fitted = {}
    for (adapter, module), target in sums.items():
        a = known[adapter, module]
        gram = a @ a.T
        gram = gram + torch.eye(len(gram), dtype=gram.dtype) * (_RIDGE * gram.diagonal().mean())
        key = Key(module, Factor.B, adapter)
        fitted[key] = torch.linalg.solve(gram, (target / total).T).T.to(average[key].dtype).contiguous()
    return fitted
