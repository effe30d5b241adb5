"""What all sections of a recipe have in common, and whose a setting is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

__all__ = ["Agreed", "Machine", "Note", "Resolved", "Scope", "Settings", "is_resolved", "repeated", "scope_of"]

T = TypeVar("T")


class Scope(Enum):
    """Whose a setting is. Every field of every section says it in its type: ``r: Agreed[int]``."""

    AGREED = "agreed"
    """Server and sites must hold it alike: the figures of a run follow from it."""

    MACHINE = "machine"
    """Each machine's own: where model and rows lie there, what it computes on, what it found to be fastest."""

    NOTE = "note"
    """Nothing that is computed follows from it."""


_RESOLVED = "resolved"

Agreed = Annotated[T, Scope.AGREED]
Machine = Annotated[T, Scope.MACHINE]
Note = Annotated[T, Scope.NOTE]
Resolved = Annotated[T, _RESOLVED]
"""Where it is left open (empty, 0 or auto), a run chooses it once, when it starts, and writes it to its recipe."""


class Settings(BaseModel):
    """A section: its fields are known, and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def entries(self, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
        """Every setting of this section and of those within: its dotted key, its field and its value."""
        for name, value in self:
            if isinstance(value, Settings):
                yield from value.entries(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", type(self).model_fields[name], value

    def of_scope(self, scope: Scope) -> dict[str, Any]:
        """The settings of one scope as JSON has them, defaults written out, sections within as tables."""
        values: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            section = getattr(self, name)
            if isinstance(section, Settings):
                within = section.of_scope(scope)
                values |= {name: within} if within else {}
            elif scope_of(type(self).model_fields[name]) is scope:
                values[name] = value
        return values


def scope_of(field: FieldInfo) -> Scope | None:
    """Whose a setting is; None for a section, whose fields say it, and for what does not say it."""
    return next((each for each in field.metadata if isinstance(each, Scope)), None)


def is_resolved(field: FieldInfo) -> bool:
    """Whether a run writes the setting out where it is left open."""
    return _RESOLVED in field.metadata


def repeated(names: Sequence[str]) -> list[str]:
    """The names that are there more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})
