"""What all sections of a recipe have in common."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings", "repeated"]


class Settings(BaseModel):
    """A section: its fields are known, and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that are there more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})
