"""A federation across machines: write a folder for each party, run the server, take part as a site."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedsa.agreement import AGREEMENT, Agreement, over
from fedsa.callbacks import Callback
from fedsa.deploy.authority import SERVER, Authority
from fedsa.deploy.certificates import add_key, take_renewed
from fedsa.deploy.own_rows import AS_WRITTEN, Names, own_rows, read_note
from fedsa.deploy.parties import run_server, run_site
from fedsa.deploy.preflight import KIT, Kit, PreflightError, read_kit, warning_of
from fedsa.deploy.provision import ADMINISTRATOR
from fedsa.deploy.site_folder import SETTINGS
from fedsa.deploy.submitted_jobs import run_worker, wait_for_jobs
from fedsa.engines.deployed import check_deployable, check_drawn, open_server_folder, run_id_of, serve
from fedsa.engines.membership import Membership, check_only_measured, check_same_scale
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.roster import ROSTER, Member, Roster
from fedsa.errors import UserError
from fedsa.recipe import Recipe, Scope, with_absolute_paths
from fedsa.store.files import write_atomically

__all__ = ["begin_project", "join_project", "leave_project", "prepare_site", "serve_project", "take_part"]


def begin_project(
    recipe: Recipe,
    sites: Sequence[str],
    folder: Path,
    *,
    clients: Mapping[str, Sequence[str]] | None = None,
    only_measured: Collection[str] = (),
    requests: Iterable[Path] = (),
    host: str,
    port: int,
    listen: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Mapping[str, Path]:
    """Write a folder for each party of a federation, and return them by the parties' names.

    Args:
        recipe: names the classes, where its task has any; where rows lie does not matter.
        sites: their names.
        clients: site to its clients' ids; a site that is not in it is one client, whose id is the site's name.
        only_measured: sites that are measured and never train.
        requests: of the sites that have made their key themselves (`make_request`): their folders get none.
        folder: is made; it holds a folder for the server, one for each site, and what stays with whoever began: the
            authority's keys, and what a site that joins later is given.
        host: the name by which sites reach the server.
        port: by which sites reach the server.
        listen: the port on which the server listens, where something in between leads from `port` to it; None: `port`.
        tell: is called with a line about each thing that takes time.

    Raises:
        UserError: the recipe cannot be deployed, the folder is not empty, or the classes are not named.
        MissingExtraError: NVFlare is not installed.
    """
    from fedsa.federation import agree

    roster = Roster.begun("", sites, clients or {}, only_measured)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give a new folder")
    everyone = [client for own in roster.clients.values() for client in own]
    check_deployable(recipe, len({*sites} - {*only_measured}))
    check_drawn(recipe, len({*everyone} - {*roster.only_measured}))
    agreement = agree(recipe, everyone, only_measured=roster.only_measured, on_progress=tell)
    if only_measured:
        check_only_measured(agreement)
    roster = roster.model_copy(update={"run": run_id_of(agreement, sites)})
    tell("making the certificates")
    authority = Authority(folder, host, port, len(everyone) - len(roster.only_measured))
    kits = authority.make(sites, requests, listen=listen)
    authority.write()
    write_atomically(folder / AGREEMENT, agreement.text().encode())
    write_atomically(folder / SETTINGS, json.dumps(_own_settings(recipe), indent=2, ensure_ascii=False).encode())
    server = folder / "server"
    server.mkdir()
    shutil.move(kits["server"].path, server / KIT)
    shutil.move(kits[ADMINISTRATOR].path, server / ADMINISTRATOR)
    write_atomically(server / AGREEMENT, agreement.text().encode())
    for place in (folder, server):
        roster.write(place)
    return {"server": server, **{site: _give_site(folder, kits[site], roster.sites[site]) for site in sites}}


def join_project(
    folder: Path,
    site: str,
    *,
    clients: Sequence[str] = (),
    trains: bool = True,
    requests: Iterable[Path] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write what a site is given that joins later, and put it on the roster; return its folder.

    The server takes it in between two rounds. What was agreed upon stays as it is.

    Args:
        folder: of the federation, as `begin_project` wrote it; what was brought to other machines need not be there.
        site: its name.
        clients: ids of its clients; none: one, whose id is the site's name.
        trains: they train; else they are measured only.
        requests: the site's, if it has made its key itself.
        tell: is called with what takes time.

    Raises:
        UserError: a name is taken, or the method does not allow it.
    """
    roster, authority, agreement = Roster.read(folder), Authority.read(folder), Agreement.read(folder / AGREEMENT)
    joined = roster.with_site(site, clients or (site,), trains=trains)
    if trains:
        members = [member for member in joined.sites.values() if member.trains and not member.left]
        check_same_scale(agreement, authority.clients, sum(len(member.clients) for member in members))
    else:
        check_only_measured(agreement)
    if (folder / site).exists():
        raise UserError(f"{folder / site} is there already: move it away, or give the site another name")
    tell("making the certificate")
    place = _give_site(folder, authority.make_one(site, requests), joined.sites[site])
    _write_roster(folder, joined)
    return place


