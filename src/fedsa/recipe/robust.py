"""The section ``[robust]``: how the server protects the mean from bad updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from fedsa.recipe.base import Agreed, Settings
from fedsa.recipe.kinds import ByKind, reader

__all__ = [
    "MedianSettings",
    "NormBoundSettings",
    "NotRobustSettings",
    "PoisonScoreSettings",
    "RobustSettings",
    "TrimmedMeanSettings",
    "robust_settings",
]


class NotRobustSettings(Settings):
    """The weighted mean, whatever the clients send."""

    kind: Agreed[Literal["none"]] = Field("none", description="the weighted mean")


class MedianSettings(Settings):
    """The median of each number by itself."""

    kind: Agreed[Literal["median"]] = Field(
        "median", description="replaces the mean, separately for each number; each client counts once"
    )


class TrimmedMeanSettings(Settings):
    """The mean of each number by itself without the largest and the smallest values."""

    kind: Agreed[Literal["trimmed_mean"]] = Field(
        "trimmed_mean", description="replaces the mean, separately for each number; each client counts once"
    )
    trim_fraction: Agreed[float] = Field(
        0.2, gt=0, lt=0.5, description="part of the clients whose values are left out at each end"
    )


class NormBoundSettings(Settings):
    """Updates that are too far from the server's values are scaled down."""

    kind: Agreed[Literal["norm_bound"]] = Field(
        "norm_bound", description="an update that is too far from the server's values is scaled down"
    )
    clipping_norm: Agreed[float] = Field(gt=0, description="the largest distance of an update, over all its numbers")


class PoisonScoreSettings(Settings):
    """Each update gets a score: how far its change of A is from the changes of the others."""

    kind: Agreed[Literal["poison_score"]] = Field(
        "poison_score", description="each update gets a score: how far its change of A is from those of the others"
    )
    threshold: Agreed[float] = Field(
        1.0,
        gt=0,
        description="a larger score flags an update; 1: its change points away from what the others have in common, or "
        "it is three times as large as the median one",
    )
    leave_out: Agreed[bool] = Field(
        True, description="flagged updates do not count; false: scores are recorded, and every update counts"
    )


RobustSettings = Annotated[
    NotRobustSettings | MedianSettings | TrimmedMeanSettings | NormBoundSettings | PoisonScoreSettings,
    ByKind(
        "kind",
        default="none",
        about="How the server protects the mean from clients that send wrong values, by mistake or on purpose.",
    ),
]

robust_settings: Callable[[Any], RobustSettings] = reader(RobustSettings)
"""The section that raw data describes: of the kind that ``kind`` names, or of none."""
