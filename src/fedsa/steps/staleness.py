"""What an update counts that comes after the round in which it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedsa.adapters.algebra import cropped
from fedsa.algorithms.base import Algorithm
from fedsa.steps.base import Step
from fedsa.steps.server_optimizer import optimizer_refusal
from fedsa.types import State, Update

__all__ = ["Staleness"]


@final
@dataclass(frozen=True)
class Staleness(Step):
    """What a client learned is taken over to the server's present values: x ← θ + (1+s)^-a · (x - θ_base).

    θ_base is what the client began with, s rounds ago, and θ what the server holds now. So the mean of a round does not
    go back towards old values, and an update counts less, the later it comes. One that comes in time stays as it is.

    Sources: Nguyen et al., arXiv:2106.06639 (a buffer, of differences); Xie et al., arXiv:1903.03934 (the weight).

    Attributes:
        exponent: a.
        most: the largest s that counts.
    """

    exponent: float
    most: int

    setting: ClassVar[str] = "overlap.kind"
    needs_values: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What it is called in the recipe."""
        return "overlap"

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why rounds of the method cannot overlap: a difference to old values must be one to the present values too."""
        reason = optimizer_refusal(algorithm)
        if reason is not None:
            return reason
        if algorithm.restarts:
            return "its clients do not begin with the server's values"
        for key in filter(algorithm.in_model, algorithm.every_kind()):
            first, second = (algorithm.plan(key, round) for round in (1, 2))
            if first != second:
                return "what its clients send is not the same in all rounds, so a late update fits none but its own"
            if first.sent and not first.received:
                return "its clients do not begin with the server's values"
        return None

    def weight(self, staleness: int) -> float:
        """The part of a difference that counts when it comes so many rounds late.

        >>> Staleness(0.5, most=9).weight(3)
        0.5
        """
        return float((1 + staleness) ** -self.exponent)

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        """The update as if the client had begun with the server's present values."""
        if update.base is None:
            return update, weight
        factor, moved = self.weight(update.staleness), {}
        for key, value in update.tensors.items():
            now, base = (cropped(state[key], value.shape).double() for state in (before, update.base))
            moved[key] = (now + factor * (value.double() - base)).to(before[key].dtype)
        return replace(update, tensors=moved), weight
