"""``fedsa compare``: finished runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsa.texts.escapes import say

if TYPE_CHECKING:
    from fedsa.runs.compare import Comparison

__all__ = ["command"]

_ENDINGS = (".html", ".md", ".tex", ".csv")


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more; runs with other seeds are one group.")],
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run that the others are compared with; default: the first.")
    ] = None,
    to: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write a page (.html) or the table (.md, .tex, .csv); may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Compare finished runs: learning curves, differences of the same clients, one table for a paper."""
    from fedsa.commands.shared.display import print_json, print_table
    from fedsa.errors import UserError
    from fedsa.system.paths import local_path, refuse_unwritable

    runs, files = [local_path(run, "runs") for run in runs], [local_path(file, "--to") for file in to or []]
    for file in files:
        if file.suffix not in _ENDINGS:
            raise UserError(f"--to {file}: the file's ending says what is written: {', '.join(_ENDINGS)}")
        refuse_unwritable(file, "--to", folder=False)
    from fedsa.runs.compare import as_json, compare, table_of

    found = compare(runs, against)
    for file in files:
        _write(found, file)
    if json:
        print_json({**as_json(found), "files": [str(file) for file in files]})
        return
    table = table_of(found)
    print_table(table.header, table.rows, right_from=2, whole=2)
    say()
    for note in table.notes:
        say(note)
    for file in files:
        say(str(file))


def _write(found: Comparison, file: Path) -> None:
    """Write one file, in the form that its ending says."""
    from fedsa.runs.compare import as_csv, table_of
    from fedsa.store import write_atomically
    from fedsa.texts.tables import as_latex, as_markdown

    if file.suffix == ".html":
        from fedsa.runs.compare.page import as_html

        text = as_html(found)
    elif file.suffix == ".csv":
        text = as_csv(found)
    else:
        text = (as_latex if file.suffix == ".tex" else as_markdown)([table_of(found)])
    write_atomically(file, text.encode(errors="replace"))
