"""Gates: how much each adapter of a layer counts, for each token or for all, as the client has learnt it."""

from __future__ import annotations

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from fedsa.models.dropout import Streams
from fedsa.seeds import derive_seed, seed_torch
from fedsa.types import Gating, gate_shape

__all__ = ["Gate", "fold_gates", "with_gates"]


@final
class Gate(nn.Module):
    """What each adapter's update is multiplied by, for each element x of a layer's input.

    Args:
        gating: ``token``: softmax(G·x), with G of shape (adapters, in); ``layer``: softmax(g), and ``free``: g, both of
            shape (adapters,) and the same for every x.
        width: of the layer's input.
        adapters: their names; G is stored as the first one's.
        streams: the model's.

    Attributes:
        stacked: several clients' G's, shape (clients, *shape of G), in the place of the one; None: the one.
    """

    def __init__(self, gating: Gating, width: int, adapters: tuple[str, ...], streams: Streams) -> None:
        super().__init__()
        self._gating, self._name, self._streams = gating, adapters[0], streams
        self.register_parameter(self._name, nn.Parameter(torch.empty(gate_shape(gating, len(adapters), width))))
        self.stacked: Tensor | None = None

    def draw(self) -> None:
        """Draw a token's G as LoRA draws its A: uniform between ±1/√in. Shares start equal, free numbers at 1."""
        own = self.get_parameter(self._name)
        if self._gating == "token":
            nn.init.kaiming_uniform_(own, a=math.sqrt(5))
        else:
            nn.init.constant_(own, float(self._gating == "free"))

    def forward(self, values: Tensor) -> Tensor:
        """Return each adapter's multiplier, shape (..., adapters), or (adapters,) where it is one for all values."""
        if self.stacked is None:
            return self._multipliers(self._linear(values, self.get_parameter(self._name)))
        clients, adapters = self.stacked.shape[:2]
        layout = self._streams.layout
        if layout is None:
            raise RuntimeError("no pass has begun: Streams.begin says whose rows come")
        all_clients = self._linear(values.reshape(-1, values.shape[-1]), self.stacked.flatten(0, 1))
        chosen = all_clients * layout.place(values).selector(adapters, all_clients.dtype)
        own = chosen.view(-1, clients, adapters).sum(dim=1)
        return self._multipliers(own).view(*values.shape[:-1], adapters)

    def _linear(self, values: Tensor, gate: Tensor) -> Tensor:
        return F.linear(values.to(gate.dtype), gate) if self._gating == "token" else gate

    def _multipliers(self, numbers: Tensor) -> Tensor:
        """Shares, in fp32 at least, or the numbers themselves."""
        if self._gating == "free":
            return numbers
        return numbers.to(torch.promote_types(numbers.dtype, torch.float32)).softmax(dim=-1)

    def constants(self) -> list[float]:
        """Each adapter's multiplier, where it does not depend on the token."""
        return self._multipliers(self.get_parameter(self._name).detach()).tolist()


def with_gates(model: nn.Module, gating: Gating, adapters: tuple[str, ...], streams: Streams, seed: int) -> None:
    """Put a gate into each linear layer that has LoRA adapters.

    Args:
        model: PEFT's, with all its adapters.
        gating: what the gates give.
        adapters: their names.
        streams: the model's.
        seed: the gates' initial values are drawn from it.
    """
    seed_torch(derive_seed(seed, "gates"))
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.fedsa_gate = Gate(gating, layer.in_features, adapters, streams)
        layer.fedsa_gate.draw()


def fold_gates(model: nn.Module, adapters: tuple[str, ...]) -> None:
    """Put what gates multiply by into the scales of the layers' adapters, for merging: PEFT knows no gates.

    Args:
        model: PEFT's; its gates, where it has some, give all tokens the same. It computes something else from then on.
        adapters: their names.
    """
    for module in model.modules():
        gate: Any = getattr(module, "fedsa_gate", None)
        if gate is not None:
            layer: Any = module
            for adapter, multiplier in zip(adapters, gate.constants(), strict=True):
                layer.scaling[adapter] *= multiplier
