"""Adapters whose first values come from the base weights.

PiSSA and OLoRA take s·B·A out of a weight and give it to the adapter. LoRA-XS takes nothing out: B and A are frozen at
the weight's largest singular directions, and the R that is trained between them starts at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fedsa.errors import ModelError
from fedsa.models.lora_xs import set_directions
from fedsa.texts.words import counted

__all__ = ["STARTS", "start_from_base"]

Start = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]
"""Given a weight of shape (out, in), the rank r <= min(out, in) and s: A of shape (r, in) and B of shape (out, r)."""


def _pissa(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return s·B·A = the weight's r largest singular directions, each side with the root of the singular value."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = (values[:rank] / scaling).sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def _olora(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return the first r columns of Q and rows of R of W = Q·R."""
    orthogonal, triangular = torch.linalg.qr(weight)
    return triangular[:rank], orthogonal[:, :rank]


def _lora_xs(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return A = Σ·Vᵀ and B = U of the r largest singular directions (arXiv:2405.17604; its code too puts Σ into A)."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return values[:rank, None] * right[:rank], left[:, :rank]


STARTS: dict[str, Start] = {"pissa": _pissa, "olora": _olora, "lora_xs": _lora_xs}
"""By the variant's name, which is ``init_lora_weights`` in PEFT's config too; PEFT itself does not know ``lora_xs``."""


@torch.no_grad()
def start_from_base(model: nn.Module, variant: str, adapters: Sequence[str] = ("default",)) -> None:
    """Give adapters their first values out of the base weights, which lose s·B·A by it, but for LoRA-XS.

    The model gives then what it gave without the adapter. The values are those of PEFT, but for rounding: they are
    computed in fp32 on the CPU by one thread, because LAPACK's results hang on the number of threads. What is taken out
    of the weights goes to the first adapter. LoRA-XS's directions are dealt out to all adapters in turn, from the
    largest on, so that no two have one in common.

    Args:
        model: PEFT's model with plain LoRA adapters (for LoRA-XS with a middle factor), before its weights are rounded.
        variant: a name in `STARTS`.
        adapters: their names.

    Raises:
        ModelError: a layer is no linear layer, or smaller than the rank (for LoRA-XS: than all adapters' together).
    """
    with _one_thread():
        for path, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                _start(layer, path.removeprefix("base_model.model."), variant, adapters)


def _start(layer: LoraLayer, path: str, variant: str, adapters: Sequence[str]) -> None:
    if not isinstance(layer, LoraLinear):
        raise ModelError(
            f"adapter.variant = {variant!r} takes its first values from the weights of linear layers: take {path} "
            f"({type(layer).__name__}) out of adapter.target_modules"
        )
    base: Any = layer.get_base_layer()
    first, count = adapters[0], len(adapters) if variant == "lora_xs" else 1
    rank, scaling = layer.r[first] * count, float(layer.scaling[first])
    stored: Tensor = base.weight.data
    weight = stored.to("cpu", torch.float32)
    weight = weight.T if layer.fan_in_fan_out else weight
    if rank > min(weight.shape):
        each = f" for each of {counted(count, 'adapter')}" if count > 1 else ""
        raise ModelError(
            f"adapter.r = {rank // count} is more than {path}, of shape {tuple(weight.shape)}, has directions{each}: "
            f"with adapter.variant = {variant!r} it can be {min(weight.shape) // count} at most"
        )
    a, b = (part.contiguous() for part in STARTS[variant](weight, rank, scaling))
    if variant == "lora_xs":
        for place, adapter in enumerate(adapters):
            set_directions(layer, adapter, a[place::count], b[:, place::count])
        return
    rest = weight - scaling * (b @ a)
    base.weight.data = (rest.T if layer.fan_in_fan_out else rest).contiguous().to(stored.device, stored.dtype)
    own: Any = layer
    own.lora_A[first].weight.data.copy_(a)
    own.lora_B[first].weight.data.copy_(b)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
