"""``fedsa deploy``: the same federation across machines, site by site."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsa.commands.shared.parties import init, join, leave, renew, request
from fedsa.commands.shared.quiet import is_quiet
from fedsa.texts.escapes import say

__all__ = ["COMMANDS", "HELP", "local", "sent", "server", "site", "status"]

HELP = "Run a federation across machines: a server without rows, and sites that keep theirs."

_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def local(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML), or a name from `fedsa recipes`.")],
    sites: Annotated[
        int, typer.Option(min=1, help="Processes that play a site each; the clients are dealt out over them.")
    ] = 3,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="The same, to spread a simulation: processes called worker-1, ..."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What carries the messages: nvflare, or flower, which is slow and experimental.")
    ] = "nvflare",
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/NAME, numbered if taken.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set training.batch_size=8."),
    ] = None,
    json: _Json = False,
) -> None:
    """Run a server and sites on this machine, in processes of their own with TLS between them."""
    from fedsa.commands.run import free_place
    from fedsa.commands.shared.display import live_progress, print_json, show_summary
    from fedsa.commands.shared.recipe import recipe_of_command
    from fedsa.deploy.local import SITES, deploy_local
    from fedsa.deploy.site_folder import ADAPTERS

    count, kind = (sites, "site") if workers is None else (workers, "worker")
    parsed, name = recipe_of_command(recipe, set_)
    place = out or free_place(Path("runs") / name)
    names = [f"{kind}-{number}" for number in range(1, count + 1)]
    with live_progress(lambda: f"the same command with --out {place} goes on", json=json) as (console, live):
        summary = deploy_local(
            parsed, place, names, engine=engine, callbacks=[live], tell=lambda line: console.print(line)
        )
    if json:
        print_json(summary)
        return
    if is_quiet():
        say(str(place))
        return
    show_summary(console, summary)
    for line in (
        f"\nnumbers   {place / 'summary.json'}, {place / 'metrics.jsonl'}",
        *([f"adapters  {place / SITES}/*/{ADAPTERS}"] if "adapter" in summary["export"] else []),
        f"what left {place / SITES}/*/sent.jsonl: fedsa deploy sent {place}",
    ):
        console.print(line, soft_wrap=True)


def server(
    folder: Annotated[Path, typer.Argument(help="The server's folder, as `fedsa deploy init` wrote it.")],
    out: Annotated[Path, typer.Option(help="The run folder; what is in it already goes on.")],
    quorum: Annotated[
        int | None, typer.Option(min=1, help="Clients that a round needs; default: all that were asked.")
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds that a site has for an answer; default: no limit."),
    ] = None,
    keep_all_rounds: Annotated[
        bool, typer.Option("--keep-all-rounds", help="Keep the server's state of every round, not only what is needed.")
    ] = False,
    jobs: Annotated[
        Path | None,
        typer.Option(
            help="For an NVFlare that runs already: a folder for the jobs, which you submit with its own tools."
        ),
    ] = None,
    json: _Json = False,
) -> None:
    """Run the server until the run has ended. It has neither rows nor a model."""
    from fedsa.commands.shared.display import live_progress, print_json, show_summary
    from fedsa.deploy.project import serve_project

    with live_progress(lambda: "finished rounds are saved; the same command goes on", json=json) as (console, live):
        summary = serve_project(
            folder,
            out,
            quorum=quorum,
            deadline=deadline,
            keeps_all_rounds=keep_all_rounds,
            jobs=jobs,
            callbacks=[live],
            tell=lambda line: console.print(line),
        )
    if json:
        print_json(summary)
    elif is_quiet():
        say(str(out))
    else:
        show_summary(console, summary)


def site(
    folder: Annotated[Path, typer.Argument(help="The site's folder, as `fedsa deploy init` wrote it.")],
    data: Annotated[
        str, typer.Option(help="The site's own rows: a local file or folder. Of several clients: a file of each.")
    ],
    column: Annotated[
        str | None, typer.Option(help="The column that names the client, where one file has the rows of several.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of this machine, e.g. --set model.path=PATH."),
    ] = None,
    socket: Annotated[
        Path | None,
        typer.Option(help="For an NVFlare that runs already: the path by which its client finds this worker."),
    ] = None,
) -> None:
    """Take part as a site, until Ctrl-C: hold the rows and the model, and answer the server."""
    from fedsa.deploy.project import take_part
    from fedsa.deploy.waiting import wait_for_messages
    from fedsa.recipe import apply_overrides

    def tell(line: str) -> None:
        if not is_quiet():
            print(line)

    with take_part(folder, data, apply_overrides({}, set_ or []), column=column, socket=socket, tell=tell):
        wait_for_messages(folder, tell)


def status(
    folder: Annotated[Path, typer.Argument(help="The run folder of a server; or the folder of a party.")],
    json: _Json = False,
) -> None:
    """Say how far a run across machines is; of a party's folder, how long its certificate is valid."""
    from fedsa.commands.shared.display import print_json
    from fedsa.deploy.preflight import KIT
    from fedsa.deploy.status import party_status_of, status_of

    found = (party_status_of if (folder / KIT).is_dir() else status_of)(folder)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        print(f"{name:16} {value}")


def sent(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a site, or of a run on this machine with all its sites.")
    ],
    json: _Json = False,
) -> None:
    """List every message that has left a site: tensors, shapes, types, bytes, norms."""
    from fedsa.commands.shared.display import print_json, print_table
    from fedsa.deploy.status import sent_of

    entries = list(sent_of(folder))
    if json:
        print_json(entries)
        return
    rows = []
    for entry in entries:
        tensors: list[dict[str, Any]] = entry.get("tensors", [])
        kinds = sorted({str(each["name"]).rsplit(":", 2)[1] for each in tensors})
        said = json_module.dumps(entry.get("about", {}), ensure_ascii=False)
        rows.append(
            [
                entry["site"],
                str(entry.get("round", "")),
                entry["kind"],
                f"{len(tensors)} of {', '.join(kinds)}" if tensors else "none",
                said if len(said) <= 60 else f"{said[:57]}...",
                f"{entry['bytes']:,}",
            ]
        )
    print_table(["site", "round", "message", "tensors", "numbers and words", "bytes"], rows, right_from=5)


COMMANDS = (init, request, join, leave, renew, server, site, local, status, sent)
