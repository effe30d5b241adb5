"""Sections that come in kinds: which settings there are follows from one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from fedsa.recipe.base import Settings

__all__ = ["OWN", "ByKind", "by_kind", "reader"]

OWN = "package.module:Class"
"""The kind of a section for what a class of the user's own makes."""


@dataclass(frozen=True)
class ByKind:
    """Stands beside a union of sections, one for each kind: ``Annotated[Reading | Writing, ByKind(...)]``.

    A section is of the kinds that its field lists: ``kind: Literal["r"]``. One whose field is any text is for the
    user's own, which have a colon in their name.

    Attributes:
        name: the setting that tells the kind.
        default: the kind where it is left out.
        about: what the section says, in one line.
        passes_over_defaults: a setting that another kind has, at its default there, is no mistake. So recipes are
            read that had every kind's settings written out.
    """

    name: str
    default: str
    about: str
    passes_over_defaults: bool = False

    def sections(self, union: Any) -> dict[str, type[Settings]]:
        """The section of each kind, in the union's order."""
        return {
            kind: section
            for section in get_args(union)
            for kind in get_args(section.model_fields[self.name].annotation) or (OWN,)
        }

    def kind_of(self, data: Any) -> str | None:
        """The kind of a section or of the raw data of one; None where it does not say any."""
        kind = data.get(self.name, self.default) if isinstance(data, Mapping) else getattr(data, self.name, None)
        if not isinstance(kind, str):
            return None
        return OWN if ":" in kind else kind

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic reads it: as a tagged union whose tag may be left out."""
        sections = self.sections(union)
        schema = core_schema.tagged_union_schema(
            {kind: handler.generate_schema(section) for kind, section in sections.items()}, self.kind_of
        )
        if not self.passes_over_defaults:
            return schema
        return core_schema.no_info_before_validator_function(partial(self._without_others, sections), schema)

    def _without_others(self, sections: Mapping[str, type[Settings]], data: Any) -> Any:
        """The data without what other kinds have at its default."""
        section = sections.get(self.kind_of(data) or "")
        if section is None or not isinstance(data, Mapping):
            return data
        others = [other.model_fields for other in sections.values()]
        return {
            name: value
            for name, value in data.items()
            if name in section.model_fields
            or not any(name in fields and value in (None, fields[name].default) for fields in others)
        }


def by_kind(field: FieldInfo) -> ByKind | None:
    """What tells the kind of a field's section; None where it does not come in kinds."""
    return next((each for each in field.metadata if isinstance(each, ByKind)), None)


def reader(union: Any) -> Callable[[Any], Any]:
    """What makes a section of raw data: of the kind that it names, or of the default one.

    The function raises pydantic's ``ValidationError`` where a setting is missing, out of its range, or of another kind.

    Args:
        union: the annotated union of the section's kinds.
    """
    return TypeAdapter(union).validate_python
