"""The section ``[server]``: what the server makes of a round's mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from fedsa.recipe.base import Agreed, Settings

__all__ = ["SERVER_DEFAULTS", "ServerSettings"]

SERVER_DEFAULTS: dict[str, dict[str, float]] = {
    "none": {},
    "fedavgm": {"learning_rate": 1.0, "momentum": 0.9},
    "fedadam": {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedyogi": {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
}
"""The server optimisers, and the settings that go with each, with their defaults."""


class ServerSettings(Settings):
    """What the server makes of a round's mean: it can take it as a gradient of its own."""

    optimizer: Agreed[Literal["none", "fedavgm", "fedadam", "fedyogi"]] = Field(
        "none",
        description="none: the mean is the new value; fedavgm: momentum; fedadam, fedyogi: adaptive steps. For methods "
        "whose tensors are averaged in place",
    )
    learning_rate: Agreed[float | None] = Field(
        None, gt=0, description="of the server; empty: 1 for fedavgm, 0.01 for the others (their paper tunes it)"
    )
    momentum: Agreed[float | None] = Field(None, ge=0, lt=1, description="fedavgm only; empty: 0.9")
    beta1: Agreed[float | None] = Field(
        None, ge=0, lt=1, description="of the first moment, fedadam and fedyogi; empty: 0.9"
    )
    beta2: Agreed[float | None] = Field(
        None, ge=0, lt=1, description="of the second moment, fedadam and fedyogi; empty: 0.99"
    )
    tau: Agreed[float | None] = Field(
        None, gt=0, description="added to the root of the second moment, fedadam and fedyogi; empty: 0.001"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("optimizer"), str):
            return data
        return {**SERVER_DEFAULTS.get(data["optimizer"], {}), **data}

    @model_validator(mode="after")
    def _keys_go_with_the_optimizer(self) -> ServerSettings:
        own = SERVER_DEFAULTS[self.optimizer]
        wrong = [name for name, value in self if name != "optimizer" and value is not None and name not in own]
        if wrong:
            goes = f"it takes {', '.join(own)}" if own else f"choose {', '.join(list(SERVER_DEFAULTS)[1:])}"
            raise ValueError(f"{', '.join(wrong)}: not a setting of optimizer = {self.optimizer!r}; {goes}")
        return self
