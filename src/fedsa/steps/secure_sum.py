"""Secure aggregation, as a chain sees it: what travels, and what cannot be used with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fedsa.algorithms.base import Algorithm
from fedsa.steps.base import Form, Step
from fedsa.steps.int8 import Int8
from fedsa.steps.staleness import Staleness
from fedsa.types import Key

__all__ = ["SecureSum"]


@final
@dataclass(frozen=True)
class SecureSum(Step):
    """The server gets the sum of the updates alone. It is the last step, and `fedsa.secure` does the work.

    What travels is not of one client: a site adds up its clients, and hides the sum behind masks. So the step has no
    half at a client, and none for a single update at the server; the other steps' halves at the server see the mean.
    """

    setting: ClassVar[str] = "secure_aggregation"

    @property
    def name(self) -> str:
        """What it is called in the recipe."""
        return "secure_aggregation"

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method: the server must need sums alone, of tensors of one shape."""
        reason = algorithm.mean_refusal()
        if reason is None and mixed_ranks:
            return "clients of different ranks have no sum of one shape: leave adapter.ranks out"
        return reason

    def conflict(self, other: Step) -> str | None:
        """Why another step cannot be used with this one; None if it can."""
        if isinstance(other, Staleness):
            return "rounds that overlap have updates of different ages, and a sum cannot tell them apart"
        if isinstance(other, Int8):
            return "each client's eight bits have a scale of their own, so they have no sum"
        return None if other.additive else "it needs single updates, and the server sees their sum only"

    def form(self, key: Key, form: Form) -> Form:
        """Integers of 64 bits."""
        return form._replace(dtype=torch.int64)
