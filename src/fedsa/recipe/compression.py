"""The section ``[compression]``: in how many bits updates travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from fedsa.recipe.base import Agreed, Settings
from fedsa.recipe.kinds import ByKind, reader

__all__ = ["CompressionSettings", "Int8Settings", "NoCompressionSettings", "compression_settings"]


class NoCompressionSettings(Settings):
    """Updates travel as ``wire_dtype`` says."""

    kind: Agreed[Literal["none"]] = Field("none", description="updates travel in wire_dtype")


class Int8Settings(Settings):
    """The change of an update in eight bits a number, with error feedback."""

    kind: Agreed[Literal["int8"]] = Field(
        "int8",
        description="clients send the change of each number in eight bits; what the rounding leaves is kept at the "
        "client and added to its next update. Payloads travel in wire_dtype",
    )


CompressionSettings = Annotated[
    NoCompressionSettings | Int8Settings,
    ByKind("kind", default="none", about="In how many bits a number of an update travels from a client to the server."),
]

compression_settings: Callable[[Any], CompressionSettings] = reader(CompressionSettings)
"""The section that raw data describes: of the kind that ``kind`` names, or of none."""
