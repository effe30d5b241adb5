"""``fedsa export``: write clients' adapters as folders that PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsa.texts.escapes import say

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    to: Annotated[Path, typer.Option(help="Where to write; with --all, one sub-folder per client.")],
    client: Annotated[str | None, typer.Option(help="One client's id.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every client.")] = False,
    round: Annotated[str, typer.Option(help="chosen (best on validation) or final.")] = "chosen",
    merge: Annotated[
        bool, typer.Option("--merge", help="Write whole models with the update added to the weights.")
    ] = False,
    with_base: Annotated[
        bool,
        typer.Option(
            "--with-base/--without-base",
            help="Write a copy of the base model where transformers needs one to load the adapters with their classes.",
        ),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Write a client's adapter (or merged model) in the format that PEFT and transformers load."""
    from fedsa.errors import UserError

    if all_ == (client is not None):
        raise UserError("give --client ID, or --all")
    from fedsa.commands.shared.display import print_json
    from fedsa.runs.export import export

    clients = None if client is None else [client]
    folders = export(run, to, clients=clients, round=round, merge=merge, with_base=with_base)
    if json:
        print_json({"run": str(run), "round": round, "merged": merge, "folders": [str(folder) for folder in folders]})
        return
    for folder in folders:
        say(str(folder))
