"""A federation across machines: write a folder for each party, run the server, take part as a site."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedsa.agreement import AGREEMENT, Agreement, over
from fedsa.callbacks import Callback
from fedsa.deploy.parties import run_server, run_site
from fedsa.deploy.preflight import read_kit
from fedsa.deploy.provision import ADMINISTRATOR, provision
from fedsa.deploy.site import DATA, SETTINGS, read_note
from fedsa.engines.deployed import check_deployable, open_server_folder, run_id_of, serve
from fedsa.engines.remote import RemoteFleet
from fedsa.errors import UserError
from fedsa.recipe import Recipe, Scope, with_absolute_paths
from fedsa.store.files import write_atomically

__all__ = ["begin_project", "serve_project", "take_part"]

_ROSTER = "roster.json"
_KIT = "kit"
_AS_WRITTEN = "put it back as `fedsa deploy init` wrote it"


def begin_project(
    recipe: Recipe,
    sites: Sequence[str],
    folder: Path,
    *,
    host: str,
    port: int,
    listen: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Mapping[str, Path]:
    """Write a folder for each party of a federation, and return them by the parties' names.

    Each site is one client, whose id is the site's name.

    Args:
        recipe: names the classes, where its task has any; where rows lie does not matter.
        sites: their names.
        folder: is made; it holds a folder for the server, one for each site, and the authority's keys, which stay.
        host: the name by which sites reach the server.
        port: by which sites reach the server.
        listen: the port on which the server listens, where something in between leads from `port` to it; None: `port`.
        tell: is called with a line about each thing that takes time.

    Raises:
        UserError: the recipe cannot be deployed, the folder is not empty, or the classes are not named.
        MissingExtraError: NVFlare is not installed.
    """
    from fedsa.federation import agree

    if not sites or {"server", "authority"} & {*sites} or len({*sites}) < len(sites):
        raise UserError(
            f"sites {', '.join(sites) or '(none)'}: name at least one, each once, and none server or authority"
        )
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give a new folder")
    check_deployable(recipe)
    agreement = agree(recipe, sites, on_progress=tell)
    own = json.dumps(_own_settings(recipe), indent=2, ensure_ascii=False).encode()
    tell("making the certificates")
    kits = provision(folder / "authority", "fedsa", host, port, sites, listen=listen)
    places = {"server": folder / "server", **{site: folder / site for site in sites}}
    for party, place in places.items():
        place.mkdir()
        shutil.move(kits[party].path, place / _KIT)
        write_atomically(place / AGREEMENT, agreement.text().encode())
    shutil.move(kits[ADMINISTRATOR].path, places["server"] / ADMINISTRATOR)
    write_atomically(places["server"] / _ROSTER, json.dumps({"sites": sorted(sites)}).encode())
    for site in sites:
        write_atomically(places[site] / SETTINGS, own)
    return places


def serve_project(
    folder: Path,
    out: Path,
    *,
    quorum: int | None = None,
    deadline: float | None = None,
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the server of a federation across machines until the run has ended, and return its summary.

    What is in the run folder already goes on from its last finished round.

    Args:
        folder: the server's, as `begin_project` wrote it.
        out: the run folder.
        quorum: good updates that a round needs; None: of every client.
        deadline: seconds that sites have for an answer; None: as long as it takes.
        callbacks: told of every step.
        tell: is called with each line about the parties.

    Raises:
        FedsaError: a folder does not fit, or the run failed.
    """
    kit, administrator = read_kit(folder / _KIT), read_kit(folder / ADMINISTRATOR)
    agreement = Agreement.read(folder / AGREEMENT)
    sites = [str(site) for site in read_note(folder / _ROSTER, _AS_WRITTEN, "sites")["sites"]]
    logs = folder / "logs"
    with (
        open_server_folder(out, agreement.recipe).locked() as run,
        run_server(kit, administrator, sites, logs=logs, tell=tell) as carrier,
    ):
        fleet = RemoteFleet(carrier, sites, run_id_of(agreement, sites), deadline=deadline, quorum=quorum, tell=tell)
        return serve(agreement, run, fleet, engine="nvflare", callbacks=callbacks)


def take_part(
    folder: Path, data: str, settings: Mapping[str, Any], *, tell: Callable[[str], None] = lambda line: None
) -> AbstractContextManager[None]:
    """Run a site of a federation across machines; give a context that lasts as long as the site takes part.

    Args:
        folder: the site's, as `begin_project` wrote it.
        data: its own rows: a local file or folder.
        settings: this machine's own settings, as in a recipe, over those of the folder's ``settings.json``.
        tell: is called with a line about each thing that takes time.

    Raises:
        UserError: kit, rows or settings do not fit, or the server cannot be reached.
    """
    from fedsa.data.rows import deal_client

    kit, agreement = read_kit(folder / _KIT), Agreement.read(folder / AGREEMENT)
    stored = read_note(folder / SETTINGS, _AS_WRITTEN)
    here = {"data": {"path": str(Path(data).absolute()), "partition": {"kind": "files"}}}
    own = over(over(stored, settings), here)
    recipe = with_absolute_paths(agreement.recipe_with(own))
    own = over(own, {"model": {"path": recipe.model.path}})
    rows, notes = deal_client(kit.party, data, recipe, agreement.labels, newcomer=False)
    for note in (*rows.notes, *notes):
        tell(note)
    write_atomically(folder / SETTINGS, json.dumps(own, indent=2, ensure_ascii=False).encode())
    about = {"path": str(Path(data).absolute()), "client": kit.party}
    write_atomically(folder / DATA, json.dumps(about, ensure_ascii=False).encode())
    tell(f"site {kit.party!r} takes part; what leaves it is listed in {folder / 'sent.jsonl'}")
    return run_site(kit, [sys.executable, "-m", "fedsa.deploy.site", str(folder)], logs=folder / "logs")


def _own_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings of machines, without the place of its rows: a site begins with them."""
    own = recipe.of_scope(Scope.MACHINE)
    own.pop("data", None)
    return own
