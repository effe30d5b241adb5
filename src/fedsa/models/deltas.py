"""What the server has added to the frozen weights: Δ of each adapted layer, as a product of its own beside the base's.

Δ never goes into the stored weight: a bf16 weight would round a small update away, and the base is everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsa.errors import ModelError
from fedsa.models.dropout import Streams
from fedsa.types import Factor, Key

__all__ = ["Deltas", "StackedDeltas", "empty_deltas"]

_PREFIX = "base_model.model."


@final
class Deltas:
    """Δ of each adapted layer of one model, each zero at the start. It is no part of the model's own tensors.

    Args:
        model: PEFT's model; its layers add x·Δᵀ to what the base layer gives.
        streams: the model's.

    Raises:
        ModelError: an adapted layer is no linear one.
    """

    def __init__(self, model: nn.Module, streams: Streams) -> None:
        self._folds = {key: _Fold(key, layer, streams) for key, layer in _adapted_linears(model)}

    @property
    def keys(self) -> tuple[Key, ...]:
        """One for each adapted layer, in the model's order."""
        return tuple(self._folds)

    def __contains__(self, key: object) -> bool:
        return key in self._folds

    def read(self, key: Key) -> Tensor:
        """Return a copy of Δ, shape (out, in), on the CPU, in fp32 or what it was written in."""
        return self._folds[key].read()

    def write(self, key: Key, value: Tensor, *, device: str, dtype: torch.dtype) -> None:
        """Put in a Δ, shape (out, in). The tensor is kept as it is: nobody may change it afterwards.

        Args:
            key: of this model.
            value: Δ.
            device: where the layer computes.
            dtype: what it computes in.

        Raises:
            ModelError: it is of another shape.
        """
        self._folds[key].write(value, device, dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add each Δ to its layer's weight, and set it to zero."""
        for fold in self._folds.values():
            fold.merge()

    def stacked(self, clients: int, *, device: torch.device, dtype: torch.dtype) -> StackedDeltas:
        """Return many clients' Δ, zero at first; as a context they take the place of these."""
        return StackedDeltas(self._folds, clients, device, dtype)


@final
class StackedDeltas:
    """Many clients' Δ. Clients mostly hold the same ones: of equal tensors one copy is kept.

    Args:
        folds: the model's layers.
        clients: how many.
        device: where the layers compute.
        dtype: what they compute in.
    """

    def __init__(self, folds: Mapping[Key, _Fold], clients: int, device: torch.device, dtype: torch.dtype) -> None:
        self._folds = folds
        self._held = {key: _Held(clients, device, dtype) for key in folds}

    def load(self, client: int, key: Key, value: Tensor) -> None:
        """Put one client's Δ into its place.

        Raises:
            ModelError: it is of another shape.
        """
        self._folds[key].check(value)
        self._held[key].put(client, value)

    def copies(self, key: Key) -> int:
        """Return how many different Δ are held for a layer; those that are zero are not held."""
        return len(self._held[key].distinct)

    def __enter__(self) -> StackedDeltas:
        for key, fold in self._folds.items():
            fold.held = self._held[key]
        return self

    def __exit__(self, *exception: object) -> None:
        for fold in self._folds.values():
            fold.held = None


@final
class _Held:
    """The clients' Δ of one layer.

    Attributes:
        distinct: those that differ and are not zero, in what the layer computes in.
        owners: of each client, the number of its Δ among them; -1: it is zero.
    """

    def __init__(self, clients: int, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._given: dict[int, Tensor] = {}
        self.distinct: dict[int, Tensor] = {}
        self.owners = [-1] * clients

    def put(self, client: int, value: Tensor) -> None:
        self.owners[client] = -1
        for number in set(self._given) - set(self.owners):  # what nobody holds any more
            del self._given[number], self.distinct[number]
        for number, given in self._given.items():
            if given is value or torch.equal(given, value):
                self.owners[client] = number
                return
        if bool(value.any()):
            number = max(self._given, default=-1) + 1
            self._given[number], self.distinct[number] = value, value.to(self._device, self._dtype)
            self.owners[client] = number


@final
class _Fold:
    """The Δ of one layer: a hook behind the base's own linear layer.

    Attributes:
        held: many clients' Δ, while they have the place of the one.
    """

    def __init__(self, key: Key, layer: nn.Module, streams: Streams) -> None:
        self._key, self._layer, self._streams = key, layer, streams
        self._shape = _shape(layer)
        self._given: Tensor | None = None  # None: it is zero
        self._value: Tensor | None = None
        self.held: _Held | None = None
        layer.register_forward_hook(self.add)  # a bound method, so that a copy of the model has hooks of its own

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Return the layer's output with x·Δᵀ added; None where there is nothing to add."""
        if self.held is not None:
            return self._added(self.held, inputs[0], output)
        if self._value is None:
            return None
        return output + _product(inputs[0], self._value).to(output.dtype)

    def _added(self, held: _Held, values: Tensor, output: Tensor) -> Tensor | None:
        if not held.distinct:
            return None
        if len(set(held.owners)) == 1:
            (delta,) = held.distinct.values()
            return output + _product(values, delta).to(output.dtype)
        if self._streams.layout is None:
            raise RuntimeError("no pass has begun: Streams.begin says whose rows come")
        place = self._streams.layout.place(values)
        flat = place.gather(values.reshape(-1, values.shape[-1]))
        owners = torch.tensor(held.owners, device=flat.device)[place.owners]
        whose = {number: (owners == number).nonzero().flatten() for number in held.distinct}
        parts = [_product(flat[elements], held.distinct[number]) for number, elements in whose.items()]
        added = parts[0].new_zeros(len(flat), output.shape[-1])
        added = added.index_copy(0, torch.cat(list(whose.values())), torch.cat(parts))
        return output + place.scatter(added).view(output.shape).to(output.dtype)

    def read(self) -> Tensor:
        return torch.zeros(self._shape) if self._given is None else self._given.detach().to("cpu", copy=True)

    def check(self, value: Tensor) -> None:
        if tuple(value.shape) != self._shape:
            raise ModelError(
                f"tensor {self._key} of shape {tuple(value.shape)} does not fit the model, where it is of shape "
                f"{self._shape}"
            )

    def write(self, value: Tensor, device: str, dtype: torch.dtype) -> None:
        self.check(value)
        if value is self._given and self._value is not None and self._value.dtype == dtype:
            return
        self._given = value if bool(value.any()) else None
        self._value = None if self._given is None else self._given.to(device, dtype)

    def merge(self) -> None:
        if self._given is not None:
            weight: Any = self._layer.weight
            delta = self._given.T if isinstance(self._layer, Conv1D) else self._given
            weight.add_(delta.to(weight.device, weight.dtype))
        self._given = self._value = None


def _product(values: Tensor, delta: Tensor) -> Tensor:
    """Return x·Δᵀ, in what Δ is in (or autocast says)."""
    return F.linear(values.to(delta.dtype), delta)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Return (out, in) of a linear layer."""
    if isinstance(layer, nn.Linear):  # one of few bits holds its weight in another shape
        return layer.out_features, layer.in_features
    weight: Any = layer.weight
    return tuple(reversed(weight.shape))


def _adapted_linears(model: nn.Module) -> Iterator[tuple[Key, nn.Module]]:
    """Yield the base's own layer of each adapted one, with its Δ's key.

    Raises:
        ModelError: one of them is not linear.
    """
    for path, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        name, layer = path.removeprefix(_PREFIX), module.get_base_layer()
        if not isinstance(layer, nn.Linear | Conv1D):
            setting = "target_parameters" if isinstance(module, ParamWrapper) else "target_modules"
            raise ModelError(
                f"adapter.{setting}: {name} is a {type(layer).__name__} layer, and the method adds to the weights "
                "of linear layers only: leave it out"
            )
        yield Key(name, Factor.DELTA), layer


def empty_deltas(model: nn.Module) -> dict[Key, Tensor]:
    """Return the Δ of a model without values, as buffers of its layers, whose products count as arithmetic.

    Raises:
        ModelError: an adapted layer is no linear one.
    """
    return {key: _with_empty_delta(layer) for key, layer in list(_adapted_linears(model))}


def _with_empty_delta(layer: nn.Module) -> Tensor:
    delta = torch.zeros(_shape(layer), device="meta")
    layer.register_buffer("delta", delta)
    layer.register_forward_hook(_add_buffer)
    return delta


def _add_buffer(layer: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
    delta: Any = layer.delta
    return output + _product(inputs[0], delta)
