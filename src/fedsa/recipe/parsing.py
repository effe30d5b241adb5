"""Raw data to a recipe, and a recipe to TOML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tomli_w
from pydantic import ValidationError

from fedsa.errors import ConfigError, Mistake
from fedsa.recipe.mistakes import mistakes_of, unwritable
from fedsa.recipe.recipe import Recipe, contradictions

__all__ = ["Check", "dump_recipe", "parse_recipe"]

Check = Callable[[Mapping[str, Any]], Iterable[Mistake]]
"""A further check of a recipe's raw data, for what only a higher layer knows (the algorithms, say)."""


def parse_recipe(data: Mapping[str, Any], *, source: str = "recipe", checks: Sequence[Check] = ()) -> Recipe:
    """Return the recipe that raw data describes.

    Args:
        data: raw recipe data, as read from TOML.
        source: named in the error.
        checks: further checks; their mistakes are listed with the others.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[Mistake] = []
    recipe = None
    impossible = list(unwritable(data))
    if impossible:
        raise ConfigError(impossible, source)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        mistakes = mistakes_of(error, Recipe)
    else:
        mistakes = contradictions(recipe)
    for check in checks:
        mistakes.extend(check(data))
    if mistakes or recipe is None:
        raise ConfigError(mistakes, source)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML, with every default written out; reading it gives an equal recipe."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.training.max_grad_norm is None:
        data["training"]["max_grad_norm"] = "none"
    return tomli_w.dumps(data)
