"""State of the base model that is no parameter: the running statistics of batch normalisation, and whatever is like it.

The base is one for all clients, and an adapter's file has no place for such state. So it must not change: layers that
have running statistics use them in training as they do in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedsa.errors import ModelError

__all__ = ["check_kept", "check_norms", "persistent_buffers", "steady_layers", "versions"]


def steady_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers with running statistics, which must stay in evaluation mode."""
    return [layer for layer in model.modules() if isinstance(layer, _NormBase) and layer.running_mean is not None]


def check_norms(model: nn.Module) -> None:
    """Refuse batch normalisation without running statistics: what it gives for a row depends on the other rows.

    Raises:
        ModelError: with its name.
    """
    for name, layer in model.named_modules():
        rows_apart = type(layer).__name__.startswith(("InstanceNorm", "LazyInstanceNorm"))
        if isinstance(layer, _NormBase) and layer.running_mean is None and not rows_apart:
            raise ModelError(
                f"{name} is batch normalisation without running statistics, so that a row's result depends on the rows "
                "beside it and no figure could be repeated: take another model"
            )


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers that belong to a model's checkpoint, with their names. Others are made anew from each batch."""
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return what changes of each persistent buffer when it is written to or replaced."""
    return {name: (id(buffer), buffer._version) for name, buffer in persistent_buffers(model)}


def check_kept(model: nn.Module, before: dict[str, tuple[int, int]]) -> None:
    """Refuse a model whose state has changed since ``before``, as `versions` gave it.

    Raises:
        ModelError: with the buffer's name.
    """
    after = versions(model) if before else {}
    changed = next((name for name, version in after.items() if before.get(name) != version), None)
    if changed is not None:
        path, _, name = changed.rpartition(".")
        layer = model.get_submodule(path)
        raise ModelError(
            f"{path.removeprefix('base_model.model.')} ({type(layer).__name__}) changes its {name} whenever it trains: "
            "the base model is one for all clients and an adapter does not hold that, so clients would not get what "
            "was measured: take a model without such a layer"
        )
