"""Client-level differential privacy: what a client sends is clipped, and noise is added, there or at the server.

Protected is what the server's values tell about all rows of one client together (noise at the server), or what the
client's own update tells (noise at the client). Neighbours: the client takes part, or nothing comes from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from fedsa.adapters.algebra import norm_of
from fedsa.algorithms.base import Algorithm
from fedsa.steps.base import ClientContext, MeanContext, MeanStep, Slots, Step
from fedsa.steps.changes import change_refusal
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NAME", "NoisyMean", "NoisyUpdate", "clipped", "noisy_mean", "noisy_mean_refusal"]

NAME = "client-level privacy"
"""What the steps are called in messages."""

_UNCLIPPED = "a change cannot be clipped"
"""What follows where a client does not begin with the server's values."""

_UNEQUAL_RANKS = (
    "with clients of different ranks some numbers are means over few clients, where one client changes more: leave "
    "adapter.ranks out, or set privacy.noise_at = 'client'"
)
"""Why noise for a sum does not go with them."""


@final
@dataclass(frozen=True)
class NoisyMean(MeanStep):
    """Each client clips the change of what it sends, Δ ← Δ · min(1, C / ‖Δ‖); the server adds N(0, σ²C²) to the sum.

    The new value is θ + (Σ Δ + noise) / n with n the number of clients that were asked, whoever's update came: a
    divisor that depended on who came would tell more than the noise covers.

    Source: McMahan et al., arXiv:1710.06963, with equal weights and a fixed divisor.

    Attributes:
        clipping_norm: C, over all tensors of an update together.
        noise_multiplier: σ.
    """

    clipping_norm: float
    noise_multiplier: float

    setting: ClassVar[str] = "privacy.kind"
    needs_values: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return NAME

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method."""
        return noisy_mean_refusal(algorithm, mixed_ranks=mixed_ranks)

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        """The update with its change clipped."""
        return clipped(tensors, context.before, self.clipping_norm), {}

    def on_mean(self, mean: State, slots: Slots, context: MeanContext) -> tuple[State, Slots]:
        """The sum of the changes with noise, over the number of clients that were asked."""
        return noisy_mean(mean, context, self.clipping_norm * self.noise_multiplier), {}


@final
@dataclass(frozen=True)
class NoisyUpdate(Step):
    """Each client clips the change of what it sends, and adds N(0, σ²C²) to it itself: the server need not be trusted.

    What the server does with the updates is then free: nothing that is made of them tells more.

    Attributes:
        clipping_norm: C, over all tensors of an update together.
        noise_multiplier: σ.
    """

    clipping_norm: float
    noise_multiplier: float

    setting: ClassVar[str] = "privacy.kind"

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return NAME

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method."""
        return change_refusal(algorithm, _UNCLIPPED)

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        """The update with its change clipped, and with noise."""
        sent = clipped(tensors, context.before, self.clipping_norm)
        deviation = self.clipping_norm * self.noise_multiplier
        noisy = {
            key: (sent[key].double() + deviation * context.noise.normal(sent[key].shape)).to(sent[key].dtype)
            for key in sorted(sent)
        }
        return {key: noisy[key] for key in tensors}, {}


def noisy_mean_refusal(algorithm: Algorithm, *, mixed_ranks: bool) -> str | None:
    """Why noise cannot be added to the sum of clipped changes with a method; None if it can."""
    return _UNEQUAL_RANKS if mixed_ranks else change_refusal(algorithm, _UNCLIPPED) or algorithm.mean_refusal()


def noisy_mean(mean: State, context: MeanContext, deviation: float) -> dict[Key, Tensor]:
    """The sum of the changes with noise, over the number of clients that were asked, whoever's update came.

    Args:
        mean: of the updates, all of one weight.
        context: what it is the mean of.
        deviation: the noise's standard deviation, where each update counts once.
    """
    weight = max(context.weights)  # all alike, as the recipe's rules have it
    asked = max(context.asked or 0, len(context.weights)) * weight
    noisy: dict[Key, Tensor] = {}
    for key in sorted(mean):
        before = context.before[key].double()
        noise = deviation * weight * context.noise.normal(before.shape)
        noisy[key] = before + ((mean[key] - before) * sum(context.weights) + noise) / asked
    return {key: noisy[key] for key in mean}


def clipped(tensors: State, before: State, bound: float) -> dict[Key, Tensor]:
    """Tensors whose change is not larger than a bound, over all tensors together and after rounding to their types.

    Args:
        tensors: after the training.
        before: before it.
        bound: the largest norm of the change.
    """
    starts = {key: before[key].double() for key in tensors}
    changes = {key: tensor.double() - starts[key] for key, tensor in tensors.items()}
    norm = norm_of(changes)
    made = dict(tensors)
    factor, less = min(bound / norm, 1.0) if norm else 1.0, 1e-6
    while norm > bound:
        made = {key: (starts[key] + factor * changes[key]).to(tensors[key].dtype) for key in tensors}
        norm = norm_of({key: made[key].double() - starts[key] for key in made})
        # Rounding may have made it larger again: less and less is taken, so that it ends after some tens of times.
        factor, less = factor * min(bound / norm if norm else 0.0, 1 - less), min(2 * less, 0.5)
    return made
