"""Which adapted layers have an update that is s·B·A of two matrices: what a method that computes B·A may be used on.

A variant says what an update is in linear layers. The same variant in a convolution has factors of four dimensions, and
in the experts of a mixture one B and one A hold the factors of all experts.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

__all__ = ["is_product", "scales_of", "unlike_products"]

_PREFIX = "base_model.model."


def is_product(layer: Any) -> bool:
    """Say whether a LoRA layer's A is of shape (r, in), its B of shape (out, r), and B·A its update but for s.

    That of an embedding is the update of the transposed table.
    """
    of_few_bits = isinstance(layer, LoraLayer) and type(layer).__module__ == "peft.tuners.lora.bnb"
    return isinstance(layer, LoraLinear | Embedding) or of_few_bits


def unlike_products(model: Any) -> dict[str, str]:
    """Return the adapted layers that `is_product` does not hold for, by name, and what they are."""
    return {
        _name(path, layer): _kind(layer)
        for path, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer) and not is_product(layer)
    }


def _name(path: str, layer: Any) -> str:
    name = path.removeprefix(_PREFIX)
    if isinstance(layer, ParamWrapper):  # several on one module are wrapped into each other
        return f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
    return name


def _kind(layer: Any) -> str:
    if isinstance(layer, ParamWrapper):
        return f"a parameter of {layer.num_experts} experts" if layer.num_experts > 1 else "a bare parameter"
    return f"a {type(layer.get_base_layer()).__name__} layer"


def scales_of(model: nn.Module, adapter: str) -> dict[str, float]:
    """The s in ΔW = s·B·A of each module of a PEFT model whose LoRA adapter is such a product."""
    return {
        name.removeprefix(_PREFIX): float(module.scaling[adapter])
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and is_product(module)
    }
