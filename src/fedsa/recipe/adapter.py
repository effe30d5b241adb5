"""The section ``[adapter]``: what is trained on the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from fedsa.recipe.base import Agreed, Resolved, Settings

__all__ = ["AdapterSettings"]


class _Rules(NamedTuple):
    """What the settings of a variant may be.

    Attributes:
        default_rank: the rank where the recipe gives none; 0: the variant has no rank.
        unused: the settings that the variant does not have, and what each of them sets.
        mixed_ranks: clients may have ranks of their own.
        has_sides: its update has an A side and a B side.
        quantized: it can be put on layers of 4 or 8 bits.
    """

    default_rank: int = 8
    unused: Mapping[str, str] = {}
    mixed_ranks: bool = True
    has_sides: bool = True
    quantized: bool = False


_RULES: dict[str, _Rules] = {
    "lora": _Rules(quantized=True),
    "rslora": _Rules(quantized=True),
    "vera": _Rules(default_rank=256, unused={"lora_alpha": "scale"}),
    "dora": _Rules(quantized=True),
    "pissa": _Rules(mixed_ranks=False),
    "olora": _Rules(mixed_ranks=False),
    "loha": _Rules(unused={"dropout": "dropout"}),
    "ia3": _Rules(default_rank=0, unused={"r": "rank", "lora_alpha": "scale", "dropout": "dropout"}, has_sides=False),
    "lora_xs": _Rules(has_sides=False),
}


class AdapterSettings(Settings):
    """The adapter that is trained on the base model, in PEFT's own words."""

    variant: Agreed[Literal["lora", "rslora", "vera", "dora", "pissa", "olora", "loha", "ia3", "lora_xs"]] = Field(
        "lora", description="adapter variant"
    )
    r: Agreed[Resolved[int]] = Field(0, ge=0, description="rank; 0: 8, and 256 for vera; ia3 has none")
    ranks: Agreed[dict[str, int] | list[int] | None] = Field(
        None,
        description="clients' own ranks, up to r: a table by client id (others have r), or a list that is given to "
        "the clients in turn",
    )
    own_initial_a: Agreed[bool] = Field(
        False,
        description="every client draws an initial A of its own, for methods that keep A at the client (local, alora); "
        "false: all clients start from one A",
    )
    lora_alpha: Agreed[int] = Field(16, gt=0, description="LoRA scale: lora_alpha/r, or lora_alpha/sqrt(r) for rslora")
    dropout: Agreed[float] = Field(
        0.05, ge=0, lt=1, description="dropout in front of the adapter; loha and ia3 have none"
    )
    target_modules: Agreed[Resolved[list[str] | str | None]] = Field(
        None, description="layers to adapt: name endings, or a regular expression; empty: PEFT's choice for the model"
    )
    feedforward_modules: Agreed[Resolved[list[str] | str | None]] = Field(
        None,
        description="ia3: the target_modules with a scaled input instead of a scaled output; empty: none, or PEFT's "
        "choice if target_modules is empty too",
    )
    modules_to_save: Agreed[list[str] | None] = Field(
        None, description="layers trained in full and kept with the adapter; empty: the classification head"
    )

    @model_validator(mode="after")
    def _is_used(self) -> AdapterSettings:
        problems = []
        for name, reason in self._rules.unused.items():
            default = type(self).model_fields[name].default  # written out in a resolved recipe
            if getattr(self, name) not in (default, 0):
                problems.append(f"{name} does not go with variant = {self.variant!r}, which has no {reason}: remove it")
        if self.feedforward_modules is not None and self.variant != "ia3":
            problems.append(f"feedforward_modules goes with variant = 'ia3' only, not with {self.variant!r}: remove it")
        elif self.feedforward_modules is not None and self.target_modules is None:
            problems.append("feedforward_modules needs target_modules: it names some of these layers")
        elif isinstance(self.feedforward_modules, list) and isinstance(self.target_modules, list):
            missing = sorted(set(self.feedforward_modules) - set(self.target_modules))
            if missing:
                problems.append(f"feedforward_modules: {missing[0]!r} is not in target_modules; add it there too")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> AdapterSettings:
        ranks = list(self.ranks.values()) if isinstance(self.ranks, dict) else self.ranks
        if ranks is None:
            return self
        if not self._rules.mixed_ranks:
            raise ValueError(
                f"ranks does not go with variant = {self.variant!r}: the frozen weights have lost the directions of "
                "the full rank: remove it"
            )
        if not ranks or min(ranks) < 1 or (self.rank and max(ranks) > self.rank):
            raise ValueError(f"ranks must be from 1 to r = {self.rank} (got {self.ranks})")
        return self

    @property
    def rank(self) -> int:
        """The rank after the variant's default; 0: the variant has none."""
        return self.r or self._rules.default_rank

    @property
    def has_sides(self) -> bool:
        """Whether the variant's update has an A side and a B side."""
        return self._rules.has_sides

    @property
    def can_be_quantized(self) -> bool:
        """Whether the variant can be put on layers of 4 or 8 bits."""
        return self._rules.quantized

    @property
    def _rules(self) -> _Rules:
        return _RULES[self.variant]
