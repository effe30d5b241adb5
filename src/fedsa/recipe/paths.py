"""Where a recipe's model and data are: paths, hub names, or Python objects."""

from __future__ import annotations

from fedsa.errors import UserError
from fedsa.recipe.recipe import Recipe
from fedsa.system.paths import local_path

__all__ = ["OBJECTS", "refuse_objects", "with_absolute_paths"]

OBJECTS = "objects:"
"""Stands for a path in the recipe of a federation that was made from Python objects."""


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with local paths made absolute, so that its run can be resumed from any folder.

    A path counts as local where it exists; relative ones are taken from the current folder. What stands for Python
    objects is no path.

    Raises:
        UserError: a path is none that a file can have.
    """
    partition = recipe.data.partition
    file = str(local_path(partition.file, "data.partition.file").absolute()) if partition.file else None
    path = _absolute(recipe.data.path, "data.path")
    data = {"path": path, "partition": partition.model_copy(update={"file": file})}
    model = recipe.model.model_copy(update={"path": _absolute(recipe.model.path, "model.path")})
    return recipe.model_copy(update={"model": model, "data": recipe.data.model_copy(update=data)})


def _absolute(path: str, setting: str) -> str:
    if path == OBJECTS:
        return path
    place = local_path(path, setting)
    return str(place.absolute()) if place.exists() else path


def refuse_objects(recipe: Recipe, where: object) -> None:
    """Refuse a recipe whose model or data were Python objects: it alone does not say what they are.

    Args:
        recipe: any.
        where: what the user gave, for the message: a recipe or a run folder.

    Raises:
        UserError: the model or the data are objects.
    """
    if OBJECTS in (recipe.data.path, recipe.model.path):
        raise UserError(
            f"{where} was started from Python objects, which the command line does not have: make the federation "
            "again with Federation.from_objects, and start it with fedsa.run(federation, folder) or continue it with "
            "fedsa.resume(federation, folder)"
        )
