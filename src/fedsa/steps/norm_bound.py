"""A bound on how far one client can pull the mean, whatever it sends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from fedsa.adapters.algebra import cropped, norm_of
from fedsa.algorithms.base import Algorithm
from fedsa.steps.base import Step
from fedsa.steps.changes import sends_notes
from fedsa.types import Factor, State, Update

__all__ = ["NormBound"]


@final
@dataclass(frozen=True)
class NormBound(Step):
    """The server scales down an update that is further than C from its own values: Δ ← Δ · min(1, C / ‖Δ‖).

    Δ is what the client sent less what the server holds, and ‖Δ‖ the root of the sum of squares over all tensors of an
    update together. So no client moves the mean by more than C times its share of the weights. Every method that sends
    tensors alone can have it: the method gets the updates as they are then.

    Source: Sun et al., arXiv:1911.07963 (norm thresholding).

    Attributes:
        clipping_norm: C, in the unit of the tensors.
    """

    clipping_norm: float

    setting: ClassVar[str] = "robust.kind"
    needs_values: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What it is called in the recipe."""
        return "norm_bound"

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method: the method must send something, and tensors alone."""
        if sends_notes(algorithm):
            return "its clients also send numbers about their change, which would not fit a smaller one"
        return None if algorithm.sends() else "it sends nothing"

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        """The update within the bound, in fp32 at least."""
        sent = {key: tensor for key, tensor in update.tensors.items() if key.factor is not Factor.NOTE}
        starts = {key: cropped(before[key], tensor.shape).double() for key, tensor in sent.items()}
        changes = {key: tensor.double() - starts[key] for key, tensor in sent.items()}
        norm = norm_of(changes)
        if norm <= self.clipping_norm:
            return update, weight
        factor = self.clipping_norm / norm
        tensors = {
            key: (starts[key] + factor * changes[key]).to(torch.promote_types(tensor.dtype, torch.float32))
            for key, tensor in sent.items()
        }
        return replace(update, tensors={**update.tensors, **tensors}), weight
