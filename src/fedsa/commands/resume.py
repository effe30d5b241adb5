"""``fedsa resume``: continue a run after any interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
) -> None:
    """Continue an interrupted run, to the same bytes as if it had never stopped."""
    from fedsa.commands._display import show_run
    from fedsa.recipe import refuse_objects
    from fedsa.store import RunFolder, recipe_of

    folder = RunFolder.open(run, write=True)
    recipe = recipe_of(folder)
    refuse_objects(recipe, run)
    show_run(folder, recipe, json=json)
