"""What the server makes of a round's mean: the step to it, taken as a gradient of the server's own.

With Δ = the mean of what was sent − the value before, element by element:

- FedAvgM (arXiv:1909.06335): m ← βm + Δ, x ← x + ηm; with β = 0 and η = 1 it is the mean itself.
- FedAdam (arXiv:2003.00295): m ← β₁m + (1 − β₁)Δ, v ← β₂v + (1 − β₂)Δ², x ← x + ηm / (√v + τ).
- FedYogi (the same): as FedAdam, but v ← v − (1 − β₂)Δ²·sign(v − Δ²).

m starts at 0 and v at τ², as in the papers; there is no correction of the start. A tensor that is not sent in a round
rests, and its moments with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.algorithms.base import Algorithm
from fedsa.errors import TrainingError
from fedsa.recipe import FedAdamSettings, FedAvgMSettings
from fedsa.steps.base import MeanContext, MeanStep, Slots
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ServerOptimizer", "optimizer_refusal"]

_WIDEST = 1e6
"""Of a step. Values of an adapter or a head are around 1; clients that train on larger ones get losses that are not
finite, and would be told that their own learning rate is too high."""


_COMBINING = ("combine", "combine_weighted", "renewed")
"""The methods that make the server's new values of the mean."""


@final
@dataclass(frozen=True)
class ServerOptimizer(MeanStep):
    """A step towards the mean, with a learning rate and moments.

    It is computed in float64; moments are kept in the dtype of the server's tensors, as slots ``m|key`` and ``v|key``.

    Attributes:
        settings: the recipe's ``[server]``, with an optimizer.
    """

    settings: FedAvgMSettings | FedAdamSettings

    setting: ClassVar[str] = "server.optimizer"
    needs_values: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Which optimiser it is."""
        return self.settings.optimizer

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the optimiser cannot be used with a method: the method must average in place."""
        return optimizer_refusal(algorithm)

    def on_mean(self, mean: State, slots: Slots, context: MeanContext) -> tuple[State, Slots]:
        """Where the step leads, and the new moments.

        Raises:
            TrainingError: the step is so wide that no client could train on.
        """
        values: dict[Key, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for key, value in mean.items():
            before = context.before[key]
            # The mean as the server would keep it: without momentum the optimiser then keeps it bit for bit.
            delta = value.to(before.dtype).double() - before.double()
            step, own = self._step(delta, slots, key)
            if not bool((step.abs() <= _WIDEST).all()):
                raise TrainingError(
                    f"the server's step on {key} is as large as {float(step.abs().max()):.1e}; lower "
                    f"server.learning_rate (now {self.settings.learning_rate:g})"
                )
            values[key] = before.double() + step
            moments |= {f"{name}|{key}": moment.to(before.dtype) for name, moment in own.items()}
        return values, moments

    def _step(self, delta: Tensor, slots: Slots, key: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """The change of a tensor's value, and its new moments, in float64."""
        settings = self.settings

        def moment(name: str, start: float) -> Tensor:
            kept = slots.get(f"{name}|{key}")
            return torch.full_like(delta, start) if kept is None else kept.double()

        rate = settings.learning_rate
        if isinstance(settings, FedAvgMSettings):
            m = settings.momentum * moment("m", 0.0) + delta
            return rate * m, {"m": m}
        beta1, beta2, tau = settings.beta1, settings.beta2, settings.tau
        m = beta1 * moment("m", 0.0) + (1 - beta1) * delta
        v, square = moment("v", tau**2), delta.square()
        toward = (v - square).sign() * square if settings.optimizer == "fedyogi" else v - square
        v = v - (1 - beta2) * toward
        return rate * m / (v.sqrt() + tau), {"m": m, "v": v}


def optimizer_refusal(algorithm: Algorithm) -> str | None:
    """Why a server optimiser cannot be used with a method; None if it can.

    The optimiser treats the difference between a tensor's value and the mean of the updates as a gradient. So each
    sent tensor's new value must be that mean, and clients must start from its old value.
    """
    reason = algorithm.mean_refusal()
    if reason is not None:
        return reason
    if algorithm.folds:
        return "its server adds to the frozen weights, so a sent tensor does not start from the previous mean"
    if any(getattr(type(algorithm), name) is not getattr(Algorithm, name) for name in _COMBINING):
        return "its server computes other values than the mean of what is sent"
    return None
