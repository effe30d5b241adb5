"""``fedsa deploy``: the same federation across machines, site by site."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["COMMANDS", "HELP", "init", "local", "sent", "server", "site", "status"]

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
    from fedsa.deploy.site import ADAPTERS

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
    show_summary(console, summary)
    for line in (
        f"\nnumbers   {place / 'summary.json'}, {place / 'metrics.jsonl'}",
        *([f"adapters  {place / SITES}/*/{ADAPTERS}"] if "adapter" in summary["export"] else []),
        f"what left {place / SITES}/*/sent.jsonl: fedsa deploy sent {place}",
    ):
        console.print(line, soft_wrap=True)


def init(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML) that names the classes, if its task has any.")],
    sites: Annotated[str, typer.Option(help="The sites' names, with commas between; each is one client.")],
    to: Annotated[Path, typer.Option(help="A new folder, for what each party is given.")],
    host: Annotated[str, typer.Option(help="The name by which sites reach the server.")] = "localhost",
    port: Annotated[
        int, typer.Option(help="The port by which sites reach the server, the only one that must be open.")
    ] = 8102,
    listen: Annotated[
        int | None,
        typer.Option(help="The port that the server listens on, if a router or firewall leads there from --port."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set training.batch_size=8."),
    ] = None,
) -> None:
    """Begin a federation: agree, make certificates, write a folder for each party, and say what each must do."""
    from fedsa.commands.shared.display import status as shown
    from fedsa.commands.shared.recipe import recipe_of_command
    from fedsa.deploy.project import begin_project

    parsed, _ = recipe_of_command(recipe, set_)
    names = [name.strip() for name in sites.split(",") if name.strip()]
    with shown("loading libraries") as tell:
        places = begin_project(parsed, names, to, host=host, port=port, listen=listen, tell=tell)
    print(
        f"Give each party its own folder only. {to / 'authority'} has the keys that make certificates: keep it closed."
        f"\n\nOn the server's machine, which sites must be able to reach as {host}, port {port}"
        f"{'' if listen is None else f', and which listens on port {listen}'}:\n"
        f"  fedsa deploy server {places['server']} --out runs/federation\n\nAt each site, which opens no port:"
    )
    for name in names:
        print(f"  fedsa deploy site {places[name]} --data ROWS")
    print(
        "\nROWS is the site's own file or folder, which does not leave it. Every party needs fedsa[nvflare], and each "
        "site the same model; where it lies there: --set model.path=PATH.\nWhat leaves a site: fedsa deploy sent FOLDER"
    )


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
    json: _Json = False,
) -> None:
    """Run the server until the run has ended. It has neither rows nor a model."""
    from fedsa.commands.shared.display import live_progress, print_json, show_summary
    from fedsa.deploy.project import serve_project

    with live_progress(lambda: "finished rounds are saved; the same command goes on", json=json) as (console, live):
        summary = serve_project(
            folder, out, quorum=quorum, deadline=deadline, callbacks=[live], tell=lambda line: console.print(line)
        )
    if json:
        print_json(summary)
    else:
        show_summary(console, summary)


def site(
    folder: Annotated[Path, typer.Argument(help="The site's folder, as `fedsa deploy init` wrote it.")],
    data: Annotated[str, typer.Option(help="The site's own rows: a local file or folder.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of this machine, e.g. --set model.path=PATH."),
    ] = None,
) -> None:
    """Take part as a site, until Ctrl-C: hold the rows and the model, and answer the server."""
    from fedsa.deploy.project import take_part
    from fedsa.deploy.waiting import wait_for_messages
    from fedsa.recipe import apply_overrides

    with take_part(folder, data, apply_overrides({}, set_ or []), tell=print):
        wait_for_messages(folder, print)


def status(
    folder: Annotated[Path, typer.Argument(help="The run folder of a server.")],
    json: _Json = False,
) -> None:
    """Say how far a run across machines is."""
    from fedsa.commands.shared.display import print_json
    from fedsa.deploy.status import status_of

    found = status_of(folder)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        print(f"{name:12} {value}")


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


COMMANDS = (init, server, site, local, status, sent)
