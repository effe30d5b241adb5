"""Seconds of a round that carries only: real processes of an engine on this machine, with TLS, and no training.

Each site's worker sends back what it was sent. Every round is timed from the first request to the last answer. The
first round waits for the processes to start; it has a column of its own.

    python benchmarks/wire.py [--engine nvflare] [--sites 2 8] [--rounds 20] [--bytes 150000]

With `--waiting SECONDS` it looks instead at NVFlare's processes while all sites wait for the next round, which costs
something too: a site asks ten times a second whether there is anything to do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import psutil

from fedsa.deploy.carrier import Carrier
from fedsa.deploy.parties import run_local

Commands = Mapping[str, Sequence[str]]
Carrying = Callable[[Path, Commands], AbstractContextManager[Carrier]]

WORKER = (
    "import os, pathlib; from fedsa.deploy import worker; worker.serve(bytes, pathlib.Path(os.environ[worker.SOCKET]))"
)


def timed_rounds(carrying: Carrying, sites: int, rounds: int, size: int) -> list[float]:
    """Run a federation of echoing sites, and time its rounds.

    Args:
        carrying: runs the engine's processes.
        sites: how many.
        rounds: how many are timed; one more comes before them.
        size: bytes of each request, and of each answer.

    Returns:
        Seconds of each round, the first one first.

    Raises:
        RuntimeError: a site has not sent back what it was sent.
    """
    seconds, names = [], _names(sites)
    with _federation(carrying, sites) as carry:
        for _ in range(rounds + 1):
            body = os.urandom(size)
            began = time.perf_counter()
            answers = dict(carry(dict.fromkeys(names, body), 600))
            seconds.append(time.perf_counter() - began)
            if answers != dict.fromkeys(names, body):
                raise RuntimeError("a site has not sent back what it was sent")
    return seconds


def while_waiting(sites: int, size: int, seconds: float) -> Iterator[tuple[str, float, float, int]]:
    """Look at the engine's processes while the sites of a federation wait.

    Args:
        sites: how many.
        size: bytes of each request of the rounds that come before.
        seconds: how long.

    Yields:
        Of the server's processes and of the first site's: what it is, its processor seconds in a second, its memory in
        MB, its TCP connections.
    """
    with _federation(SETTINGS["nvflare"]["fedsa's"], sites) as carry:
        for _ in range(3):
            dict(carry(dict.fromkeys(_names(sites), os.urandom(size)), 600))
        found: dict[str, psutil.Process] = {}
        for process in psutil.Process().children(recursive=True):
            command = " ".join(process.cmdline())
            for kind, word in PROCESSES.items():
                if word in command and "guard.py" not in command:
                    found.setdefault(kind, process)
        before = {kind: _processor_seconds(process) for kind, process in found.items()}
        time.sleep(seconds)
        for kind, process in found.items():
            used = (_processor_seconds(process) - before[kind]) / seconds
            connections = [each for each in process.net_connections("tcp") if each.status == "ESTABLISHED"]
            yield kind, used, process.memory_info().rss / 1e6, len(connections)


PROCESSES = {
    "NVFlare's server": "server.server_train",
    "NVFlare's server, its job": "server.runner_process",
    "its administrator": "fedsa.deploy.nvflare ",
    "NVFlare at a site": "client.client_train",
    "NVFlare at a site, its job": "client.worker_process",
}
"""What a process of the engine is, and the word of its command that tells."""


def _names(sites: int) -> list[str]:
    return [f"site-{number}" for number in range(1, sites + 1)]


@contextmanager
def _federation(carrying: Carrying, sites: int) -> Iterator[Carrier]:
    """A federation of echoing sites."""
    commands = {name: [sys.executable, "-c", WORKER] for name in _names(sites)}
    with tempfile.TemporaryDirectory() as folder, carrying(Path(folder), commands) as carry:
        yield carry


def _nvflare(folder: Path, commands: Commands, *, engine_defaults: bool) -> AbstractContextManager[Carrier]:
    return run_local(folder, commands, patience=300, engine_defaults=engine_defaults)


def _flower(folder: Path, commands: Commands) -> AbstractContextManager[Carrier]:
    from fedsa.deploy.flower import run_local_flower

    return run_local_flower(folder, commands)


SETTINGS: dict[str, dict[str, Carrying]] = {
    "nvflare": {
        "fedsa's": partial(_nvflare, engine_defaults=False),
        "NVFlare's own": partial(_nvflare, engine_defaults=True),
    },
    "flower": {"Flower": _flower},
}
"""The engines, each with the settings that are compared."""


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Print a table: sites and settings, and the seconds of a round; or what the processes take while sites wait."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--engine", choices=sorted(SETTINGS), default="nvflare")
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bytes", type=int, default=150_000)
    parser.add_argument("--waiting", type=float, metavar="SECONDS", help="look at NVFlare's processes while sites wait")
    arguments = parser.parse_args()
    if arguments.waiting:
        print("| sites | process | processor seconds in a second | memory (MB) | connections |")
        print("|---|---|---|---|---|")
        for sites in arguments.sites:
            for kind, used, memory, connections in while_waiting(sites, arguments.bytes, arguments.waiting):
                print(f"| {sites} | {kind} | {used:.3f} | {memory:.0f} | {connections} |", flush=True)
        return
    print("| sites | settings | median (s) | least (s) | most (s) | until the first answer (s) |")
    print("|---|---|---|---|---|---|")
    for sites in arguments.sites:
        for name, carrying in SETTINGS[arguments.engine].items():
            first, *others = timed_rounds(carrying, sites, arguments.rounds, arguments.bytes)
            figures = (statistics.median(others), min(others), max(others), first)
            print(f"| {sites} | {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
