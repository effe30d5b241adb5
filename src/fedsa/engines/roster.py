"""Who takes part in a run over several sites: the server's list of them, as one value that can be written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsa.errors import ConfigError, UserError, near
from fedsa.recipe import mistakes_of
from fedsa.store import RunFolder
from fedsa.store.files import write_atomically
from fedsa.store.run_folder import CLIENTS
from fedsa.store.seals import read_sealed, sealed_table

__all__ = ["ROSTER", "Member", "Roster", "check_names"]

ROSTER = "roster.json"
"""The name of its file."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@final
class Member(_Part):
    """A site, as the roster has it.

    Attributes:
        clients: ids of its clients.
        trains: they train; else they are measured only.
        left: it is not asked any more, and its certificate is shut out.
    """

    clients: Annotated[tuple[str, ...], Field(min_length=1)]
    trains: bool = True
    left: bool = False


@final
class Roster(_Part):
    """The sites of a federation.

    Attributes:
        run: the run's id.
        sites: name to what is known of the site.
    """

    run: str
    sites: dict[str, Member]

    @classmethod
    def begun(
        cls, run: str, sites: Sequence[str], clients: Mapping[str, Sequence[str]], only_measured: Collection[str] = ()
    ) -> Roster:
        """The roster of a federation that begins.

        Args:
            run: the run's id.
            sites: their names.
            clients: site to its clients' ids; a site that is not in it is one client of its own name.
            only_measured: sites that are measured and never train.

        Raises:
            UserError: a name is missing, stands there twice, or is none of a party's.
        """
        check_names(sites, clients)
        unknown = sorted({*only_measured} - {*sites})
        if unknown:
            raise UserError(f"{unknown[0]!r} is to be measured only, and is no site: the sites are {', '.join(sites)}")
        if {*only_measured} >= {*sites}:
            raise UserError("no site trains: name at least one that is not only measured")
        members = {
            site: Member(clients=tuple(clients.get(site, (site,))), trains=site not in only_measured)
            for site in sorted(sites)
        }
        return cls(run=run, sites=members)

    @property
    def clients(self) -> dict[str, tuple[str, ...]]:
        """Site to the ids of its clients, of the sites that have not left."""
        return {site: member.clients for site, member in self.sites.items() if not member.left}

    @property
    def left(self) -> tuple[str, ...]:
        """The sites that have left."""
        return tuple(site for site, member in self.sites.items() if member.left)

    @property
    def only_measured(self) -> frozenset[str]:
        """Ids of the clients that never train."""
        return frozenset(client for member in self.sites.values() if not member.trains for client in member.clients)

    def sites_of(self, run: RunFolder) -> tuple[str, ...]:
        """The sites that a run begins or goes on with: who has joined since is taken in between two rounds."""
        begun = run.progress() is not None
        known = {entry["site"] for entry in run.read_json(CLIENTS).values()} if begun else {*self.sites}
        return tuple(site for site in self.clients if site in known)

    def with_left_of(self, run: RunFolder) -> Roster:
        """The roster in which all have left of whom a run says so, also where an older roster was put in its place."""
        entries = run.read_json(CLIENTS).values() if run.progress() is not None else ()
        return self.with_left({entry["site"] for entry in entries if "left" in entry})

    def with_site(self, site: str, clients: Sequence[str], *, trains: bool = True) -> Roster:
        """The roster with a site that has come.

        Args:
            site: its name.
            clients: ids of its clients.
            trains: they train; else they are measured only.

        Raises:
            UserError: the site, or one of its clients, has a name that is taken.
        """
        if site in self.sites:
            gone = " (it has left: its certificate stays shut out)" if self.sites[site].left else ""
            raise UserError(f"there is a site {site!r} already{gone}: give another name")
        everyone = {name: member.clients for name, member in self.sites.items()} | {site: tuple(clients)}
        check_names([*everyone], everyone)
        made = Member(clients=tuple(clients), trains=trains)
        return self.model_copy(update={"sites": dict(sorted({**self.sites, site: made}.items()))})

    def without_site(self, site: str) -> Roster:
        """The roster after a site has left.

        Raises:
            UserError: there is no such site, or no other one that trains.
        """
        if site not in self.sites:
            raise UserError(f"there is no site {site!r}; {near(site, [*self.sites])}")
        gone = self.sites[site].model_copy(update={"left": True})
        roster = self.model_copy(update={"sites": {**self.sites, site: gone}})
        if not any(member.trains and not member.left for member in roster.sites.values()):
            raise UserError(f"without {site!r} no site is left that trains")
        return roster

    def with_left(self, sites: Collection[str]) -> Roster:
        """The roster in which these sites have left, if they are in it: who has left does not come back."""
        gone = {site: member.model_copy(update={"left": True}) for site, member in self.sites.items() if site in sites}
        return self.model_copy(update={"sites": {**self.sites, **gone}})

    def text(self) -> str:
        """The roster as JSON; `read` reads it."""
        return sealed_table(self.model_dump(mode="json", exclude_defaults=True))

    def write(self, folder: Path) -> None:
        """Write it into a folder, atomically.

        Raises:
            UserError: it cannot be written.
        """
        write_atomically(folder / ROSTER, self.text().encode())

    @classmethod
    def read(cls, folder: Path) -> Roster:
        """The roster in a folder.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = folder / ROSTER
        try:
            return cls.model_validate(read_sealed(path, older=cls.model_fields))
        except ValidationError as error:
            raise ConfigError(mistakes_of(error, cls), str(path)) from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): put it back as `fedsa deploy` wrote it (the folder of the "
                "federation has a copy)"
            ) from None


def check_names(sites: Sequence[str], clients: Mapping[str, Sequence[str]]) -> None:
    """Refuse names of sites and clients with which a federation cannot begin.

    Raises:
        UserError: a name is missing, stands there twice, or is none of a party's.
    """
    if not sites or {"server", "authority", "renewed"} & {*sites} or len({*sites}) < len(sites):
        raise UserError(
            f"sites {', '.join(sites) or '(none)'}: name at least one, each once, and none server, authority or renewed"
        )
    unknown = sorted({*clients} - {*sites})
    if unknown:
        raise UserError(f"clients of {unknown[0]!r}, which is no site: the sites are {', '.join(sites)}")
    empty = [site for site, own in clients.items() if not own or not all(own)]
    if empty:
        raise UserError(f"site {empty[0]!r} has no client, or one without a name: name them, as in {empty[0]}=one,two")
    counts = Counter(client for site in sites for client in clients.get(site, (site,)))
    twice = [client for client, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"client {twice[0]!r} is named twice: a client's id is unique in the federation; put the site's name in "
            f"it, as in {sites[0]}-{twice[0]}"
        )
