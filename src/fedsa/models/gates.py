"""Gates: how much each adapter of a layer counts for each token, as the client has learnt it."""

from __future__ import annotations

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from fedsa.models.dropout import Streams
from fedsa.seeds import derive_seed, seed_torch

__all__ = ["Gate", "with_gates"]


@final
class Gate(nn.Module):
    """The softmax of G·x for each element x of a layer's input, with G of shape (adapters, in).

    Args:
        width: of the layer's input.
        adapters: their names; G is stored as the first one's.
        streams: the model's.

    Attributes:
        stacked: several clients' G's, shape (clients, adapters, in), in the place of the one; None: the one.
    """

    def __init__(self, width: int, adapters: tuple[str, ...], streams: Streams) -> None:
        super().__init__()
        self._name, self._streams = adapters[0], streams
        self.register_parameter(self._name, nn.Parameter(torch.empty(len(adapters), width)))
        self.stacked: Tensor | None = None

    def draw(self) -> None:
        """Draw G as LoRA draws its A: uniform between ±1/√in."""
        nn.init.kaiming_uniform_(self.get_parameter(self._name), a=math.sqrt(5))

    def forward(self, values: Tensor) -> Tensor:
        """Return each adapter's share, shape (..., adapters)."""
        if self.stacked is None:
            own = self.get_parameter(self._name)
            return _softmax(F.linear(values.to(own.dtype), own))
        clients, adapters, width = self.stacked.shape
        layout = self._streams.layout
        if layout is None:
            raise RuntimeError("no pass has begun: Streams.begin says whose rows come")
        all_clients = F.linear(values.reshape(-1, width).to(self.stacked.dtype), self.stacked.reshape(-1, width))
        chosen = all_clients * layout.place(values).selector(adapters, all_clients.dtype)
        logits = chosen.view(-1, clients, adapters).sum(dim=1)
        return _softmax(logits).view(*values.shape[:-1], adapters)


def with_gates(model: nn.Module, adapters: tuple[str, ...], streams: Streams, seed: int) -> None:
    """Put a gate into each linear layer that has LoRA adapters.

    Args:
        model: PEFT's, with all its adapters.
        adapters: their names.
        streams: the model's.
        seed: the gates' initial values are drawn from it.
    """
    seed_torch(derive_seed(seed, "gates"))
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.fedsa_gate = Gate(layer.in_features, adapters, streams)
        layer.fedsa_gate.draw()


def _softmax(logits: Tensor) -> Tensor:
    """Return shares, in fp32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
