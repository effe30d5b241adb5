"""The recipe that a command is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsa.recipe import Recipe

__all__ = ["recipe_of_command"]


def recipe_of_command(given: str, overrides: Sequence[str] | None) -> tuple[Recipe, str]:
    """The recipe that a user names, with the user's settings and absolute paths; and its short name.

    Args:
        given: a recipe file, or the name of a recipe that comes with fedsa.
        overrides: ``KEY=VALUE`` each.

    Raises:
        UserError: there is no such recipe, or it was made of Python objects. A ConfigError has every mistake in it.
    """
    from fedsa.callbacks import check_callbacks
    from fedsa.recipe import apply_overrides, parse_recipe, read_recipe, refuse_objects, with_absolute_paths
    from fedsa.steps import CHECKS

    data, name = read_recipe(given)
    checks = [*CHECKS, check_callbacks]
    recipe = parse_recipe(apply_overrides(data, overrides or []), source=f"recipe {given}", checks=checks)
    refuse_objects(recipe, f"recipe {given}")
    return with_absolute_paths(recipe), name
