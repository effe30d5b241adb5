"""What the server makes of a round's mean: the step to it, taken as a gradient of the server's own.

With Δ = the mean of what was sent − the value before, element by element:

- FedAvgM (arXiv:1909.06335): m ← βm + Δ, x ← x + ηm; with β = 0 and η = 1 it is the mean itself.
- FedAdam (arXiv:2003.00295): m ← β₁m + (1 − β₁)Δ, v ← β₂v + (1 − β₂)Δ², x ← x + ηm / (√v + τ).
- FedYogi (the same): as FedAdam, but v ← v − (1 − β₂)Δ²·sign(v − Δ²).

m starts at 0 and v at τ², as in the papers; there is no correction of the start. A tensor that is not sent in a round
rests, and its moments with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fedsa.algorithms.base import ServerState
from fedsa.errors import TrainingError
from fedsa.recipe import ServerSettings
from fedsa.types import Key

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["stepped"]

_WIDEST = 1e6
"""Of a step. Values of an adapter or a head are around 1; clients that train on larger ones get losses that are not
finite, and would be told that their own learning rate is too high."""


def stepped(before: ServerState, after: ServerState, sent: Iterable[Key], settings: ServerSettings) -> ServerState:
    """Return the state after a server optimiser's step; pure.

    It is computed in float64; values and moments are kept in the dtype of the state's tensors. Moments are slots of the
    state, ``m|key`` and ``v|key``, so whoever saves the state saves them.

    Args:
        before: the state before the round.
        after: the state after the method's own aggregation.
        sent: the tensors that were sent in the round, of which ``after`` holds the mean; others stay as they are.
        settings: the recipe's ``[server]``.

    Raises:
        TrainingError: the step is so wide that no client could train on.
    """
    if settings.optimizer == "none":
        return after
    tensors, slots = dict(after.tensors), dict(after.slots)
    for key in sent:
        old = before.tensors[key].double()
        step, moments = _step(after.tensors[key].double() - old, before.slots, key, settings)
        dtype = after.tensors[key].dtype
        tensors[key] = (old + step).to(dtype)
        if not bool((step.abs() <= _WIDEST).all()):
            raise TrainingError(
                f"the server's step on {key} is as wide as {float(step.abs().max()):.1e}; lower server.learning_rate "
                f"(now {_given(settings.learning_rate):g})"
            )
        slots |= {f"{name}|{key}": moment.to(dtype) for name, moment in moments.items()}
    return replace(after, tensors=tensors, slots=slots)


def _step(
    delta: Tensor, slots: Mapping[str, Tensor], key: Key, settings: ServerSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what is added to a tensor's value, and its new moments, in float64."""

    def moment(name: str, start: float) -> Tensor:
        kept = slots.get(f"{name}|{key}")
        return torch.full_like(delta, start) if kept is None else kept.double()

    rate = _given(settings.learning_rate)
    if settings.optimizer == "fedavgm":
        m = _given(settings.momentum) * moment("m", 0.0) + delta
        return rate * m, {"m": m}
    beta1, beta2, tau = _given(settings.beta1), _given(settings.beta2), _given(settings.tau)
    m = beta1 * moment("m", 0.0) + (1 - beta1) * delta
    v, square = moment("v", tau**2), delta.square()
    toward = (v - square).sign() * square if settings.optimizer == "fedyogi" else v - square
    v = v - (1 - beta2) * toward
    return rate * m / (v.sqrt() + tau), {"m": m, "v": v}


def _given(value: float | None) -> float:
    """Return a setting that the recipe has filled in for its optimiser."""
    if value is None:
        raise ValueError("a server setting is empty: ServerSettings fills in what goes with its optimizer")
    return value
