"""LoRA-XS in PEFT's LoRA layers: a small trained R between B and A, which are frozen.

PEFT has no such layer; its TinyLoRA sums fixed random R's, and to reach every R it would hold r⁴ numbers a layer. Here
what PEFT takes for B's weight is computed as B·R, so its forward pass, its merging and its format are LoRA's own.
"""

from __future__ import annotations

from typing import Any, final

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["frozen_directions", "plain_state", "set_directions", "with_middles"]


@final
class _Middle(nn.Module):
    """Computes the weight B·R of shape (out, r) from R of shape (r, r).

    Args:
        b: B, shape (out, r).
    """

    b: Tensor

    def __init__(self, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("b", b)

    def forward(self, middle: Tensor) -> Tensor:
        """Return B·R."""
        return self.b @ middle

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the R to begin with: zero, so that the update is."""
        return weight.new_zeros(weight.shape[1], weight.shape[1])


def with_middles(model: nn.Module, adapter: str) -> None:
    """Put a trained R, zero at first, between A and B of each linear LoRA layer, and freeze these two as buffers.

    Args:
        model: PEFT's, with a plain LoRA adapter.
        adapter: its name.
    """
    for layer in list(model.modules()):
        if isinstance(layer, LoraLinear):
            own: Any = layer
            a, b = own.lora_A[adapter], own.lora_B[adapter]
            frozen = a.weight.detach()
            del a.weight
            a.register_buffer("weight", frozen)
            parametrize.register_parametrization(b, "weight", _Middle(b.weight.detach().clone()))


def frozen_directions(layer: LoraLinear, adapter: str) -> tuple[Tensor, Tensor]:
    """Return A, shape (r, in), and B, shape (out, r), of a layer with a middle factor."""
    own: Any = layer
    return own.lora_A[adapter].weight, own.lora_B[adapter].parametrizations.weight[0].b


@torch.no_grad()
def set_directions(layer: LoraLinear, adapter: str, a: Tensor, b: Tensor) -> None:
    """Put values into A and B of a layer with a middle factor."""
    for place, value in zip(frozen_directions(layer, adapter), (a, b), strict=True):
        place.copy_(value)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors as PEFT names them, where B·R is the B of a plain LoRA."""
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, _Middle):
            path = name.removesuffix(".parametrizations.weight.0")
            b, middle = (state.pop(f"{path}.parametrizations.weight.{part}") for part in ("0.b", "original"))
            state[f"{path}.weight"] = b @ middle
    return state
