"""Recipes as TOML: those that come with fedsa, the user's own files, and single settings put in."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fedsa.errors import UserError, near
from fedsa.recipe.mistakes import LEVELS, is_deep
from fedsa.system.paths import local_path
from fedsa.texts.words import cut

__all__ = ["apply_overrides", "find_toml", "parse_toml", "read_recipe", "read_toml", "recipe_names"]


def recipe_names() -> dict[str, str]:
    """Return the recipes that come with fedsa: name to TOML text, sorted by name."""
    folder = resources.files("fedsa.recipes")
    texts = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    return {name: texts[name].read_text(encoding="utf-8") for name in sorted(texts)}


def read_recipe(recipe: str) -> tuple[dict[str, Any], str]:
    """Return a recipe's raw data and its short name.

    Args:
        recipe: a path to a TOML file, or the name of a recipe that comes with fedsa.

    Raises:
        UserError: there is no such file or recipe, or it is not TOML.
    """
    return find_toml(recipe, "recipe", recipe_names())


def find_toml(given: str, what: str, known: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The content of a user's file, or of a file that comes with fedsa, and its short name.

    Args:
        given: a path to a TOML file, or a name.
        what: what it is to be, for messages: ``recipe``.
        known: the texts of those that come with fedsa, by name.

    Raises:
        UserError: there is no such file or name, or it cannot be read, or it is no TOML.
    """
    path = local_path(given, what)
    is_toml, is_there = path.suffix == ".toml", path.exists()
    if not is_toml and given in known and not path.is_file():
        return parse_toml(known[given], f"{what} {given}"), given
    if not is_there and is_toml:
        raise UserError(f"no {what} file {cut(given, 200)}; known {what}s: {', '.join(known)}")
    if not is_there:
        raise UserError(f"no {what} {cut(given, 200)!r}: {near(given, known)} (a file of your own ends in .toml)")
    return read_toml(path, what), path.stem


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: the file.
        what: what it is to be, for messages: ``recipe``.

    Raises:
        UserError: it cannot be read, or is no text in UTF-8, or no TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"), str(path))
    except IsADirectoryError:
        raise UserError(f"cannot read {what} {path}: it is a folder; give the TOML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read {what} {path}: it is not text in UTF-8 (byte {error.start} is "
            f"{error.object[error.start]:#x}); give a TOML file, saved as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from None


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The content of a TOML text.

    Args:
        text: of any origin.
        source: named in the error.

    Raises:
        UserError: it is no TOML, or nested deeper than any settings.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        data = None
    except ValueError as error:  # of TOML's grammar, or a number of thousands of digits
        raise UserError(f"{source} is not valid TOML: {cut(str(error), 300)}") from None
    if data is None or is_deep(data):
        raise UserError(f"{source} has lists or tables within each other more than {LEVELS} deep: take some out")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a recipe's raw data with ``key=value`` settings put in.

    Args:
        data: raw recipe data.
        overrides: each ``dotted.key=value``; the value is read as TOML, and as plain text where it is not TOML.

    Raises:
        UserError: an override has no ``=``, or goes below a key that is not a table.

    >>> apply_overrides({"data": {"path": "x"}}, ["rounds=3", "data.path=dir/y", "fruit=[1, 2]"])
    {'data': {'path': 'dir/y'}, 'rounds': 3, 'fruit': [1, 2]}
    """
    result = _copy(data)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        given = f"--set {cut(override, 200)}"
        if not equals or not dotted.strip():
            raise UserError(f"{given}: expected key=value, e.g. --set rounds=3 or --set training.batch_size=8")
        *parents, last = dotted.strip().split(".")
        if len(parents) >= LEVELS:
            raise UserError(f"{given}: a key has {LEVELS} parts at most")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise UserError(f"{given}: {cut(parent, 80)} is not a table of settings")
        table[last] = _value(text.strip(), given)
    return result


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _value(text: str, given: str) -> Any:
    try:
        data = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError):  # nested deep, or a number of thousands of digits: refused as in a file
        data = parse_toml(f"value = {text}", given)
    return data["value"] if data.keys() == {"value"} else text
