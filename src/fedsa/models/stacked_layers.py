"""Layers with the adapters of many clients: each row or token goes through the adapter of its own client.

There is a class for each kind of adapter. The clients' A's stand side by side as one wide A, their B's as one wide B,
and in between each token keeps the numbers of its own client alone. That is two large products for each layer instead
of two small ones for each client.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, final

import torch
import torch.nn.functional as F
from peft.tuners.ia3.layer import Linear as Ia3Linear
from peft.tuners.loha.layer import Linear as LohaLinear
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.vera.layer import Linear as VeraLinear
from torch import Tensor, nn
from torch.func import functional_call

from fedsa.models.dropout import Streams
from fedsa.models.layout import Place
from fedsa.models.loha import SteadyLoha
from fedsa.models.lora_xs import frozen_directions
from fedsa.types import Factor

__all__ = [
    "KINDS",
    "Factors",
    "StackedAdapter",
    "StackedDora",
    "StackedIa3",
    "StackedKind",
    "StackedLayer",
    "StackedLoha",
    "StackedLora",
    "StackedLoraXs",
    "StackedVera",
    "StackedWhole",
]

Factors: TypeAlias = Mapping[Factor, Tensor]
"""The tensors of one layer, each of all clients: shape (clients, *shape of the factor)."""


class StackedLayer(nn.Module):
    """A layer with many clients' adapters, in the place of one with a single client's.

    Attributes:
        adapters_off: it gives what the base gives, as one of PEFT's layers does while its adapters are disabled.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams
        self.adapters_off = False

    def place(self, values: Tensor) -> Place:
        """Return where the clients' elements lie in an activation."""
        layout = self._streams.layout
        if layout is None:
            raise RuntimeError("no pass has begun: Streams.begin says whose rows come")
        return layout.place(values)


class StackedAdapter(StackedLayer):
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
        """The base layer's output with the adapter's part added."""
        result: Tensor = self.base_layer(values, *args, **kwargs)
        if self.adapters_off:
            return result
        dropped = self.dropout(values).reshape(-1, values.shape[-1])
        return self.adapted(result.reshape(-1, result.shape[-1]), dropped, self.place(values)).view(result.shape)

    @abstractmethod
    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """Return the layer's result, shape (positions, out), with the adapter's part added."""


@final
class StackedLora(StackedAdapter):
    """LoRA and rsLoRA: s·B·A of each position's own client."""

    def __init__(self, streams: Streams, layer: LoraLayer, adapter: str, values: Factors) -> None:
        super().__init__(streams, layer.base_layer, layer.lora_dropout[adapter])
        self._a, self._b, self._scaling = values[Factor.A], values[Factor.B], float(layer.scaling[adapter])

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """The result plus s·B·A of the values."""
        if place.single_rows:
            return result + _product_of_rows(values, self._a, self._b, place).to(result.dtype) * self._scaling
        clients, rank, width = self._a.shape
        down = F.linear(values.to(self._a.dtype), self._a.reshape(clients * rank, width))
        own = down * (place.selector(rank, down.dtype) * self._scaling) if clients > 1 else down * self._scaling
        up = self._b.transpose(1, 2).reshape(clients * rank, -1)
        return torch.addmm(result, own.to(result.dtype), up.to(result.dtype))


@final
class StackedLoraXs(StackedAdapter):
    """LoRA-XS: s·B·R·A, with A and B frozen and the same for all."""

    def __init__(self, streams: Streams, layer: LoraLinear, adapter: str, values: Factors) -> None:
        super().__init__(streams, layer.base_layer, layer.lora_dropout[adapter])
        self._middle, self._scaling = values[Factor.MIDDLE], float(layer.scaling[adapter])
        self._a, self._b = frozen_directions(layer, adapter)

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """The result plus s·B·R·A of the values."""
        clients, rank, _ = self._middle.shape
        down = F.linear(values.to(self._middle.dtype), self._a.to(self._middle.dtype))
        own = down.repeat(1, clients) * (place.selector(rank, down.dtype) * self._scaling)
        turned = own @ self._middle.transpose(1, 2).reshape(clients * rank, rank)
        return torch.addmm(result, turned.to(result.dtype), self._b.T.to(result.dtype))


@final
class StackedVera(StackedAdapter):
    """VeRA: Λ_b·B·Λ_d·A, with A and B frozen and the same for all."""

    def __init__(self, streams: Streams, layer: VeraLinear, adapter: str, values: Factors) -> None:
        super().__init__(streams, layer.base_layer, layer.vera_dropout[adapter])
        self._d, self._b = values[Factor.LAMBDA_D], values[Factor.LAMBDA_B]
        projections: Any = layer
        self._down, self._up = projections.vera_A[adapter], projections.vera_B[adapter]
        self._in, self._out = layer.in_features, layer.out_features

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """The result plus Λ_b·B·Λ_d·A of the values."""
        down = F.linear(values.to(self._d.dtype), self._down[:, : self._in].to(values.device, self._d.dtype))
        up = F.linear(down * place.own(self._d), self._up[: self._out].to(values.device, self._d.dtype))
        return result + (up * place.own(self._b)).to(result.dtype)


