"""``fedsa check``: all that is wrong with a recipe, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from fedsa.texts.escapes import say
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from fedsa.federation import Examination

__all__ = ["command"]


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML), or a name from `fedsa recipes`.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Say all that is wrong with a recipe: settings, model, rows. No weights are loaded, and nothing is trained.

    The exit code is 2 where something is wrong.
    """
    from fedsa.commands.shared.display import print_json, status
    from fedsa.recipe import apply_overrides, read_recipe

    data, _ = read_recipe(recipe)
    data = apply_overrides(data, set_ or [])
    with status("loading libraries") as tell:
        tell("loading libraries")
        from fedsa.federation import examine

        found = examine(data, f"recipe {recipe}", on_progress=tell)
    if json:
        print_json(
            {
                "recipe": recipe,
                "ok": not found.faults,
                "mistakes": [asdict(fault) for fault in found.faults],
                "notes": list(found.notes),
                "not_checked": found.not_checked,
                "clients": found.clients,
                "rows": found.rows,
            }
        )
    else:
        _show(recipe, found)
    if found.faults:
        raise typer.Exit(2)


def _show(recipe: str, found: Examination) -> None:
    if found.faults:
        say(f"{counted(len(found.faults), 'mistake')} in recipe {recipe}:")
    for part, faults in groupby(found.faults, lambda fault: fault.part):
        say(f"\n{part}")
        for fault in faults:
            text = f"{fault.where}: {fault.what}" if fault.where else fault.what
            say("  " + text.replace("\n", "\n    "))
    if found.notes:
        say()
    for note in found.notes:
        say(f"note: {note}")
    for what, why in found.not_checked.items():
        say(f"not checked: {what}: {why}")
    if not found.faults:
        size = f": {counted(found.clients, 'client')}, {counted(found.rows or 0, 'row')}" if found.clients else ""
        say(f"recipe {recipe}: nothing wrong was found{size}")
