"""Sentences side by side in the layers: the model takes and gives padded rows, its layers see no padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsa.models.dropout import Streams
from fedsa.models.layout import Layout

__all__ = ["LayerStack"]


@final
class LayerStack:
    """The row of alike layers that takes most of a transformer's time.

    In a pass whose layout is packed, the first layer's input is laid into the packed rows, every layer gets the mask
    that keeps each sentence to itself, and the last layer's output is laid back. Everything before (embeddings) and
    after (pooling, head, loss) is the model's own, on the rows it was given.

    Args:
        base: the model without its adapters' wrapper.
        streams: tells the layout of the pass that runs now.

    Attributes:
        layers: first to last; empty if there is no such row.
        takes_mask: the layers take an attention mask.
    """

    def __init__(self, base: nn.Module, streams: Streams) -> None:
        self._streams = streams
        self.layers = _alike_layers(base)
        self._causal = any(_is_causal(layer) for layer in self.layers)
        self._signatures = [inspect.signature(layer.forward) for layer in self.layers]
        self._rests = [_name_of_kwargs(signature) for signature in self._signatures]
        self.takes_mask = any(
            "attention_mask" in signature.parameters or "kwargs" in signature.parameters
            for signature in self._signatures
        )
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._before(number), with_kwargs=True)
        if self.layers:
            self.layers[-1].register_forward_hook(self._after)

    def _before(self, number: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            layout = self._streams.layout
            if layout is None or layout.packed is None:
                return None
            bound = self._signatures[number].bind(*args, **kwargs)
            names = list(bound.arguments)
            hidden = bound.arguments[names[0]]
            if number == 0:
                hidden = bound.arguments[names[0]] = _pack(hidden, layout)
            others: dict[str, Any] = bound.arguments
            for name in names[1:]:
                others[name] = _packed_argument(name, others[name], layout)
            if "attention_mask" in self._signatures[number].parameters:
                others["attention_mask"] = layout.packed.mask(hidden.dtype, causal=self._causal)
            variable = others.pop(self._rests[number], {})
            variable = {name: _packed_argument(name, value, layout) for name, value in variable.items()}
            if "attention_mask" in variable:
                variable["attention_mask"] = layout.packed.mask(hidden.dtype, causal=self._causal)
            first = others.pop(names[0])
            return (first,), {**others, **variable}

        return hook

    def _after(self, layer: nn.Module, args: Any, output: Any) -> Any:
        layout = self._streams.layout
        if layout is None or layout.packed is None:
            return None
        if isinstance(output, tuple):
            return (_unpack(output[0], layout), *output[1:])
        return _unpack(output, layout)


def _alike_layers(base: nn.Module) -> list[nn.Module]:
    """Return the longest list of layers of one class that is in the model."""
    lists = [list(module) for module in base.modules() if isinstance(module, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


def _name_of_kwargs(signature: inspect.Signature) -> str:
    parameters = signature.parameters.values()
    return next((each.name for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD), "")


def _is_causal(layer: nn.Module) -> bool:
    """Whether a layer's attention looks back only."""
    return any(getattr(module, "is_causal", False) is True for module in layer.modules())


def _pack(values: Tensor, layout: Layout) -> Tensor:
    """Return padded activations, shape (rows, tokens, ...), laid into the packed rows."""
    if layout.packed is None:
        raise RuntimeError("the layout is not packed")
    flat = values.reshape(-1, *values.shape[2:])
    moved: Tensor = _Move.apply(flat, layout.token_index, layout.slots.index, layout.slots.positions)  # type: ignore[no-untyped-call]
    return moved.view(*layout.packed.shape, *values.shape[2:])


def _unpack(values: Tensor, layout: Layout) -> Tensor:
    """Return packed activations laid back into padded rows, zero where no token is."""
    flat = values.reshape(-1, *values.shape[2:])
    rows = layout.shape[0] * layout.shape[1]
    moved: Tensor = _Move.apply(flat, layout.slots.index, layout.token_index, rows)  # type: ignore[no-untyped-call]
    return moved.view(*layout.shape, *values.shape[2:])


def _packed_argument(name: str, value: Any, layout: Layout) -> Any:
    """The value for a layer, in place of an argument that depends on the tokens' places."""
    if isinstance(value, tuple):
        return tuple(_packed_argument(name, each, layout) for each in value)
    if layout.packed is None or not isinstance(value, Tensor):
        return value
    if name == "position_ids":
        return layout.packed.position_ids
    if value.dim() == 3 and value.shape[1] == layout.shape[1] and value.shape[0] in (1, layout.shape[0]):
        return _pack(value.expand(layout.shape[0], -1, -1), layout)  # rotary cosines and sines
    return value


class _Move(torch.autograd.Function):
    """The rows ``source`` of a matrix in the rows ``target`` of a matrix of zeros; each row is moved at most once."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, source: Tensor, target: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(source, target)
        ctx.rows = values.shape[0]
        return _moved(values, source, target, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        source, target = ctx.saved_tensors
        return _moved(gradient, target, source, ctx.rows), None, None, None


def _moved(values: Tensor, source: Tensor, target: Tensor, rows: int) -> Tensor:
    made = values.new_zeros(rows, *values.shape[1:])
    return made.index_copy_(0, target, values.index_select(0, source))
