"""``fedsa deploy``: who takes part in a federation across machines, and what each party is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsa.commands.shared.quiet import is_quiet
from fedsa.texts.escapes import say

__all__ = ["init", "join", "leave", "renew", "request"]

_Json = Annotated[bool, typer.Option("--json", help="Print one object.")]

_Requests = Annotated[
    list[Path] | None,
    typer.Option(
        "--request",
        metavar="FILE",
        help="What a site that makes its own key has sent (`fedsa deploy request`); once for each.",
    ),
]


def init(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML) that names the classes, if its task has any.")],
    sites: Annotated[str, typer.Option(help="The sites' names, with commas between.")],
    to: Annotated[Path, typer.Option(help="A new folder, for what each party is given.")],
    host: Annotated[str, typer.Option(help="The name by which sites reach the server.")] = "localhost",
    port: Annotated[
        int, typer.Option(help="The port by which sites reach the server, the only one that must be open.")
    ] = 8102,
    listen: Annotated[
        int | None,
        typer.Option(help="The port that the server listens on, if a router or firewall leads there from --port."),
    ] = None,
    clients: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=ID,ID,...",
            help="The clients of a site that has several; once for each such site. A site without is one client.",
        ),
    ] = None,
    only_measured: Annotated[
        str, typer.Option(help="Sites that are measured and never train, with commas between.")
    ] = "",
    request: _Requests = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set training.batch_size=8."),
    ] = None,
    json: _Json = False,
) -> None:
    """Begin a federation: agree, make certificates, write a folder for each party, and say what each must do."""
    from fedsa.commands.shared.display import status as shown
    from fedsa.commands.shared.recipe import recipe_of_command
    from fedsa.deploy.project import begin_project

    parsed, _ = recipe_of_command(recipe, set_)
    names, several = _names(sites), _clients_of_sites(clients or [])
    with shown("loading libraries") as tell:
        places = begin_project(
            parsed,
            names,
            to,
            clients=several,
            only_measured=_names(only_measured),
            requests=request or [],
            host=host,
            port=port,
            listen=listen,
            tell=tell,
        )
    if _is_told(
        {"federation": str(to), "folders": {name: str(place) for name, place in places.items()}}, to, json=json
    ):
        return
    print(
        f"Give each party its own folder only. {to / 'authority'} has the keys that make certificates: keep it closed."
        f"\n\nOn the server's machine, which sites must be able to reach as {host}, port {port}"
        f"{'' if listen is None else f', and which listens on port {listen}'}:\n"
        f"  fedsa deploy server {places['server']} --out runs/federation\n\nAt each site, which opens no port:"
    )
    for name in names:
        print(f"  fedsa deploy site {places[name]} --data ROWS")
    _say_where_keys_are(request)
    _say_what_rows_are([*several])


def request(
    name: Annotated[str, typer.Argument(help="The name that the site has in the federation.")],
    to: Annotated[Path | None, typer.Option(help="A folder for the key and the request; default: NAME.")] = None,
    json: _Json = False,
) -> None:
    """At a site: make its private key, which never leaves it, and the request for a certificate."""
    from fedsa.deploy.certificates import make_request

    path = make_request(to or Path(name), name)
    told = {"site": name, "folder": str(path.parent), "request": str(path), "key": str(path.with_suffix(".key"))}
    if _is_told(told, path, json=json):
        return
    print(
        f"Send {path} to whoever begins the federation; it is no secret.\n"
        f"{path.with_suffix('.key')} is one: it stays here.\n"
        f"Put the files that you are given into {path.parent}, and run: fedsa deploy site {path.parent} --data ROWS"
    )


def join(
    folder: Annotated[Path, typer.Argument(help="The folder of the federation, as `fedsa deploy init` wrote it.")],
    name: Annotated[str, typer.Argument(help="The name of the site that joins.")],
    clients: Annotated[
        str, typer.Option(help="Its clients' ids, with commas between, if it has several; default: one of its name.")
    ] = "",
    only_measured: Annotated[bool, typer.Option("--only-measured", help="It is measured and never trains.")] = False,
    request: _Requests = None,
    json: _Json = False,
) -> None:
    """Add a site to a federation, also while the server runs: write its folder, and put it on the server's roster."""
    from fedsa.commands.shared.display import status as shown
    from fedsa.deploy.project import join_project

    with shown("loading libraries") as tell:
        place = join_project(
            folder, name, clients=_names(clients), trains=not only_measured, requests=request or [], tell=tell
        )
    if _is_told({"site": name, "folder": str(place)}, place, json=json):
        return
    print(f"Give the site its own folder only. At the site:\n  fedsa deploy site {place} --data ROWS")
    _say_where_keys_are(request)
    _say_what_rows_are([name] if len(_names(clients)) > 1 else [])
    _say_where_the_roster_is(folder, "the server takes the site in before its next round, once it is ready")