def leave_project(folder: Path, site: str) -> None:
    """Mark a site on the roster as one that has left: it is asked nothing any more, and its certificate is shut out.

    Args:
        folder: of the federation, or of its server.
        site: its name.

    Raises:
        UserError: there is no such site, or no other one that trains.
    """
    _write_roster(folder, Roster.read(folder).without_site(site))


def _give_site(folder: Path, kit: Kit, member: Member) -> Path:
    """Write a site's folder, and return it.

    Args:
        folder: of the federation.
        kit: the site's; it is moved.
        member: what the roster says of it.
    """
    place = folder / kit.party
    place.mkdir()
    shutil.move(kit.path, place / KIT)
    for name in (AGREEMENT, SETTINGS):
        shutil.copyfile(folder / name, place / name)
    Names(kit.party, member.clients, member.trains).write(place)
    return place


def _look_after(folder: Path, party: str, kits: Sequence[Kit], tell: Callable[[str], None]) -> None:
    """Put a key that was made here, and renewed certificates, into a party's kits; tell of those that end soon.

    Raises:
        PreflightError: a key or a certificate is missing, or does not fit.
    """
    key = folder / f"{party}.key"
    for kit in kits:
        if key.exists() and not kit.key.exists():
            add_key(kit, key)
        elif not kit.key.exists():
            raise PreflightError(f"{kit.path} has no key: put {key.name}, which `fedsa deploy request` made, beside it")
    if take_renewed(folder, party, kits):
        tell(f"the certificate of {party} has been renewed")
    for warning in dict.fromkeys(filter(None, map(warning_of, kits))):
        tell(warning)


def _write_roster(folder: Path, roster: Roster) -> None:
    """Write the roster into a folder, and into that of the server below it, where it is there.

    Who has left by the server's own roster stays so.
    """
    below = folder / SERVER
    if (below / ROSTER).is_file():
        roster = roster.with_left(Roster.read(below).left)
        roster.write(below)
    roster.write(folder)


