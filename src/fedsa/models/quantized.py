"""Frozen bases whose linear layers are of few bits: bitsandbytes' NF4 and int8 (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from fedsa.errors import MissingExtraError
from fedsa.recipe import ComputeSettings

__all__ = ["HEADS", "bits_of_a_weight", "quantized", "quantized_layers", "settle"]

HEADS = {"classifier", "score", "qa_outputs"}
"""The names of heads: PEFT finds them by itself, but for those of the kinds of task that it has no name for."""

_IN_FULL = {*HEADS, "lm_head", "pooler"}
"""What stays as it is: heads are trained, and the vocabulary's scores suffer most from few bits."""


def quantized(kind: str, compute: ComputeSettings) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that quantise a model's linear layers while it loads them.

    Args:
        kind: ``nf4`` (with the blocks' scales quantised too) or ``int8``.
        compute: without ``auto``.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"model.quantization = {kind!r}", "bnb")
    config = BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if compute.precision == "bf16" else torch.float32,
        llm_int8_skip_modules=sorted(_IN_FULL),
    )
    return {"quantization_config": config, "device_map": {"": compute.device}}


def settle(model: nn.Module) -> None:
    """Make a loaded model's NF4 layers train as they should.

    On a CPU bitsandbytes lays a layer's weights anew at the first evaluation, for a product that has no derivative:
    with them no gradient would reach the layers before. And it computes in the type of the first input, whatever it
    was told.
    """
    for layer in model.modules():
        if type(layer).__name__ == "Linear4bit":
            of_few_bits: Any = layer
            of_few_bits.support_avx512bf16_for_cpu, of_few_bits.compute_type_is_set = False, True


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a plain model that `quantized` would have quantised, with their names."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and not _IN_FULL & set(name.split(".")):
            yield name, layer


def bits_of_a_weight(kind: str) -> float:
    """Return the bits that a quantised weight takes, its share of the scales included.

    NF4 has a scale of 8 bits for 64 weights, and one of 32 bits for 256 of those; int8 one of 32 bits a row, which is
    left out.
    """
    return 4 + 8 / 64 + 32 / (64 * 256) if kind == "nf4" else 8
