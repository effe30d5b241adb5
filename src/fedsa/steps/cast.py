"""The wire: in which dtype tensors travel between server and clients, both ways. Nowhere else do they have it.

A payload is put on it by the server (and where a client is measured with what it would be sent), an update by the
client. Whoever takes tensors off it gives them the dtype of its own: `Algorithm.absorb` and `Algorithm.aggregate`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from fedsa.types import State

__all__ = ["WIRE_DTYPES", "WireDtype", "on_wire"]

WireDtype: TypeAlias = Literal["fp32", "bf16"]

WIRE_DTYPES: dict[WireDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def on_wire(tensors: State, wire_dtype: WireDtype) -> State:
    """Return the tensors as they travel: rounded to the nearest value of the wire's dtype, where that is narrower."""
    return {key: tensor.to(WIRE_DTYPES[wire_dtype]) for key, tensor in tensors.items()}
