"""The section ``[server]``: how the server uses a round's mean. Each optimiser has its own settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from fedsa.recipe.base import Agreed, Settings
from fedsa.recipe.kinds import ByKind, reader

__all__ = ["FedAdamSettings", "FedAvgMSettings", "MeanSettings", "ServerSettings", "server_settings"]


class MeanSettings(Settings):
    """No server optimiser: a round's mean is the new value."""

    optimizer: Agreed[Literal["none"]] = Field("none", description="the mean is the new value")


class FedAvgMSettings(Settings):
    """The step to the mean is a gradient, with momentum."""

    optimizer: Agreed[Literal["fedavgm"]] = Field("fedavgm", description="a step with momentum")
    learning_rate: Agreed[float] = Field(1.0, gt=0, description="the server's learning rate")
    momentum: Agreed[float] = Field(0.9, ge=0, lt=1, description="the server's momentum")


class FedAdamSettings(Settings):
    """The step to the mean is a gradient, with adaptive steps."""

    optimizer: Agreed[Literal["fedadam", "fedyogi"]] = Field("fedadam", description="adaptive steps")
    learning_rate: Agreed[float] = Field(0.01, gt=0, description="the server's learning rate; the paper tunes it")
    beta1: Agreed[float] = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: Agreed[float] = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    tau: Agreed[float] = Field(1e-3, gt=0, description="added to the root of the second moment")


ServerSettings = Annotated[
    MeanSettings | FedAvgMSettings | FedAdamSettings,
    ByKind(
        "optimizer",
        default="none",
        about="How the server uses a round's mean. An optimiser works with methods that average tensors in place.",
    ),
]

server_settings: Callable[[Any], ServerSettings] = reader(ServerSettings)
"""The section that raw data describes: of the optimiser that ``optimizer`` names, or of none."""
