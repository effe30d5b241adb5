"""How an adapted model computes: where, in which numbers, and with what it keeps between forward and backward."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from fedsa.errors import ModelError
from fedsa.models.dropout import FastDropout

if TYPE_CHECKING:
    from fedsa.models.adapted import AdaptedModel

_VERA_PROJECTION = re.compile(r"\.vera_[AB]\.")

__all__ = ["checkpoint_activations", "compile_blocks", "place"]


def place(model: nn.Module, own: Iterable[nn.Parameter], *, device: str, precision: str) -> None:
    """Put a model where it computes, frozen weights in the precision that it computes in.

    Args:
        model: with adapters.
        own: parameters that clients have of their own: they stay fp32.
        device: where it computes.
        precision: ``fp32`` or ``bf16``.
    """
    adapted = {id(parameter) for parameter in own}
    for parameter in model.parameters():
        if id(parameter) in adapted:
            parameter.data = parameter.data.float()
        elif precision == "bf16" and parameter.is_floating_point():
            parameter.data = parameter.data.bfloat16()
    for name, buffer in model.named_buffers():  # other buffers (rotary frequencies) need their precision
        if precision == "bf16" and _VERA_PROJECTION.search(name):
            buffer.data = buffer.data.bfloat16()
    model.to(device)


def checkpoint_activations(model: AdaptedModel) -> None:
    """Compute a layer's activations again in the backward pass instead of keeping them.

    Raises:
        ModelError: the model cannot.
    """
    try:
        base: Any = model.model.get_base_model()
        base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": FastDropout.again})
    except ValueError as error:
        raise ModelError(f"compute.gradient_checkpointing = true cannot be used with this model: {error}") from None


def compile_blocks(model: AdaptedModel) -> None:
    """Compile the parts of the layers that have no adapter in them: the first pass is slow."""
    for layer in model.layers.layers:
        for child in layer.children():
            if not any(isinstance(part, BaseTunerLayer | ModulesToSaveWrapper) for part in child.modules()):
                compiled: Any = torch.compile(child.forward, dynamic=True)
                child.forward = compiled
