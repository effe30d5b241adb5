"""Updates in eight bits a number; what the rounding leaves is made up for in the client's next update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.algorithms.base import Algorithm
from fedsa.errors import ProtocolError
from fedsa.steps.base import ClientContext, Form, Slots, Step
from fedsa.steps.changes import change_refusal
from fedsa.types import Key, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Int8"]

_SLOT = "int8"
_LARGEST = 127
_SCALE = torch.float32.itemsize
_LONG = 64
"""Numbers of a row from which on it has a scale of its own: shorter ones share one, whose bytes would show."""


@final
@dataclass(frozen=True)
class Int8(Step):
    """A client sends its change, rounded to whole multiples of a scale: q = round((Δ + e) / s), |q| ≤ 127.

    The server takes its own value plus s·q. s is the largest number of a row over 127, in fp32; rows shorter than 64
    numbers share one. e is what the client's rounding has left over in the rounds before, e ← Δ + e - s·q, and starts
    at 0: so over rounds nothing is lost but what the last one has left.

    Sources: Karimireddy et al., arXiv:1901.09847 (error feedback); Alistarh et al., arXiv:1610.02132 (one scale for a
    group of numbers).
    """

    setting: ClassVar[str] = "compression.kind"
    needs_values: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method: its clients must begin with the server's values."""
        if mixed_ranks:
            return "clients of different ranks send tensors of different shapes: leave adapter.ranks out"
        return change_refusal(algorithm, "the server cannot add what they send to its own")

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        """The change in eight bits, and what the rounding has left over."""
        sent: dict[str, Tensor] = {}
        packed = {}
        for key, tensor in tensors.items():
            kept = slots.get(f"{_SLOT}|{key}")
            change = tensor.float() - context.before[key].float()
            wanted = change if kept is None else change + kept
            packed[key] = _packed(wanted)
            sent[f"{_SLOT}|{key}"] = wanted - _unpacked(packed[key], wanted.shape)
        kept_of_others = {name: slot for name, slot in slots.items() if name.startswith(f"{_SLOT}|")}
        return packed, kept_of_others | sent  # a tensor that is not sent in this round keeps what was left of it

    def form(self, key: Key, form: Form) -> Form:
        """Rows of eight bits, with the scale's four bytes behind each."""
        rows, length = _rows(form.shape)
        return Form((rows, length + _SCALE), torch.int8)

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        """The server's value plus the change; of an update that comes late, the value that the client began with.

        Raises:
            ProtocolError: a scale is not a number that a client can have computed.
        """
        tensors = {}
        for key, packed in update.tensors.items():
            start = (before if update.base is None else update.base)[key]
            change = _unpacked(packed, start.shape)
            if not bool(change.isfinite().all()):
                raise ProtocolError(f"update of client {update.client!r} for round {update.round}: {key} is not finite")
            tensors[key] = start.float() + change
        return replace(update, tensors=tensors), weight


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    """How many rows a tensor has that have a scale each, and how many numbers each has."""
    size = math.prod(shape)
    first = shape[0] if len(shape) > 1 else 1
    return (first, size // first) if first and size // first >= _LONG else (1, size)


def _packed(values: Tensor) -> Tensor:
    """Values in eight bits, int8, shape (rows, numbers of a row + 4): the bytes of each row's scale stand behind it."""
    rows = values.reshape(_rows(values.shape))
    scales = rows.abs().amax(1, keepdim=True) / _LARGEST if rows.numel() else rows.new_zeros(len(rows), 1)
    scales = scales.float()
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
    whole = (rows / divisors).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return torch.cat([whole, scales.contiguous().view(torch.int8)], dim=1)


def _unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The values that a client has packed, fp32, of a shape."""
    scales = packed[:, -_SCALE:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (packed[:, :-_SCALE].float() * scales).reshape(tuple(shape))
