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
    from fedsa.algorithms import check_algorithm
    from fedsa.callbacks import check_callbacks
    from fedsa.commands._display import show_run
    from fedsa.recipe import (
        apply_overrides,
        dump_recipe,
        parse_recipe,
        read_recipe,
        refuse_objects,
        with_absolute_paths,
    )
    from fedsa.steps import check_steps
    from fedsa.store import RunFolder

    data, name = read_recipe(recipe)
    settings = apply_overrides(data, set_ or [])
    parsed = parse_recipe(settings, source=f"recipe {recipe}", checks=[check_algorithm, check_steps, check_callbacks])
    refuse_objects(parsed, f"recipe {recipe}")
    parsed = with_absolute_paths(parsed)
    folder = RunFolder.create(out or free_place(Path("runs") / name), dump_recipe(parsed))
    show_run(folder, parsed, json=json)


def free_place(path: Path) -> Path:
    """The path, or the path with the first number that is not taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
