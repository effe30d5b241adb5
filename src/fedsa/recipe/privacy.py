"""The section ``[privacy]``: differential privacy of whole clients, or of single rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedsa.recipe.base import Agreed, Resolved, Settings
from fedsa.recipe.kinds import ByKind, reader

__all__ = [
    "ClientPrivacySettings",
    "ExamplePrivacySettings",
    "NoPrivacySettings",
    "PrivacySettings",
    "privacy_settings",
]


class NoPrivacySettings(Settings):
    """Nothing is clipped, and no noise is added."""

    kind: Agreed[Literal["none"]] = Field("none", description="no differential privacy")


class _Budget(Settings):
    """What both levels are given."""

    target_epsilon: Agreed[float | None] = Field(
        None, gt=0, description="the ε to spend at most; noise_multiplier follows from it"
    )
    target_delta: Agreed[float] = Field(
        1e-5, gt=0, lt=1, description="the δ of the guarantee; less than 1 divided by the number of what is protected"
    )

    @model_validator(mode="after")
    def _says_how_much(self) -> _Budget:
        if self.target_epsilon is None and getattr(self, "noise_multiplier", None) is None:
            raise ValueError("give target_epsilon, or noise_multiplier: one of them says how much noise there is")
        return self


class ClientPrivacySettings(_Budget):
    """All rows of one client are protected: what it sends is clipped, and noise is added."""

    kind: Agreed[Literal["client"]] = Field(
        "client", description="protects all rows of a client together, in what leaves it; B and head train as ever"
    )
    noise_multiplier: Agreed[Resolved[float | None]] = Field(
        None, ge=0, description="σ: the noise's standard deviation is σ · clipping_norm; 0: clipping without noise"
    )
    clipping_norm: Agreed[float] = Field(
        gt=0, description="the largest change that a client may send, over all its numbers together"
    )
    noise_at: Agreed[Literal["server", "client"]] = Field(
        "server",
        description="server: once in a round, to the sum of the changes, by a server that is trusted; client: by each "
        "client, before it sends, which takes far more noise in all",
    )
    clipping: Agreed[Literal["fixed", "adaptive"]] = Field(
        "fixed",
        description="fixed: clipping_norm is of all rounds; adaptive: of the first, and it follows the norms of the "
        "clients' changes, with noise at the server",
    )
    target_quantile: Agreed[float] = Field(
        0.5, gt=0, lt=1, description="with adaptive clipping: the part of the clients that shall be within the norm"
    )
    clipping_rate: Agreed[float] = Field(
        0.2, gt=0, description="with adaptive clipping: how fast the norm moves, η of C ← C · exp(-η (part - quantile))"
    )
    count_noise: Agreed[Resolved[float | None]] = Field(
        None,
        ge=0,
        description="with adaptive clipping: the noise on the number of clients within the norm, more than half of "
        "noise_multiplier; empty: a 20th of the clients asked in a round, or noise_multiplier if that is more",
    )

    @model_validator(mode="after")
    def _adapts(self) -> ClientPrivacySettings:
        if self.clipping == "fixed":
            fields = type(self).model_fields
            names = ("target_quantile", "clipping_rate", "count_noise")
            given = [name for name in names if getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"{' and '.join(given)}: only with clipping = 'adaptive'; leave it out, or set that")
        elif self.noise_at == "client":
            raise ValueError(
                "clipping = 'adaptive' does not go with noise_at = 'client': each client would hide its own bit "
                "behind noise, and the norm would follow that noise; use clipping = 'fixed'"
            )
        noise, count = self.noise_multiplier, self.count_noise
        if noise and count is not None and 2 * count <= noise and self.clipping == "adaptive":
            raise ValueError(
                f"count_noise = {count:g} is not more than half of noise_multiplier = {noise:g}: the count alone would "
                "spend all; raise it, or leave it out"
            )
        return self


class ExamplePrivacySettings(_Budget):
    """Each single row is protected: gradients are clipped row by row, and noise is added at each step."""

    kind: Agreed[Literal["example"]] = Field(
        "example", description="protects each single training row, in all that is trained: A, B and head (DP-SGD)"
    )
    noise_multiplier: Agreed[float | None] = Field(
        None, ge=0, description="σ: the noise's standard deviation is σ · clipping_norm; 0: clipping without noise"
    )
    clipping_norm: Agreed[float] = Field(
        1.0, gt=0, description="the largest gradient of one row, over all its numbers together"
    )

    @model_validator(mode="after")
    def _says_it_once(self) -> ExamplePrivacySettings:
        if self.target_epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                "target_epsilon and noise_multiplier both say how much noise there is: give one of the two, and leave "
                "the other out"
            )
        return self


PrivacySettings = Annotated[
    NoPrivacySettings | ClientPrivacySettings | ExamplePrivacySettings,
    ByKind(
        "kind",
        default="none",
        about="Differential privacy: a bound on what anybody can learn about one client, or one row, from what leaves "
        "the clients ([how to choose](privacy.md)).",
    ),
]

privacy_settings: Callable[[Any], PrivacySettings] = reader(PrivacySettings)
"""The section that raw data describes: of the kind that ``kind`` names, or of none."""
