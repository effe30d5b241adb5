"""Every setting of a recipe as Markdown: what `fedsa recipes --settings` prints and docs/recipes.md holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsa.recipe import Recipe
from fedsa.recipe.kinds import ByKind, by_kind

__all__ = ["as_toml", "describe_settings", "type_name"]

_HEAD = ["| key | type | default | meaning |", "|---|---|---|---|"]


def describe_settings() -> str:
    """Return every setting of a recipe as Markdown tables: key, type, default, meaning."""
    lines: list[str] = []
    for name, about, rows in _tables(Recipe, ""):
        lines += [f"## [{name}]" if name else "## top level", "", about, "", *_HEAD, *rows, ""]
    return "\n".join(lines)


def _tables(model: type[BaseModel], name: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each section's name, what it is about, and the rows of its table."""
    inner, rows = [], []
    for key, field in model.model_fields.items():
        if by_kind(field) or _is_table(field.annotation):
            inner.append((f"{name}.{key}".lstrip("."), field))
        else:
            rows.append(_row(key, field))
    yield name, (inspect.getdoc(model) or "").partition("\n")[0], rows
    for key, field in inner:
        by = by_kind(field)
        if by is None:
            yield from _tables(cast(type[BaseModel], field.annotation), key)
        else:
            yield key, by.about, list(_rows_by_kind(by, by.sections(field.annotation)))


def _row(key: str, field: FieldInfo, kinds: str = "") -> str:
    default = "required" if field.is_required() else as_toml(field.default)
    return f"| `{key}` | {type_name(field.annotation)} | {default} | {kinds}{field.description} |"


def _rows_by_kind(by: ByKind, sections: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    """Yield the rows of a section that comes in kinds; what not all kinds have says which have it.

    A field that has no description is described where another kind has it.
    """
    told: dict[str, list[str]] = {}
    for kind, section in sections.items():
        told.setdefault(str(section.model_fields[by.name].description), []).append(kind)
    about = "; ".join(f"{', '.join(kinds)}: {text}" for text, kinds in told.items())
    choices = " \\| ".join(f"`{kind}`" for kind in sections)
    yield f"| `{by.name}` | {choices} | {as_toml(by.default)} | {about} |"
    rows: dict[str, dict[str, tuple[FieldInfo, list[str]]]] = {}
    for kind, section in sections.items():
        for key, field in section.model_fields.items():
            if key != by.name and field.description:
                rows.setdefault(key, {}).setdefault(_row(key, field), (field, []))[1].append(kind)
    for key, alike in rows.items():
        for field, kinds in alike.values():
            if len(kinds) == len(sections):
                yield _row(key, field)
            else:
                most = len(alike) > 1 and 2 * len(kinds) > len(sections)
                yield _row(key, field, "others: " if most else f"{', '.join(kinds)}: ")


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def type_name(annotation: Any) -> str:
    """Return a type in a user's words, with | escaped as in a Markdown table."""
    options = [type_name(option) for option in get_args(annotation) if option is not type(None)]
    if get_origin(annotation) is Annotated:  # a check goes with it
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{option}`" for option in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " \\| ".join(options)
    if get_origin(annotation) in (list, dict):
        return {list: f"list of {options[0]}", dict: "table"}[get_origin(annotation)]
    return {str: "text", int: "whole number", float: "number", bool: "true \\| false"}.get(annotation, str(annotation))


def as_toml(value: Any) -> str:
    """Return a value as TOML writes it, in Markdown's quotes; – if there is none."""
    if value is None:
        return "–"
    return "`" + tomli_w.dumps({"v": value}).partition("= ")[2].strip().replace("\n", "").replace(" ", "") + "`"