def leave(
    folder: Annotated[Path, typer.Argument(help="The folder of the federation, or that of its server.")],
    name: Annotated[str, typer.Argument(help="The name of the site that leaves.")],
    json: _Json = False,
) -> None:
    """Take a site out of a federation for good: it is asked nothing any more, and its certificate is shut out."""
    from fedsa.deploy.project import leave_project

    leave_project(folder, name)
    if _is_told({"site": name, "federation": str(folder)}, folder, json=json):
        return
    print(f"{name} has left the federation, and its name stays taken.")
    _say_where_the_roster_is(
        folder, "before its next round the server leaves the site out, and refuses it from then on"
    )


def renew(
    folder: Annotated[Path, typer.Argument(help="The folder of the federation, as `fedsa deploy init` wrote it.")],
    parties: Annotated[
        list[str] | None, typer.Argument(help="`server` and names of sites; default: all that have not left.")
    ] = None,
    json: _Json = False,
) -> None:
    """Make new certificates, also where the old ones have expired; keys stay what they are, and where they are."""
    from fedsa.deploy.authority import Authority
    from fedsa.engines.roster import Roster

    files = Authority.read(folder).renew(Roster.read(folder), parties or [])
    if _is_told({"files": {party: str(path) for party, path in files.items()}}, *files.values(), json=json):
        return
    print("Send each party its file; there is nothing secret in it:")
    for party, path in files.items():
        print(f"  {party}: {path}")
    print(
        "Each party puts its file into its own folder (beside `kit`), stops, and starts again with the same command.\n"
        "Parties with old and with new certificates understand each other until the old ones end."
    )


def _is_told(found: Mapping[str, Any], *places: Path, json: bool) -> bool:
    """Print what a command came to as JSON, or only where it is; False: neither is asked for, so it is to be explained.

    Args:
        found: for JSON.
        places: files or folders.
        json: as the command was given it.
    """
    from fedsa.commands.shared.display import print_json

    if json:
        print_json(found)
    elif is_quiet():
        for place in places:
            say(str(place))
    return json or is_quiet()


def _say_where_keys_are(requests: list[Path] | None) -> None:
    """Print where the keys of sites are that have made them themselves."""
    if requests:
        names = ", ".join(path.stem for path in requests)
        print(
            f"\nNo key is in the folder of {names}: the site puts the files into the folder where its key is "
            "(`fedsa deploy request` said which)."
        )


def _say_what_rows_are(several: list[str]) -> None:
    """Print what a site has to have; `several`: names of sites with several clients."""
    if several:
        print(
            f"\nAt a site with several clients ({', '.join(several)}), ROWS is a folder with a file of each client's "
            "name,\nor a file whose column (--column NAME) names the client."
        )
    print(
        "\nROWS is the site's own file or folder, which does not leave it. Every party needs fedsa[nvflare], and each "
        "site the same model; where it lies there: --set model.path=PATH.\nWhat leaves a site: fedsa deploy sent FOLDER"
    )


def _say_where_the_roster_is(folder: Path, then: str) -> None:
    """Print how the server gets the new roster, and what it then does."""
    from fedsa.engines.roster import ROSTER

    print(f"\nAt the server, which may keep running: {then}.")
    if not (folder / "server").is_dir():
        print(f"For that, {folder / ROSTER} must be in the server's folder, in the place of the old one.")
    print("If the server waits for an answer, stop it and start it again with the same command.")


def _names(text: str) -> list[str]:
    """The names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _clients_of_sites(texts: list[str]) -> dict[str, list[str]]:
    """Site to its clients, of texts such as ``north=ward-a,ward-b``.

    Raises:
        UserError: a text is another.
    """
    from fedsa.errors import UserError

    clients: dict[str, list[str]] = {}
    for text in texts:
        site, equals, ids = text.partition("=")
        if not equals:
            raise UserError(f"--clients {text}: write the site and its clients as in north=ward-a,ward-b")
        clients.setdefault(site.strip(), []).extend(_names(ids))
    return clients
