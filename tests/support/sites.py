"""A server and its sites in one process: bytes go to and fro, and nothing else is shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.deploy.site import SiteProgram, open_site
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import Exchange, RemoteFleet

__all__ = ["exchange_with", "opened", "serve_sites"]


@contextmanager
def opened(folders: Mapping[str, Path]) -> Iterator[dict[str, SiteProgram]]:
    """The programs of sites, by their names, for as long as the context lasts."""
    programs: dict[str, SiteProgram] = {}
    try:
        for site, folder in folders.items():
            programs[site] = open_site(folder)
        yield programs
    finally:
        for program in programs.values():
            program.close()


def exchange_with(programs: Mapping[str, SiteProgram]) -> Exchange:
    """Carry bytes to sites in this process."""

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            yield site, programs[site].handle(data)

    return exchange


def serve_sites(
    agreement: Path,
    out: Path,
    programs: Mapping[str, SiteProgram],
    *,
    run: str | None = None,
    clients: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Run a server in a folder, from wherever it is, to the end.

    Args:
        agreement: the folder that has it.
        out: the run folder.
        programs: the sites'.
        run: its id; None: of the agreement and the sites.
        clients: as for `RemoteFleet`.
    """
    agreed = Agreement.read(agreement / AGREEMENT)
    with open_server_folder(out, agreed.recipe).locked() as folder:
        fleet = RemoteFleet(exchange_with(programs), programs, run or run_id_of(agreed, [*programs]), clients=clients)
        return serve(agreed, folder, fleet, engine="a test")
