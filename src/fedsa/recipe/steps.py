"""The settings that say what happens to an update between client and server, from wherever in a recipe they stand."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from fedsa.recipe.compression import CompressionSettings, NoCompressionSettings
from fedsa.recipe.overlap import NoOverlapSettings, OverlapSettings
from fedsa.recipe.privacy import NoPrivacySettings, PrivacySettings
from fedsa.recipe.robust import NotRobustSettings, RobustSettings
from fedsa.recipe.server import MeanSettings, ServerSettings

__all__ = ["StepSettings", "WireDtype"]

WireDtype: TypeAlias = Literal["fp32", "bf16"]


class StepSettings(NamedTuple):
    """What a chain of steps is made from.

    Attributes:
        wire_dtype: in what tensors travel.
        server: ``[server]``.
        robust: ``[robust]``.
        overlap: ``[overlap]``.
        secure_aggregation: whether the server sees sums only.
        privacy: ``[privacy]``.
        compression: ``[compression]``.
    """

    wire_dtype: WireDtype = "fp32"
    server: ServerSettings = MeanSettings()
    robust: RobustSettings = NotRobustSettings()
    overlap: OverlapSettings = NoOverlapSettings()
    secure_aggregation: bool = False
    privacy: PrivacySettings = NoPrivacySettings()
    compression: CompressionSettings = NoCompressionSettings()
