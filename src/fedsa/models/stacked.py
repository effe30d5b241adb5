"""Many clients' adapters on one base model at once, in a training pass or in an evaluation.

The layers that they go through are in `fedsa.models.stacked_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, TypeGuard, final

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from fedsa.adapters.algebra import fits, padded
from fedsa.errors import ModelError
from fedsa.models.deltas import StackedDeltas
from fedsa.models.dropout import Streams
from fedsa.models.stacked_layers import KINDS, StackedAdapter, StackedWhole
from fedsa.models.steady import steady_layers
from fedsa.types import Factor, Key

__all__ = ["AdaptedLayer", "Stack", "adapted_layers", "obstacles"]

AdaptedLayer: TypeAlias = "tuple[nn.Module, str, Any, str]"
"""A module with an adapter, or one trained in full: its parent, its name there, itself, its path as keys name it."""

Values = Mapping[Key, Tensor]
"""Tensors of several clients under one key: shape (clients, *shape of the key's tensor)."""

_MULTIPLIERS = (Factor.MAGNITUDE, Factor.SCALE, Factor.GATE)
"""Numbers near a size of their own that whole outputs are multiplied by: steps of 2⁻⁸ of it, bf16's, are too large."""


@final
class Stack:
    """K clients' adapters on one base model. As a context it puts its layers into the model, and takes them out again.

    Args:
        model: PEFT's model.
        streams: the model's.
        tensors: one client's tensors, for keys and shapes.
        clients: K.
        dtype: what the adapters compute in; None: as they are.
        trained: keys whose gradients are wanted.
        deltas: what is added to the frozen weights.
        layers: the model's `adapted_layers`; None: they are looked for.

    Attributes:
        values: the stacked tensors; leaves of autograd for the trained keys.

    Raises:
        NotImplementedError: a layer cannot be stacked; `obstacles` says so beforehand.
    """

    def __init__(
        self,
        model: nn.Module,
        streams: Streams,
        tensors: Mapping[Key, Tensor],
        clients: int,
        *,
        dtype: torch.dtype | None = None,
        trained: Sequence[Key] = (),
        deltas: StackedDeltas | None = None,
        layers: Sequence[AdaptedLayer] | None = None,
    ) -> None:
        self._deltas = deltas
        wanted = set(trained)
        device = next(model.parameters()).device
        self.values: dict[Key, Tensor] = {
            key: torch.zeros(
                clients, *tensor.shape, dtype=_computed_in(key, tensor, dtype), device=device
            ).requires_grad_(key in wanted)
            for key, tensor in tensors.items()
        }
        adapted = adapted_layers(model) if layers is None else layers
        self._places = [
            (parent, name, module, _stacked(module, path, streams, self.values))
            for parent, name, module, path in adapted
        ]
        self._gates = [
            (module.fedsa_gate, value)
            for _, _, module, path in adapted
            for key, value in self.values.items()
            if key.factor is Factor.GATE and key.module == path
        ]

    def __enter__(self) -> Stack:
        for parent, name, _, layer in self._places:
            layer.train(parent.training)
            for steady in steady_layers(layer):
                steady.eval()
            parent._modules[name] = layer
        for gate, value in self._gates:
            gate.stacked = value
        if self._deltas is not None:
            self._deltas.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for parent, name, own, _ in self._places:
            parent._modules[name] = own
        for gate, _ in self._gates:
            gate.stacked = None
        if self._deltas is not None:
            self._deltas.__exit__()

    @torch.no_grad()
    def load(self, client: int, tensors: Mapping[Key, Tensor]) -> None:
        """Put one client's tensors into its place; behind those of a lower rank come zeros, which training leaves.

        Raises:
            ModelError: a tensor is of a shape that does not fit.
        """
        own = dict(tensors)
        for key in tensors:
            if self._deltas is not None and key.factor is Factor.DELTA:
                self._deltas.load(client, key, own.pop(key))
        places = [self.values[key][client] for key in own]
        torch._foreach_copy_(
            places,
            [
                _whole_rank(key, tensor.to(self._device), place)
                for (key, tensor), place in zip(own.items(), places, strict=True)
            ],
        )

    @property
    def _device(self) -> torch.device:
        return next(iter(self.values.values())).device


def _computed_in(key: Key, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the type that a key's values have in a stack whose adapters compute in ``dtype``."""
    return tensor.dtype if dtype is None or key.factor in _MULTIPLIERS else dtype


def _whole_rank(key: Key, tensor: Tensor, place: Tensor) -> Tensor:
    """Return a client's tensor, of the shape of its place.

    Raises:
        ModelError: it does not fit.
    """
    if not fits(key, tensor.shape, place.shape):
        raise ModelError(
            f"tensor {key} of shape {tuple(tensor.shape)} does not fit the model, where it is of shape "
            f"{tuple(place.shape)}"
        )
    return padded(tensor, place.shape)


def obstacles(model: nn.Module) -> list[str]:
    """Return why the model's adapters cannot be stacked: one line for each layer that is in the way."""
    found = set()
    for _, _, module, path in adapted_layers(model):
        if isinstance(module, ModulesToSaveWrapper):
            continue
        if _is_quantized(module):
            if module.lora_variant:
                found.add(f"{path}: a LoRA variant on a quantised layer")
        elif not any(type(module) in kind.layers for kind in KINDS):
            found.add(f"{path}: a {type(module).__module__.rpartition('.')[0]} {type(module).__name__} layer")
        elif isinstance(module, LoraLinear) and (_other_variant(module) or any(module.lora_bias.values())):
            found.add(f"{path}: a LoRA variant")
    return sorted(found)


def _is_quantized(module: nn.Module) -> TypeGuard[LoraLayer]:
    """Whether a module is PEFT's LoRA on a layer of few bits. Only with bitsandbytes can its class be imported."""
    return isinstance(module, LoraLayer) and type(module).__module__ == "peft.tuners.lora.bnb"


def _other_variant(module: LoraLinear) -> bool:
    return any(type(variant) is not DoraLinearVariant for variant in module.lora_variant.values())


def adapted_layers(model: nn.Module) -> list[AdaptedLayer]:
    """Return every adapted module: its parent, its name there, itself, and its path as keys name it."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            parent_path, _, name = path.rpartition(".")
            found.append((model.get_submodule(parent_path), name, module, path.removeprefix("base_model.model.")))
    return found


def _stacked(module: nn.Module, path: str, streams: Streams, values: Values) -> nn.Module:
    """The layer that takes the place of an adapted module in a stack."""
    own = {key: value for key, value in values.items() if key.module == path or key.module.startswith(f"{path}.")}
    adapters = list(dict.fromkeys(key.adapter for key in own))
    if len(adapters) > 1:
        return _chained(module, path, streams, own, adapters)
    adapter = adapters[0]
    if isinstance(module, ModulesToSaveWrapper):
        named = {key.module.removeprefix(f"{path}."): value for key, value in own.items()}
        return _whole(module.modules_to_save[adapter], named, streams)
    by_factor = {key.factor: value for key, value in own.items()}
    layer = LoraLinear if _is_quantized(module) else type(module)
    for kind in KINDS:
        if layer in kind.layers and kind.factors == by_factor.keys() - {Factor.GATE, Factor.DELTA}:
            return kind.stacked(streams, module, adapter, by_factor)
    raise NotImplementedError(f"{path}: {type(module).__name__} cannot be stacked")


def _chained(module: nn.Module, path: str, streams: Streams, values: Values, adapters: Sequence[str]) -> nn.Module:
    """Return the layers of several adapters, each in the place of the next one's base: their updates are added."""
    layers = []
    for adapter in adapters:
        own = {key: value for key, value in values.items() if key.adapter == adapter}
        layer = _stacked(module, path, streams, own)
        if not isinstance(layer, StackedAdapter):
            raise NotImplementedError(f"{path}: {type(module).__name__} cannot be stacked with several adapters")
        layers.append(layer)
    for inner, outer in pairwise(layers):
        outer.base_layer = inner
    return layers[-1]


def _whole(module: nn.Module, values: Mapping[str, Tensor], streams: Streams) -> nn.Module:
    """Return a copy of a module's structure in which each part with parameters of its own is stacked."""
    if any("." not in name for name in values):
        if any("." in name for name in values):
            raise NotImplementedError(f"{type(module).__name__} has parameters beside parts with parameters")
        return StackedWhole(streams, module, values)
    copied = _shallow(module)
    for name, child in module.named_children():
        inner = {full.removeprefix(f"{name}."): value for full, value in values.items() if full.startswith(f"{name}.")}
        if inner:
            copied._modules[name] = _whole(child, inner, streams)
    return copied


def _shallow(module: nn.Module) -> nn.Module:
    """Return a module of the same class that shares its parts, but not the table of them."""
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__.update(module.__dict__)
    copied._modules = dict(module._modules)
    return copied
