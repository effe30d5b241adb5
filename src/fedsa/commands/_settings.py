"""Every setting of a recipe as Markdown: what `fedsa recipes --settings` prints and docs/recipes.md holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

import tomli_w
from pydantic import BaseModel

from fedsa.recipe import Recipe

__all__ = ["as_toml", "describe_settings", "type_name"]


def describe_settings() -> str:
    """Return every setting of a recipe as Markdown tables: key, type, default, meaning."""
    lines: list[str] = []
    for name, model in _tables(Recipe, ""):
        title = f"[{name}]" if name else "top level"
        about = (inspect.getdoc(model) or "").partition("\n")[0]
        lines += [f"## {title}", "", about, "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key, field in model.model_fields.items():
            if _is_table(field.annotation):
                continue
            default = "required" if field.is_required() else as_toml(field.default)
            lines.append(f"| `{key}` | {type_name(field.annotation)} | {default} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


def _tables(model: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield name, model
    for key, field in model.model_fields.items():
        if _is_table(field.annotation):
            yield from _tables(cast(type[BaseModel], field.annotation), f"{name}.{key}".lstrip("."))


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def type_name(annotation: Any) -> str:
    """Return a type in a user's words, with | escaped as in a Markdown table."""
    options = [type_name(option) for option in get_args(annotation) if option is not type(None)]
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
