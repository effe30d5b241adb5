"""Hashes of a base model's weights: a run's adapters are for that base alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain

import torch
from peft import PeftConfig
from torch import Tensor, nn

from fedsa.adapters.factors import key_of
from fedsa.models.adapted import AdaptedModel
from fedsa.models.base import HEADS

__all__ = ["adapted_fingerprint", "plain_fingerprint"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain_fingerprint(base: nn.Module, config: PeftConfig) -> str:
    """Return a hash of a base model as it was loaded, before an adapter is put into it.

    Args:
        base: the model.
        config: PEFT's description of the adapter. The values of heads, and of other modules that are saved with the
            adapter, do not matter here.
    """
    ignored = HEADS.union(getattr(config, "modules_to_save", None) or ())
    named = base.state_dict(keep_vars=True).items()
    return _hash_of((name, value) for name, value in named if not ignored & set(name.split(".")))


def adapted_fingerprint(model: AdaptedModel) -> str:
    """Return a hash of every frozen tensor of a base with an adapter in it, as it computes."""
    named = chain(model.model.named_parameters(), model.model.named_buffers())
    return _hash_of((name, value) for name, value in named if key_of(name, trained=False) is None)


@torch.no_grad()
def _hash_of(named: Iterable[tuple[str, object]]) -> str:
    digest = hashlib.sha256()
    for name, value in named:
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype} {_sums_of_bits(value)}\n".encode())
    return digest.hexdigest()


def _sums_of_bits(tensor: Tensor) -> tuple[int, int]:
    """Return sums of a tensor's bits by rows and by columns, each row and column with a weight of its own.

    Integers that wrap around, for their sum is the same in any order: on any device and number of threads. Values
    that change their places are seen too.
    """
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = torch.atleast_1d(real.detach()).contiguous().view(_INTEGERS[real.element_size()])
    if not bits.numel():
        return 0, 0
    table = bits.reshape(bits.shape[0], -1)
    return _weighted(table.sum(dim=1, dtype=torch.int64)), _weighted(table.sum(dim=0, dtype=torch.int64))


def _weighted(sums: Tensor) -> int:
    """Return Σᵢ (2i + 1)² · sumᵢ, modulo 2⁶⁴."""
    weights = 2 * torch.arange(len(sums), dtype=torch.int64, device=sums.device) + 1
    return int((sums * weights * weights).sum())
