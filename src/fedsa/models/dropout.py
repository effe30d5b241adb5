"""What is done to an adapter's input: dropout from a stream of each client's own, and a weight of each row's own.

And the base model's dropout, with cheaper random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedsa.models.layout import Layout, Place

__all__ = ["AdapterDropout", "FastDropout", "Streams", "without_dropout"]

_LEVELS = 2**16  # random numbers are of 16 bits: p is rounded to a multiple of 1/65536


@final
class Streams:
    """Where the adapters' dropout comes from in the pass that runs now.

    A draw depends on the client's seed, the batch's number and the layer alone: not on who else is in the pass, on
    padding, or on the order of layers. So it is the same when a layer is computed again.
    """

    def __init__(self) -> None:
        self.layers = 0
        self.layout: Layout | None = None
        self._seeds: Sequence[int] = ()
        self._batches: Sequence[int] = ()
        self._weights: Mapping[str, Tensor] = {}
        self._generators: dict[torch.device, torch.Generator] = {}

    def begin(
        self,
        layout: Layout,
        seeds: Sequence[int] = (),
        batches: Sequence[int] = (),
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Begin the next pass.

        Args:
            layout: its rows and tokens.
            seeds: of each client in its order, for the round; none are needed in evaluation.
            batches: how many batches each client has had in the round.
            weights: adapter to what its update is multiplied by for each row, shape (rows,); others have 1.
        """
        self.layout, self._seeds, self._batches, self._weights = layout, seeds, tuple(batches), weights or {}

    def end(self) -> None:
        """Forget the pass: what comes now is no batch of clients."""
        self.layout, self._weights = None, {}

    def weigh(self, values: Tensor, adapter: str) -> Tensor:
        """Return an adapter's input, shape (..., features), times the weight that each element's row gives the adapter.

        For an update s·B·A that is the same as to multiply what comes out of it.
        """
        if self.layout is None or adapter not in self._weights:
            return values
        return values * self.layout.spread(self._weights[adapter], values).to(values.dtype)

    def drop(self, values: Tensor, p: float, layer: int) -> Tensor:
        """Return ``values``, shape (..., features), with each feature of each element dropped with probability p."""
        if self.layout is None:
            raise RuntimeError("no pass has begun: Streams.begin says whose rows come")
        place = self.layout.place(values)
        keep = place.scatter(self._keep(place, values.shape[-1], p, layer, values.device))
        return _dropped(values, keep.view(values.shape), p)

    def _keep(self, place: Place, width: int, p: float, layer: int, device: torch.device) -> Tensor:
        columns = -(-width // 4)
        drawn = [
            self._random(count * columns, (seed + batch * self.layers + layer) % 2**63, device)
            for count, seed, batch in zip(place.counts, self._seeds, self._batches, strict=True)
            if count
        ]
        return _is_kept(torch.cat(drawn).view(-1, columns), p)[:, :width]

    def _random(self, count: int, seed: int, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return _random(count, seed)
        generator = self._generators.setdefault(device, torch.Generator(device))
        raw = torch.empty(count, dtype=torch.int64, device=device)
        return raw.random_(-(2**63), None, generator=generator.manual_seed(seed))


@final
class AdapterDropout(nn.Module):
    """Takes the place of PEFT's dropout in front of an adapter, and weighs the adapter for each row or token.

    Args:
        p: probability.
        streams: shared by all layers of a model.
        adapter: the name of the adapter that it is in front of.

    Attributes:
        gate: gives each token's shares of the layer's adapters, and which of them is this one's; None: each counts 1.
    """

    def __init__(self, p: float, streams: Streams, adapter: str = "default") -> None:
        super().__init__()
        self.p, self.streams, self.layer, self.adapter = p, streams, streams.layers, adapter
        self.gate: tuple[nn.Module, int] | None = None  # in a tuple: it is the layer's part
        streams.layers += 1

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, in training some of them zero and the others larger by 1 / (1 - p)."""
        dropped = self.streams.drop(values, self.p, self.layer) if self.training and self.p else values
        if self.gate is not None:
            gate, place = self.gate
            dropped = dropped * gate(values)[..., place : place + 1].to(dropped.dtype)
        return self.streams.weigh(dropped, self.adapter)


@final
class FastDropout(TorchFunctionMode):
    """A context in which ``torch.nn.functional.dropout`` on the CPU draws 16 bits an element, four at a time.

    torch draws them one by one there, which takes a third of a small model's training step. The distribution is the
    same but for p, which is rounded to a multiple of 1/65536; each call's stream is seeded by the global generator.
    """

    _entered = 0

    def __enter__(self) -> Self:
        FastDropout._entered += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        FastDropout._entered -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @classmethod
    def again(cls) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Return the contexts of a layer's pass and of its repetition in the backward pass, where torch suspends modes.

        What is dropped the second time must be what was dropped the first time.
        """
        return nullcontext(), cls() if cls._entered else nullcontext()

    @classmethod
    def on(cls, device: str) -> AbstractContextManager[Any]:
        """Return the context for a device: none but on the CPU, for it slows every call a little."""
        return cls() if device == "cpu" else nullcontext()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.dropout:
            return _dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """A context in which a model in training mode drops nothing: neither the base nor its adapters.

    Every probability that a layer has is zero in it, as ``p`` of a layer of dropout, or under a name with ``dropout``.
    """
    kept: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        is_layer = isinstance(module, AdapterDropout | nn.modules.dropout._DropoutNd)
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or (name == "p" and is_layer)):
                kept.append((module, name, value))
    try:
        for module, name, _ in kept:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p in (0, 1) or not input.is_cpu or inplace or not input.numel():
        return F.dropout(input, p, training, inplace)
    raw = _random(-(-input.numel() // 4), int(torch.randint(2**63 - 1, ())))
    return _dropped(input, _is_kept(raw, p)[: input.numel()].view(input.shape), p)


def _random(count: int, seed: int) -> Tensor:
    """Return random int64: numpy's fastest generator takes half of the time that torch's takes."""
    return torch.from_numpy(np.random.SFC64(seed).random_raw(count).view(np.int64))


def _is_kept(raw: Tensor, p: float) -> Tensor:
    """Return a mask that is four times as wide as the random int64."""
    return raw.view(torch.int16) >= _threshold(p) - _LEVELS // 2


def _dropped(values: Tensor, keep: Tensor, p: float) -> Tensor:
    dropped: Tensor = _Drop.apply(values, keep, _LEVELS / (_LEVELS - _threshold(p)))  # type: ignore[no-untyped-call]
    return dropped


class _Drop(torch.autograd.Function):
    """``values * keep * scale``, of which one byte an element is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (values * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None, None


def _threshold(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)
