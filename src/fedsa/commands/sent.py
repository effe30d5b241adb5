"""``fedsa sent``: every message that has left a client or a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsa.commands.deploy import sent

__all__ = ["command"]


def command(
    folder: Annotated[Path, typer.Argument(help="A run folder; or the folder of a site.")],
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects, one for each message.")] = False,
) -> None:
    """List every message that has left a client of a simulation, or a site: tensors, shapes, types, bytes, norms."""
    sent(folder, json)
