"""Adapted layers of many clients at once: each row or token goes through the adapter of its own client.

The clients' A's stand side by side as one wide A, their B's as one wide B, and in between each token keeps the numbers
of its own client alone. That is two large products for each layer instead of two small ones for each client.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, TypeGuard, final

import torch
import torch.nn.functional as F
from peft.tuners.ia3.layer import Linear as Ia3Linear
from peft.tuners.loha.layer import Linear as LohaLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera.layer import Linear as VeraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call

from fedsa.adapters.algebra import fits, padded
from fedsa.errors import ModelError
from fedsa.models.deltas import StackedDeltas
from fedsa.models.dropout import Streams
from fedsa.models.layout import Place
from fedsa.models.loha import SteadyLoha
from fedsa.models.lora_xs import frozen_directions
from fedsa.models.steady import steady_layers
from fedsa.types import Factor, Key

__all__ = ["AdaptedLayer", "Stack", "adapted_layers", "obstacles"]

AdaptedLayer: TypeAlias = "tuple[nn.Module, str, Any, str]"
"""A module with an adapter, or one trained in full: its parent, its name there, itself, its path as keys name it."""

Values = Mapping[Key, Tensor]
"""Tensors of several clients under one key: shape (clients, *shape of the key's tensor)."""

_FACTORS_OF_OUTPUTS = (Factor.MAGNITUDE, Factor.SCALE)
"""Numbers near a size of their own that whole outputs are multiplied by: steps of 2⁻⁸ of it, bf16's, are too large."""


class _Layer(nn.Module):
    """A layer with many clients' adapters, in the place of one with a single client's."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams

    def place(self, values: Tensor) -> Place:
        """Return where the clients' elements lie in an activation."""
        layout = self._streams.layout
        if layout is None:
            raise RuntimeError("no pass has begun: Streams.begin says whose rows come")
        return layout.place(values)


class _Adapted(_Layer):
    """A linear layer of the base with an adapter."""

    def __init__(self, streams: Streams, inner: nn.Module, dropout: nn.Module) -> None:
        super().__init__(streams)
        self.base_layer: nn.Module = inner
        self.dropout = dropout

    @property
    def weight(self) -> Any:
        """The base layer's: some models ask for its dtype."""
        return self.base_layer.weight

    def forward(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(values, *args, **kwargs)
        dropped = self.dropout(values).reshape(-1, values.shape[-1])
        return self.adapted(result.reshape(-1, result.shape[-1]), dropped, self.place(values)).view(result.shape)

    @abstractmethod
    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """Return the layer's result, shape (positions, out), with the adapter's part added."""


@final
class _Lora(_Adapted):
    """LoRA and rsLoRA: s·B·A of each position's own client."""

    def __init__(self, streams: Streams, layer: LoraLayer, adapter: str, a: Tensor, b: Tensor) -> None:
        super().__init__(streams, layer.base_layer, layer.lora_dropout[adapter])
        self._a, self._b, self._scaling = a, b, float(layer.scaling[adapter])

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        clients, rank, width = self._a.shape
        down = F.linear(values.to(self._a.dtype), self._a.reshape(clients * rank, width))
        own = down * (place.selector(rank, down.dtype) * self._scaling) if clients > 1 else down * self._scaling
        up = self._b.transpose(1, 2).reshape(clients * rank, -1)
        return torch.addmm(result, own.to(result.dtype), up.to(result.dtype))


@final
class _LoraXs(_Adapted):
    """LoRA-XS: s·B·R·A, with A and B frozen and the same for all."""

    def __init__(self, streams: Streams, layer: LoraLinear, adapter: str, middle: Tensor) -> None:
        super().__init__(streams, layer.base_layer, layer.lora_dropout[adapter])
        self._middle, self._scaling = middle, float(layer.scaling[adapter])
        self._a, self._b = frozen_directions(layer, adapter)

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        clients, rank, _ = self._middle.shape
        down = F.linear(values.to(self._middle.dtype), self._a.to(self._middle.dtype))
        own = down.repeat(1, clients) * (place.selector(rank, down.dtype) * self._scaling)
        turned = own @ self._middle.transpose(1, 2).reshape(clients * rank, rank)
        return torch.addmm(result, turned.to(result.dtype), self._b.T.to(result.dtype))


@final
class _Vera(_Adapted):
    """VeRA: Λ_b·B·Λ_d·A, with A and B frozen and the same for all."""

    def __init__(self, streams: Streams, layer: VeraLinear, adapter: str, d: Tensor, b: Tensor) -> None:
        super().__init__(streams, layer.base_layer, layer.vera_dropout[adapter])
        self._d, self._b = d, b
        projections: Any = layer
        self._down, self._up = projections.vera_A[adapter], projections.vera_B[adapter]
        self._in, self._out = layer.in_features, layer.out_features

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        own = place.selector(1, self._d.dtype)
        down = F.linear(values.to(self._d.dtype), self._down[:, : self._in].to(values.device, self._d.dtype))
        up = F.linear(down * (own @ self._d), self._up[: self._out].to(values.device, self._d.dtype))
        return result + (up * (own @ self._b)).to(result.dtype)


@final
class _Dora(_Adapted):
    """DoRA: each row of W + s·B·A at the length that the client has learnt."""

    def __init__(
        self, streams: Streams, layer: LoraLinear, adapter: str, a: Tensor, b: Tensor, magnitude: Tensor
    ) -> None:
        super().__init__(streams, layer.base_layer, layer.lora_dropout[adapter])
        self._a, self._b, self._magnitude = a, b, magnitude
        self._scaling, self._transposed = float(layer.scaling[adapter]), bool(layer.fan_in_fan_out)

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        clients, rank, width = self._a.shape
        down = F.linear(values.to(self._a.dtype), self._a.reshape(clients * rank, width))
        own = down * (place.selector(rank, down.dtype) * self._scaling)
        update = own @ self._b.transpose(1, 2).reshape(clients * rank, -1)
        base: Any = self.base_layer
        dropout: Any = self.dropout
        weight, bias = self._weight, base.bias
        if self.training and dropout.p:  # PEFT then takes both parts from what is not dropped
            plain = F.linear(values.to(weight.dtype), weight)
        else:
            plain = result if bias is None else result - bias
        factors = self._magnitude / self._lengths(weight)
        chosen = place.selector(1, factors.dtype)
        changed = (chosen @ (factors - 1)) * plain + (chosen @ factors) * update
        return result + changed.to(result.dtype)

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.weight
        return weight.T if self._transposed else weight

    @torch.no_grad()
    def _lengths(self, weight: Tensor) -> Tensor:
        """Return ‖W + s·B·A‖ of each client and row, shape (clients, out); constants, as in PEFT.

        Squared it is ‖w‖² + 2s·b·(Aw) + s²·b·(AAᵀ)·b for a row w of W and its row b of B: no client's own matrix of
        W's shape is made.
        """
        full = torch.promote_types(self._magnitude.dtype, torch.float32)
        w, a, b = weight.to(full), self._a.to(full), self._b.to(full) * self._scaling
        clients, rank, width = a.shape
        inner = (a.reshape(clients * rank, width) @ w.T).view(clients, rank, -1).transpose(1, 2)
        squares = w.square().sum(dim=1) + (b * (2 * inner + b @ (a @ a.transpose(1, 2)))).sum(dim=2)
        return squares.clamp(min=0).sqrt().to(self._magnitude.dtype)


@final
class _Loha(_Adapted):
    """LoHa: s·(B₁·A₁ ⊙ B₂·A₂) of each position's own client.

    That is a product of rank r² whose factors are the products of all pairs of columns and of rows: through them a
    client's positions go, and no client's matrix of the weight's shape is made.
    """

    def __init__(self, streams: Streams, layer: LohaLinear, adapter: str, factors: Mapping[Factor, Tensor]) -> None:
        super().__init__(streams, layer.base_layer, nn.Identity())
        self._a = factors[Factor.HADAMARD_A1], factors[Factor.HADAMARD_A2]
        self._b = factors[Factor.HADAMARD_B1], factors[Factor.HADAMARD_B2]
        self._scaling = float(layer.scaling[adapter])

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        a = (self._a[0][:, :, None] * self._a[1][:, None]).flatten(1, 2)  # (clients, r², in)
        b = (self._b[0][..., None] * self._b[1][:, :, None]).flatten(2)  # (clients, out, r²)
        down = _linear(place.gather(values).split(list(place.counts)), a, None)
        up = _linear(down.split(list(place.counts)), b * self._scaling, None)
        return result + place.scatter(up).to(result.dtype)


@final
class _Ia3(_Layer):
    """IA³: each feature of the output, or of the input of a feed-forward layer, times the client's number for it."""

    def __init__(self, streams: Streams, layer: Ia3Linear, scale: Tensor) -> None:
        super().__init__(streams)
        self.base_layer: nn.Module = layer.base_layer
        self._scale, self._of_input = scale, layer.is_feedforward

    @property
    def weight(self) -> Any:
        """The base layer's: some models ask for its dtype."""
        return self.base_layer.weight

    def forward(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._of_input:
            result: Tensor = self.base_layer(self._scaled(values), *args, **kwargs)
            return result
        return self._scaled(self.base_layer(values, *args, **kwargs))

    def _scaled(self, values: Tensor) -> Tensor:
        place = self.place(values)
        own = place.selector(1, self._scale.dtype) @ (self._scale.flatten(1) - 1) + 1  # one where no client's token is
        return (values * own.view(values.shape)).to(values.dtype)


@final
class _Whole(_Layer):
    """A module that each client trains in full; it works on each row (or token) by itself."""

    def __init__(self, streams: Streams, module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(streams)
        self._module, self._values = [module], parameters  # in a list: it is not a part, its values are not used

    def forward(self, values: Tensor) -> Tensor:
        place = self.place(values)
        lead = values.dim() - 1
        flat = values.reshape(-1, values.shape[-1])
        parts = place.gather(flat).split(list(place.counts))
        outputs = place.scatter(self._outputs(parts))
        return outputs.view(*values.shape[:lead], *outputs.shape[1:])

    def _outputs(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the clients' outputs, shape (elements, ...)."""
        module = self._module[0]
        if isinstance(module, nn.Linear):
            return _linear(parts, self._values["weight"], self._values.get("bias"))
        return torch.cat(
            [
                functional_call(module, {name: value[client] for name, value in self._values.items()}, part)
                for client, part in enumerate(parts)
            ]
        )


def _linear(parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return each client's part through its own weight, shape (elements, out).

    Args:
        parts: of each client, shape (elements of the client, in).
        weight: shape (clients, out, in).
        bias: shape (clients, out).
    """
    filled = nn.utils.rnn.pad_sequence(list(parts), batch_first=True).to(weight.dtype)
    product = filled @ weight.transpose(1, 2)
    outputs = product if bias is None else product + bias[:, None]
    return torch.cat([rows[: len(part)] for rows, part in zip(outputs, parts, strict=True)])


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
    return tensor.dtype if dtype is None or key.factor in _FACTORS_OF_OUTPUTS else dtype


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
        elif type(module) not in (LoraLinear, VeraLinear, LohaLinear, SteadyLoha, Ia3Linear):
            found.add(f"{path}: a {type(module).__module__.rpartition('.')[0]} {type(module).__name__} layer")
        elif isinstance(module, LoraLinear) and (_other_variant(module) or any(module.lora_bias.values())):
            found.add(f"{path}: a LoRA variant")
    return sorted(found)


def _is_quantized(module: nn.Module) -> TypeGuard[LoraLayer]:
    """Say whether a module is PEFT's LoRA on a layer of few bits, whose classes need bitsandbytes to be imported."""
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
    """Return what stands for an adapted module in a stack."""
    own = {key: value for key, value in values.items() if key.module == path or key.module.startswith(f"{path}.")}
    adapters = list(dict.fromkeys(key.adapter for key in own))
    if len(adapters) > 1:
        return _chained(module, path, streams, own, adapters)
    by_factor = {key.factor: value for key, value in own.items()}
    adapter = adapters[0]
    if isinstance(module, LoraLinear) and Factor.MAGNITUDE in by_factor:
        own_factors = (by_factor[factor] for factor in (Factor.A, Factor.B, Factor.MAGNITUDE))
        return _Dora(streams, module, adapter, *own_factors)
    if isinstance(module, LohaLinear):
        return _Loha(streams, module, adapter, by_factor)
    if isinstance(module, Ia3Linear):
        return _Ia3(streams, module, by_factor[Factor.SCALE])
    if isinstance(module, LoraLinear) and Factor.MIDDLE in by_factor:
        return _LoraXs(streams, module, adapter, by_factor[Factor.MIDDLE])
    if isinstance(module, LoraLinear) or _is_quantized(module):
        return _Lora(streams, module, adapter, by_factor[Factor.A], by_factor[Factor.B])
    if isinstance(module, VeraLinear):
        return _Vera(streams, module, adapter, by_factor[Factor.LAMBDA_D], by_factor[Factor.LAMBDA_B])
    if isinstance(module, ModulesToSaveWrapper):
        named = {key.module.removeprefix(f"{path}."): value for key, value in own.items()}
        return _whole(module.modules_to_save[adapter], named, streams)
    raise NotImplementedError(f"{path}: {type(module).__name__} cannot be stacked")


def _chained(module: nn.Module, path: str, streams: Streams, values: Values, adapters: Sequence[str]) -> nn.Module:
    """Return the layers of several adapters, each in the place of the next one's base: their updates are added."""
    layers = []
    for adapter in adapters:
        own = {key: value for key, value in values.items() if key.adapter == adapter}
        layer = _stacked(module, path, streams, own)
        if not isinstance(layer, _Adapted):
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
        return _Whole(streams, module, values)
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