def serve_project(
    folder: Path,
    out: Path,
    *,
    quorum: int | None = None,
    deadline: float | None = None,
    keeps_all_rounds: bool = False,
    jobs: Path | None = None,
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
        keeps_all_rounds: whether the folder keeps the server's state of every round, and not only what is needed.
        jobs: for an NVFlare that runs already, a folder for the jobs that somebody submits to it; None: NVFlare's
            server is started with the folder's own certificates.
        callbacks: told of every step.
        tell: is called with each line about the parties.

    Raises:
        FedsaError: a folder does not fit, or the run failed.
    """
    if jobs is None:
        kits = _own_kits(folder, tell)
    agreement, roster, logs = Agreement.read(folder / AGREEMENT), Roster.read(folder), folder / "logs"
    with open_server_folder(out, agreement.recipe).locked() as run:

        def read_roster() -> Roster:
            return Roster.read(folder).with_left_of(run)

        roster = roster.with_left_of(run)
        sites = roster.sites_of(run)  # who has come since is invited between rounds
        with (
            run_server(*kits, sites, logs=logs, left=roster.left, tell=tell)
            if jobs is None
            else wait_for_jobs(jobs, sites, tell=tell)
        ) as carrier:
            fleet = RemoteFleet(
                carrier, sites, roster.run, clients=roster.clients, deadline=deadline, quorum=quorum, tell=tell
            )
            membership = Membership(read_roster, admit=carrier.sites.admit, dismiss=carrier.sites.dismiss, tell=tell)
            return serve(
                agreement,
                run,
                fleet,
                engine="nvflare",
                keeps_all_rounds=keeps_all_rounds,
                callbacks=callbacks,
                membership=membership,
            )


def _own_kits(folder: Path, tell: Callable[[str], None]) -> tuple[Kit, Kit]:
    """The server's kit and the administrator's, looked after.

    Raises:
        PreflightError: something is wrong with a kit.
    """
    kits = read_kit(folder / KIT), read_kit(folder / ADMINISTRATOR)
    _look_after(folder, SERVER, kits, tell)
    return kits


def take_part(
    folder: Path,
    data: str,
    settings: Mapping[str, Any],
    *,
    column: str | None = None,
    socket: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> AbstractContextManager[None]:
    """Run a site of a federation across machines; give a context that lasts as long as the site takes part.

    Args:
        folder: the site's, as `begin_project` wrote it.
        data: as for `prepare_site`.
        settings: as for `prepare_site`.
        column: as for `prepare_site`.
        socket: for an NVFlare that runs already, the path by which its client finds the worker; None: NVFlare's client
            is started with the folder's own certificate.
        tell: is called with what takes time.

    Raises:
        UserError: kit, rows or settings do not fit, or the server cannot be reached.
    """
    command, logs = [sys.executable, "-m", "fedsa.deploy.site", str(folder)], folder / "logs"
    if socket is None:
        kit = read_kit(folder / KIT)
        _look_after(folder, kit.party, [kit], tell)
    prepare_site(folder, data, settings, column=column, tell=tell)
    name = Names.read(folder).site
    tell(f"site {name!r} takes part; what leaves it is listed in {folder / 'sent.jsonl'}")
    if socket is None:
        return run_site(kit, command, logs=logs)
    return run_worker(name, command, socket, logs=logs, tell=tell)


def prepare_site(
    folder: Path,
    data: str,
    settings: Mapping[str, Any],
    *,
    column: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Read a site's rows, to see that they fit, and write into its folder where they lie.

    Args:
        folder: the site's.
        data: its own rows: a local file or folder; see `own_rows`.
        settings: this machine's own settings, as in a recipe, over those of the folder's ``settings.json``.
        column: the one that names the client, where one file has the rows of several.
        tell: is called with what is to be known of the rows.

    Raises:
        UserError: rows or settings do not fit.
    """
    agreement, names = Agreement.read(folder / AGREEMENT), Names.read(folder)
    stored = read_note(folder / SETTINGS, AS_WRITTEN)
    stored.get("data", {}).pop("partition", None)  # of the last time: the arguments say it anew
    dealt = {"kind": "files"} if column is None else {"kind": "column", "column": column}
    own = over(over(stored, {"data": {"partition": dealt}}), settings)
    own = over(own, {"data": {"path": str(Path(data).absolute())}})
    recipe = with_absolute_paths(agreement.recipe_with(own))
    own = over(own, {"model": {"path": recipe.model.path}})
    for note in own_rows(names, recipe, agreement.labels)[1]:
        tell(note)
    write_atomically(folder / SETTINGS, json.dumps(own, indent=2, ensure_ascii=False).encode())


def _own_settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings of machines, without the place of its rows: a site begins with them."""
    own = recipe.of_scope(Scope.MACHINE)
    own.pop("data", None)
    return own
