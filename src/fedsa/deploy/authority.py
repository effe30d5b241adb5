"""The party that makes certificates: it stays with whoever began a federation, and is needed when a site joins."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedsa.deploy.certificates import has_expired, name_in, renew
from fedsa.deploy.own_rows import AS_WRITTEN, read_note
from fedsa.deploy.preflight import Kit
from fedsa.deploy.provision import ADMINISTRATOR, provision
from fedsa.engines.roster import Roster
from fedsa.errors import UserError, near
from fedsa.store.files import write_atomically
from fedsa.store.seals import sealed_table

__all__ = ["AUTHORITY", "RENEWED", "SERVER", "Authority"]

AUTHORITY = "authority"
"""The folder of the authority's keys, in that of the federation."""

SERVER, RENEWED = "server", "renewed"
"""The name of the party that is the server; the folder of certificates that were renewed, in that of the federation."""

_NOTE, _PROJECT = "federation.json", "fedsa"
_LONGEST = 64  # characters of a host name that NVFlare puts into a certificate's name


@final
@dataclass(frozen=True)
class Authority:
    """Makes certificates for the parties of one federation.

    Attributes:
        folder: of the federation.
        host: the name by which sites reach the server.
        port: by which sites reach the server.
        clients: that train, as the federation began: the agreed scale of some methods depends on their number.
    """

    folder: Path
    host: str
    port: int
    clients: int

    def make(
        self, sites: Collection[str], requests: Iterable[Path] = (), *, listen: int | None = None
    ) -> dict[str, Kit]:
        """Make the startup kits of sites, and those of the server and the administrator, as `provision` does.

        Args:
            sites: their names.
            requests: of those that have made their key themselves; each has the site's name in it.
            listen: the port on which the server listens; None: the one by which sites reach it.

        Raises:
            UserError: a request is none, or of none of these sites.
        """
        named = {name_in(path): path for path in requests}
        unknown = sorted({*named} - {*sites})
        if unknown:
            raise UserError(f"{named[unknown[0]]} is a request of {unknown[0]!r}; {near(unknown[0], sites)}")
        return provision(self.folder / AUTHORITY, _PROJECT, self.host, self.port, sites, listen=listen, requests=named)

    def make_one(self, site: str, requests: Iterable[Path] = ()) -> Kit:
        """Make the startup kit of a site that joins later; see `make`.

        Raises:
            UserError: as `make`, or the authority's certificate has expired.
        """
        if has_expired(self._issuer):
            raise UserError(f"the authority's certificate has expired: first run `fedsa deploy renew {self.folder}`")
        try:
            return self.make([site], requests)[site]
        finally:  # made beside it, with keys that are at their parties already
            for other in (SERVER, ADMINISTRATOR):
                shutil.rmtree(self.folder / AUTHORITY / other, ignore_errors=True)

    def renew(self, roster: Roster, parties: Collection[str]) -> dict[str, Path]:
        """Make new certificates, and return party to the file that it needs: certificates alone, and no key.

        Args:
            roster: of the federation.
            parties: ``server`` and names of sites; empty: all that have not left.

        Raises:
            UserError: there is no such party, or it has left.
        """
        known = [SERVER, *roster.clients]
        for party in parties:
            if party in roster.left:
                raise UserError(f"{party!r} has left the federation: its certificate is not renewed")
            if party not in known:
                raise UserError(f"there is no party {party!r}; {near(party, known)}")
        of_server = [self.host[:_LONGEST], ADMINISTRATOR]
        names = {party: of_server if party == SERVER else [party] for party in parties or known}
        return renew(self._issuer, names, self.folder / RENEWED)

    @property
    def _issuer(self) -> Path:
        """The folder of NVFlare's project, where the authority's key is."""
        return self.folder / AUTHORITY / AUTHORITY / _PROJECT

    def write(self) -> None:
        """Write into the federation's folder what is needed to make more certificates, beside the keys."""
        about = {"host": self.host, "port": self.port, "clients": self.clients}
        write_atomically(self.folder / _NOTE, sealed_table(about).encode())

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """The authority of the federation in a folder.

        Raises:
            UserError: it is not there.
        """
        if not (folder / AUTHORITY).is_dir():
            raise UserError(
                f"{folder} has no folder {AUTHORITY}: give the folder that `fedsa deploy init` wrote, on the machine "
                "where it was run"
            )
        about = read_note(folder / _NOTE, AS_WRITTEN, "host", "port", "clients", optional=[])
        return cls(folder, str(about["host"]), int(about["port"]), int(about["clients"]))
