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
    from fedsa.commands.shared.display import show_run
    from fedsa.recipe import refuse_objects
    from fedsa.store import RunFolder, recipe_of, require_clients

    folder = RunFolder.open(run, write=True)
    try:
        recipe = recipe_of(folder)
        if folder.progress() is not None:
            require_clients(folder)
        refuse_objects(recipe, run)
    except BaseException:
        folder.close()
        raise
    show_run(folder, recipe, json=json)
