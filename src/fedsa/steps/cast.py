"""The wire: in which dtype tensors travel between server and clients, both ways. Nowhere else do they have it.

Whoever takes tensors off it gives them the dtype of its own: `Algorithm.absorb`, and the mean of what came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from fedsa.recipe import WireDtype
from fedsa.steps.base import ClientContext, Form, Slots, Step
from fedsa.types import Factor, Key, State

__all__ = ["Cast"]

_DTYPES: dict[WireDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@final
@dataclass(frozen=True)
class Cast(Step):
    """Each value becomes the nearest one of the wire's dtype, where that is narrower; whole numbers stay as they are.

    So do the numbers beside the tensors: they are few, and formulas with their squares and differences need all digits.

    Attributes:
        wire_dtype: the recipe's.
    """

    wire_dtype: WireDtype = "fp32"

    setting: ClassVar[str] = "wire_dtype"

    def on_payload(self, tensors: State) -> State:
        """The tensors in the wire's dtype."""
        dtype = _DTYPES[self.wire_dtype]
        return {key: each.to(dtype) if self._casts(key, each.dtype) else each for key, each in tensors.items()}

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        """The tensors in the wire's dtype."""
        return self.on_payload(tensors), {}

    def form(self, key: Key, form: Form) -> Form:
        """The form with the wire's dtype."""
        return form._replace(dtype=_DTYPES[self.wire_dtype]) if self._casts(key, form.dtype) else form

    def _casts(self, key: Key, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and key.factor is not Factor.NOTE
