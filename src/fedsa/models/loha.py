"""LoHa's layers without PEFT's coin."""

from __future__ import annotations

from typing import Any, final

from peft.tuners.loha.layer import Linear
from torch import Tensor, nn

__all__ = ["SteadyLoha", "without_coins"]


@final
class SteadyLoha(Linear):
    """PEFT's layer where nothing is dropped: in training it throws a coin all the same, from a stream of all clients.

    The coin's probability of no adapter is next to nothing, but not nothing, and a coin has no value on ``meta``.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output as in evaluation, with its gradients."""
        training, self.training = self.training, False
        try:
            output: Tensor = super().forward(x, *args, **kwargs)
        finally:
            self.training = training
        return output


def without_coins(model: nn.Module) -> None:
    """Make each linear LoHa layer of a model a `SteadyLoha`."""
    for layer in model.modules():
        if type(layer) is Linear:
            layer.__class__ = SteadyLoha
