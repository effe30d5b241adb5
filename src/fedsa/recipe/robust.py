"""The section ``[robust]``: what the server does against a client that sends anything at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from fedsa.recipe.base import Agreed, Settings

__all__ = ["RobustSettings"]

_KEYS = {"none": None, "median": None, "trimmed_mean": "trim_fraction", "norm_bound": "clipping_norm"}
"""What each kind takes beside its name."""


class RobustSettings(Settings):
    """What the server does against a client that sends anything at all, by mistake or on purpose."""

    kind: Agreed[Literal["none", "median", "trimmed_mean", "norm_bound"]] = Field(
        "none",
        description="none: the weighted mean; median, trimmed_mean: of each number by itself, in place of the mean, "
        "each client counting once; norm_bound: an update that is too far from the server's values is scaled down",
    )
    trim_fraction: Agreed[float | None] = Field(
        None,
        gt=0,
        lt=0.5,
        description="trimmed_mean only: part of the clients whose values are left out at each end; empty: 0.2",
    )
    clipping_norm: Agreed[float | None] = Field(
        None, gt=0, description="norm_bound only: the largest distance of an update, over all its numbers; required"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_of_the_kind(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("kind") == "trimmed_mean":
            return {"trim_fraction": 0.2, **data}
        return data

    @model_validator(mode="after")
    def _keys_go_with_the_kind(self) -> RobustSettings:
        own = _KEYS[self.kind]
        wrong = [name for name, value in self if name not in ("kind", own) and value is not None]
        if wrong:
            goes = f"it takes {own}" if own else "it takes none"
            raise ValueError(f"{', '.join(wrong)}: not a setting of kind = {self.kind!r}; {goes}")
        if self.kind == "norm_bound" and self.clipping_norm is None:
            raise ValueError(
                "kind = 'norm_bound' needs clipping_norm: say how far an update may be from the server's values"
            )
        return self
