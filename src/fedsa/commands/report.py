"""``fedsa report``: the report of a run, written anew, or served while the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsa.texts.escapes import say

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another finished run, of local training say: each client's change from it."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file to write; default: report.html in the run folder.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show it in a browser, and follow the run while it goes on; until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="With --serve: the port; default: the first free one of 8103 to 8112."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="With --serve: the address to listen on; default: 127.0.0.1, for this machine alone."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Write the report of a finished run anew, or show the report of a run while it goes on."""
    from fedsa.commands.shared.display import print_json
    from fedsa.errors import UserError
    from fedsa.system.paths import refuse_unwritable

    if serve:
        if to is not None:
            raise UserError("--to goes without --serve: leave one of the two out")
        _serve(run, host or "127.0.0.1", port, against, json=json)
        return
    for name, value in (("--port", port), ("--host", host)):
        if value is not None:
            raise UserError(f"{name} goes with --serve: leave it out, or add --serve")
    if to is not None:
        refuse_unwritable(to, "--to", folder=False)
    from fedsa.runs.report import write_report

    report = write_report(run, against=against, to=to)
    if json:
        told = None if against is None else str(against)
        print_json({"run": str(run), "report": str(report), "against": told, "bytes": report.stat().st_size})
    else:
        say(str(report))


def _serve(run: Path, host: str, port: int | None, against: Path | None, *, json: bool) -> None:
    """Serve the page until Ctrl-C."""
    import sys

    from fedsa.commands.shared.display import print_json, status
    from fedsa.errors import UserError

    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: give the run folder, which may also begin later")
    with status("loading libraries"):
        from fedsa.runs.report.serving import ReportServer
        from fedsa.store import FinishedRun

        if against is not None:
            FinishedRun.open(against)
    with ReportServer(run, host, port, against) as server:
        if json:
            print_json({"run": str(run), "url": server.url})
        else:
            say(f"{server.url}  shows {run}; Ctrl-C ends this")
            if not (run / "recipe.toml").is_file():
                say(f"there is no run in {run} yet: the page waits for it")
            if not server.is_private:
                say("other machines can read the page: there is no password, and it is not encrypted")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            if not json:
                say("\nstopped serving; the run, if it goes on, is not touched")
