"""What the base model says, of a model that has an adapter in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = ["adapter_off"]


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """A context in which a model gives what its base gives: without adapter, dropout and gradients.

    It holds for one client's adapter (PEFT's layers) and for those of many clients (layers with ``adapters_off``).

    Args:
        model: PEFT's; afterwards it is as before: PEFT itself would mark frozen tensors as trained.
    """
    whole: Any = model
    if not hasattr(model, "modules"):  # a plan's, which has no values, and so no base to be compared with
        with torch.no_grad():
            yield
        return
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    stacked: list[Any] = [module for module in model.modules() if hasattr(module, "adapters_off")]
    for layer in stacked:
        layer.adapters_off = True
    try:
        with torch.no_grad(), nullcontext() if stacked else whole.disable_adapter():  # there are none of PEFT's then
            model.eval()
            yield
    finally:
        for layer in stacked:
            layer.adapters_off = False
        for module, mode in modes:
            module.training = mode
        for parameter, was_trained in trained:
            parameter.requires_grad_(was_trained)
