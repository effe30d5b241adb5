"""The section ``[overlap]``: whether a round may begin while clients still train for an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from fedsa.recipe.base import Agreed, Settings
from fedsa.recipe.kinds import ByKind, reader

__all__ = ["BufferedSettings", "NoOverlapSettings", "OverlapSettings", "overlap_settings"]


class NoOverlapSettings(Settings):
    """A round ends before the next one begins."""

    kind: Agreed[Literal["none"]] = Field("none", description="a round waits for all clients that train in it")


class BufferedSettings(Settings):
    """A round ends when enough updates have come; who still trains goes on, and counts in the round it comes in."""

    kind: Agreed[Literal["buffered"]] = Field(
        "buffered",
        description="a round ends when `buffer` updates have come; a client that still trains goes on, and its update "
        "counts in the round in which it comes",
    )
    buffer: Agreed[int] = Field(gt=0, description="updates that end a round; the last round waits for all")
    staleness_exponent: Agreed[float] = Field(
        0.5, ge=0, description="a: an update that comes s rounds late counts (1+s)^-a of what it would in time"
    )
    max_staleness: Agreed[int] = Field(
        10, ge=0, description="an update that comes more rounds late than this does not count"
    )
    pace_spread: Agreed[float] = Field(
        1.0,
        ge=1,
        description="in a simulation: how many times as long the slowest client may take for one step as the fastest; "
        "each client's time is drawn by the seed, its logarithm evenly",
    )
    paces: Agreed[dict[str, Annotated[float, Field(gt=0)]]] = Field(
        {},
        description="in a simulation: the time that a client takes for one step, by client id, where it is not drawn",
    )


OverlapSettings = Annotated[
    NoOverlapSettings | BufferedSettings,
    ByKind(
        "kind",
        default="none",
        about="Whether the next round begins while slow clients still train. It works with methods that average "
        "tensors in place.",
    ),
]

overlap_settings: Callable[[Any], OverlapSettings] = reader(OverlapSettings)
"""The section that raw data describes: of the kind that ``kind`` names, or of none."""
