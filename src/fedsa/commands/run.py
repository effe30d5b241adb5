"""``fedsa run``: train a federation as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command", "free_place"]


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML), or a name from `fedsa recipes`.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set training.batch_size=8."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/NAME, numbered if taken.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
) -> None:
    """Train a federation; write adapters, numbers and a report into a run folder."""
    from fedsa.commands.shared.display import show_run
    from fedsa.commands.shared.recipe import recipe_of_command
    from fedsa.recipe import dump_recipe
    from fedsa.store import RunFolder

    parsed, name = recipe_of_command(recipe, set_)
    folder = RunFolder.create(out or free_place(Path("runs") / name), dump_recipe(parsed))
    show_run(folder, parsed, json=json)


def free_place(path: Path) -> Path:
    """The path, or the path with the first number that is not taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
