"""Run a server, a site, or a whole federation on this machine. The processes end with the process that started them."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedsa.deploy import carrier, worker
from fedsa.deploy.carrier import Carrier
from fedsa.deploy.nvflare import ASK_SECONDS, NVFlareJobs, administrator_command, party_command
from fedsa.deploy.nvflare_server import TOLD, heard_lines
from fedsa.deploy.preflight import Kit, UnreachableError, check_kit, check_server, no_other_authority
from fedsa.deploy.provision import ADMINISTRATOR, provision, shut_out, write_policy
from fedsa.system.children import KeptChild, stop_all

__all__ = ["free_port", "kept_programs", "run_local", "run_server", "run_site", "socket_folder"]


@contextmanager
def run_server(
    kit: Kit,
    administrator: Kit,
    sites: Iterable[str],
    *,
    logs: Path,
    left: Collection[str] = (),
    patience: float = 30,
    engine_defaults: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Carrier]:
    """Run NVFlare's server for as long as the context lasts, and give the carrier of requests to the sites.

    Args:
        kit: the server's.
        administrator: the kit of the administrator, who submits jobs.
        sites: the roster.
        logs: folder for the processes' logs.
        left: sites that are shut out.
        patience: seconds that the first job waits for sites that are not connected; then it begins without them.
        engine_defaults: sites ask for their next task as rarely as NVFlare's own settings say, for a comparison.
        tell: is called with each line about what happens.

    Raises:
        PreflightError: something is wrong with a kit.
        MissingExtraError: NVFlare is not installed.
    """
    check_kit(kit)
    check_kit(administrator)
    write_policy(kit)
    shut_out(kit, left)
    with socket_folder() as place, ExitStack() as stack:
        socket_of = {name: Path(place) / name for name in ("carrier", "administrator", "told")}
        programs = {
            "server": (party_command(kit), {carrier.SOCKET: str(socket_of["carrier"]), TOLD: str(socket_of["told"])}),
            "administrator": (
                administrator_command(administrator, None if engine_defaults else ASK_SECONDS),
                {worker.SOCKET: str(socket_of["administrator"]), **no_other_authority(administrator)},
            ),
        }
        stack.enter_context(heard_lines(socket_of["told"], tell))
        stack.enter_context(kept_programs(logs, programs))
        jobs = NVFlareJobs(socket_of["administrator"])
        yield stack.enter_context(
            Carrier(jobs, socket_of["carrier"], sites, patience=patience, shut_out=jobs.shut_out, tell=tell)
        )


@contextmanager
def run_site(kit: Kit, command: Sequence[str], *, logs: Path, patience: float | None = 0) -> Iterator[None]:
    """Run a site for as long as the context lasts: NVFlare's process, and the worker that holds the model.

    Args:
        kit: the site's.
        command: of the worker; it finds the path for `fedsa.deploy.worker.serve` in the environment (`SOCKET`). It is
            started again when it ends.
        logs: folder for the processes' logs.
        patience: seconds that the site waits for a server that does not answer; None: the server is not tried first.

    Raises:
        PreflightError: something is wrong with the kit, or the server cannot be reached.
        MissingExtraError: NVFlare is not installed.
    """
    check_kit(kit)
    if patience is not None:
        _wait_for_server(kit, patience)
    with socket_folder() as folder:
        place = {worker.SOCKET: str(Path(folder) / "worker")}
        programs = {
            f"{kit.party}-worker": (command, place),
            f"{kit.party}-engine": (party_command(kit), {**place, **no_other_authority(kit)}),
        }
        with kept_programs(logs, programs):
            yield


@contextmanager
def run_local(
    folder: Path,
    commands: Mapping[str, Sequence[str]],
    *,
    project: str = "fedsa",
    port: int | None = None,
    listen: int | None = None,
    patience: float = 60,
    engine_defaults: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Carrier]:
    """Run a whole federation on this machine: real processes, certificates of its own, TLS on the loopback address.

    Args:
        folder: for startup kits and logs.
        commands: site to the command of its worker; see `run_site`.
        project: the federation's name.
        port: by which sites reach the server; None: a free one.
        listen: the port on which the server listens, where something in between leads from `port` to it; None: `port`.
        patience: seconds that the first job waits for sites that are not connected.
        engine_defaults: sites ask for their next task as rarely as NVFlare's own settings say, for a comparison.
        tell: is called with each line about what happens.

    Raises:
        MissingExtraError: NVFlare is not installed.
        UserError: a name is not one that certificates and NVFlare take.
    """
    place = folder / "kits"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier run, for a port that may not be free any more
    kits = provision(place, project, "localhost", free_port() if port is None else port, commands, listen=listen)
    logs = folder / "logs"
    with ExitStack() as stack:
        carry = stack.enter_context(
            run_server(
                kits["server"],
                kits[ADMINISTRATOR],
                commands,
                logs=logs,
                patience=patience,
                engine_defaults=engine_defaults,
                tell=tell,
            )
        )
        for site, command in commands.items():
            stack.enter_context(run_site(kits[site], command, logs=logs, patience=None))  # it tries by itself
        yield carry


def _wait_for_server(kit: Kit, patience: float) -> None:
    """Try the way to the server until something answers.

    Raises:
        PreflightError: nothing has answered for ``patience`` seconds, or another program answers.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return check_server(kit)
        except UnreachableError:
            if time.monotonic() > end:
                raise
        time.sleep(0.5)


@contextmanager
def kept_programs(logs: Path, programs: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> Iterator[None]:
    """Run programs for as long as the context lasts; they are started again when they end.

    Args:
        logs: folder for their logs.
        programs: name of the log to the command, and the variables that are added to its environment.
    """
    children: list[KeptChild] = []
    try:
        for name, (command, variables) in programs.items():
            children.append(KeptChild(command, logs / f"{name}.log", environment={**os.environ, **variables}))
        yield
    finally:
        stop_all(children)


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that only this user may open, with a path short enough for sockets in it."""
    return tempfile.TemporaryDirectory(prefix="fedsa-")


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.create_server(("localhost", 0)) as listener:
        return int(listener.getsockname()[1])
