"""For an NVFlare that runs already, under somebody else's care: jobs that are submitted with its own tools.

fedsa starts nothing of NVFlare then. It writes each job into a folder, waits until somebody has submitted it, and
answers at a socket whose path NVFlare's processes find in their environment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from fedsa.deploy import carrier, worker
from fedsa.deploy.carrier import Carrier
from fedsa.deploy.nvflare import write_job
from fedsa.deploy.parties import kept_programs
from fedsa.errors import UserError
from fedsa.texts.words import counted

__all__ = ["SubmittedJobs", "run_worker", "wait_for_jobs"]

_LONGEST = 100  # bytes of a socket's path


@final
class SubmittedJobs:
    """Writes a job for each generation, for somebody to submit; see `fedsa.deploy.carrier.Engine`.

    Args:
        folder: for the jobs' folders.
        roster: gives the sites that may be asked. All of them count as connected: only NVFlare knows who is.
        tell: is called with the line that asks for a job to be submitted.
    """

    def __init__(self, folder: Path, roster: Callable[[], Collection[str]], tell: Callable[[str], None]) -> None:
        self._folder, self._roster, self._tell = folder, roster, tell

    def connected(self) -> Mapping[str, str]:
        """The whole roster."""
        return dict.fromkeys(self._roster(), "")

    def begin(self, generation: int, sites: Iterable[str]) -> None:
        """Write a job, and ask for it to be submitted."""
        job = self._folder / f"job-{generation}"
        shutil.rmtree(job, ignore_errors=True)
        write_job(job, generation, sites)
        self._tell(f"waiting for a job: nvflare job submit -j {job}")

    def has_ended(self) -> bool:
        """False: whether it runs can be seen by its connection alone."""
        return False

    def end(self) -> None:
        """Leave the job to NVFlare: it ends when its connection is closed."""


@contextmanager
def wait_for_jobs(folder: Path, sites: Iterable[str], *, tell: Callable[[str], None]) -> Iterator[Carrier]:
    """Take the connections of jobs that somebody submits, for as long as the context lasts; give the carrier.

    Args:
        folder: for the jobs and the socket ``carrier``; is made, for this user alone.
        sites: the roster; each is the name of a client of NVFlare.
        tell: is called with each line about what happens.

    Raises:
        UserError: the socket's path is too long.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _socket_path(folder.resolve() / "carrier")

    def roster() -> Collection[str]:
        return there.sites.names

    there = Carrier(SubmittedJobs(folder.resolve(), roster, tell), path, sites, tell=tell)
    tell(f"NVFlare's server must have been started with {carrier.SOCKET}={path} in its environment")
    with there:
        yield there


@contextmanager
def run_worker(
    name: str, command: Sequence[str], path: Path, *, logs: Path, tell: Callable[[str], None]
) -> Iterator[None]:
    """Run the worker of a site, and nothing of NVFlare, for as long as the context lasts.

    Args:
        name: of the site.
        command: of the worker; it is started again when it ends.
        path: of its socket, in a folder that only this user and NVFlare's may open.
        logs: folder for its log.
        tell: is called with what NVFlare's client needs.

    Raises:
        UserError: the socket's path is too long, or its folder is not there.
    """
    path = _socket_path(path.absolute())
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not there: make it, for this user alone, or give another path")
    tell(f"NVFlare's client must have been started with {worker.SOCKET}={path} in its environment")
    with kept_programs(logs, {f"{name}-worker": (command, {worker.SOCKET: str(path)})}):
        yield


def _socket_path(path: Path) -> Path:
    """A path that a socket can have.

    Raises:
        UserError: it is too long.
    """
    if len(os.fsencode(path)) > _LONGEST:
        raise UserError(f"{path} is too long for a socket: a path of at most {counted(_LONGEST, 'byte')} is needed")
    return path
