"""``fedsa init``: a first recipe for one's own rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    path: Annotated[str, typer.Argument(help="A file or folder of rows, in any format that data.path takes.")],
    to: Annotated[Path | None, typer.Option(help="Write the recipe to this new file; default: NAME.toml.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The base model: a folder or a name on the hub; default: a small one.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at rows, and write a recipe for them that runs: columns, task, clients, model."""
    from fedsa.commands.shared.display import is_quiet, print_json, status
    from fedsa.errors import UserError
    from fedsa.store import write_atomically
    from fedsa.texts.escapes import say
    from fedsa.texts.words import counted

    file = to or Path(f"{Path(path).expanduser().resolve().stem}.toml")
    if file.exists():
        raise UserError(f"{file} is there already: give another file with --to, or move it away")
    with status("reading rows") as tell:
        from fedsa.drafting.draft import draft_recipe

        draft = draft_recipe(str(Path(path).expanduser().resolve()), model=model, on_progress=tell)
    write_atomically(file, draft.text.encode())
    if json:
        print_json(
            {
                "recipe": str(file),
                "task": draft.recipe.task.kind,
                "partition": draft.recipe.data.partition.kind,
                "rows": draft.rows,
                "clients": draft.clients,
                "model": draft.recipe.model.path,
                "found": list(draft.found),
            }
        )
        return
    if is_quiet():
        say(str(file))
        return
    for sentence in draft.found:
        say(f"- {sentence}")
    say(f"\n{file}: a recipe for {counted(draft.rows, 'row')} of {counted(draft.clients, 'client')}. Read it, then:")
    for verb, what in (
        ("check", "says what is wrong with it, and loads no model"),
        ("data", "shows who has which rows"),
        ("plan", "what it will cost"),
        ("run", "trains it"),
    ):
        say(f"  fedsa {verb} {file}".ljust(40) + f"  {what}")