@final
class StackedDora(StackedAdapter):
    """DoRA: each row of W + s·B·A at the length that the client has learnt."""

    def __init__(self, streams: Streams, layer: LoraLinear, adapter: str, values: Factors) -> None:
        super().__init__(streams, layer.base_layer, layer.lora_dropout[adapter])
        self._a, self._b, self._magnitude = (values[factor] for factor in (Factor.A, Factor.B, Factor.MAGNITUDE))
        self._scaling, self._transposed = float(layer.scaling[adapter]), bool(layer.fan_in_fan_out)

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """The result with each row of W + s·B·A at its length."""
        clients, rank, width = self._a.shape
        if place.single_rows:
            update = _product_of_rows(values, self._a, self._b, place) * self._scaling
        else:
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
        changed = place.own(factors - 1) * plain + place.own(factors) * update
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
class StackedLoha(StackedAdapter):
    """LoHa: s·(B₁·A₁ ⊙ B₂·A₂) of each position's own client.

    That is a product of rank r² whose factors are the products of all pairs of columns and of rows: through them a
    client's positions go, and no client's matrix of the weight's shape is made.
    """

    def __init__(self, streams: Streams, layer: LohaLinear, adapter: str, values: Factors) -> None:
        super().__init__(streams, layer.base_layer, nn.Identity())
        self._a = values[Factor.HADAMARD_A1], values[Factor.HADAMARD_A2]
        self._b = values[Factor.HADAMARD_B1], values[Factor.HADAMARD_B2]
        self._scaling = float(layer.scaling[adapter])

    def adapted(self, result: Tensor, values: Tensor, place: Place) -> Tensor:
        """The result plus s·(B₁·A₁ ⊙ B₂·A₂) of the values."""
        a = (self._a[0][:, :, None] * self._a[1][:, None]).flatten(1, 2)  # (clients, r², in)
        b = (self._b[0][..., None] * self._b[1][:, :, None]).flatten(2)  # (clients, out, r²)
        down = _linear(place.gather(values).split(list(place.counts)), a, None)
        up = _linear(down.split(list(place.counts)), b * self._scaling, None)
        return result + place.scatter(up).to(result.dtype)


@final
class StackedIa3(StackedLayer):
    """IA³: each feature of the output, or of the input of a feed-forward layer, times the client's number for it."""

    def __init__(self, streams: Streams, layer: Ia3Linear, adapter: str, values: Factors) -> None:
        super().__init__(streams)
        self.base_layer: nn.Module = layer.base_layer
        self._scale, self._of_input = values[Factor.SCALE], layer.is_feedforward

    @property
    def weight(self) -> Any:
        """The base layer's: some models ask for its dtype."""
        return self.base_layer.weight

    def forward(self, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, with the client's number on each feature."""
        if self.adapters_off:
            plain: Tensor = self.base_layer(values, *args, **kwargs)
            return plain
        if self._of_input:
            result: Tensor = self.base_layer(self._scaled(values), *args, **kwargs)
            return result
        return self._scaled(self.base_layer(values, *args, **kwargs))

    def _scaled(self, values: Tensor) -> Tensor:
        place = self.place(values)
        own = place.selector(1, self._scale.dtype) @ (self._scale.flatten(1) - 1) + 1  # one where no client's token is
        return (values * own.view(values.shape)).to(values.dtype)


@final
class StackedWhole(StackedLayer):
    """A module that each client trains in full; it works on each row (or token) by itself."""

    def __init__(self, streams: Streams, module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(streams)
        self._module, self._values = [module], parameters  # in a list: it is not a part, its values are not used

    def forward(self, values: Tensor) -> Tensor:
        """Each client's elements through its own module."""
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


def _product_of_rows(values: Tensor, a: Tensor, b: Tensor, place: Place) -> Tensor:
    """Return B·A of each position's client, shape (positions, out), where each client has one row of its own.

    In the backward pass that is two small products for each row, whatever the number of rows.

    Args:
        values: shape (positions, in).
        a: shape (clients, rank, in).
        b: shape (clients, out, rank).
        place: where the rows are.
    """
    rows = place.single_rows
    down = values.to(a.dtype).view(rows, -1, values.shape[1]) @ a[:rows].transpose(1, 2)
    return (down @ b[:rows].transpose(1, 2)).flatten(0, 1)


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


class StackedKind(NamedTuple):
    """A kind of adapted layers that can be stacked.

    Attributes:
        layers: PEFT's classes of such a layer, and none that are derived from them.
        factors: its trained factors.
        stacked: the class that takes the place of such a layer.
    """

    layers: tuple[type[nn.Module], ...]
    factors: frozenset[Factor]
    stacked: Callable[[Streams, Any, str, Factors], StackedLayer]


KINDS = (
    StackedKind((LoraLinear,), frozenset({Factor.A, Factor.B}), StackedLora),
    StackedKind((LoraLinear,), frozenset({Factor.A, Factor.B, Factor.MAGNITUDE}), StackedDora),
    StackedKind((LoraLinear,), frozenset({Factor.MIDDLE}), StackedLoraXs),
    StackedKind((VeraLinear,), frozenset({Factor.LAMBDA_D, Factor.LAMBDA_B}), StackedVera),
    StackedKind(
        (LohaLinear, SteadyLoha),
        frozenset({Factor.HADAMARD_A1, Factor.HADAMARD_A2, Factor.HADAMARD_B1, Factor.HADAMARD_B2}),
        StackedLoha,
    ),
    StackedKind((Ia3Linear,), frozenset({Factor.SCALE}), StackedIa3),
)
"""Every kind; a new adapter variant with a layer of its own adds its class above, and a line here."""
