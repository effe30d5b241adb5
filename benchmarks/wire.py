"""Seconds of a round that carries only: real processes of NVFlare on this machine, TLS on both sides, no training.

Each site's worker sends back what it was sent. Every round is timed from the first request to the last answer. The
first round waits for the processes to start; it has a column of its own.

    python benchmarks/wire.py [--sites 2 8] [--rounds 20] [--bytes 150000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fedsa.deploy.parties import run_local

WORKER = (
    "import os, pathlib; from fedsa.deploy import worker; worker.serve(bytes, pathlib.Path(os.environ[worker.SOCKET]))"
)


def timed_rounds(sites: int, rounds: int, size: int, *, engine_defaults: bool) -> list[float]:
    """Run a federation of echoing sites, and time its rounds.

    Args:
        sites: how many.
        rounds: how many are timed; one more comes before them.
        size: bytes of each request, and of each answer.
        engine_defaults: whether sites ask for their next task as seldom as NVFlare has it.

    Returns:
        Seconds of each round, the first one first.

    Raises:
        RuntimeError: a site has not sent back what it was sent.
    """
    names = [f"site-{number}" for number in range(1, sites + 1)]
    commands = {name: [sys.executable, "-c", WORKER] for name in names}
    seconds = []
    with (
        tempfile.TemporaryDirectory() as folder,
        run_local(Path(folder), commands, patience=300, engine_defaults=engine_defaults) as carry,
    ):
        for _ in range(rounds + 1):
            body = os.urandom(size)
            began = time.perf_counter()
            answers = dict(carry(dict.fromkeys(names, body), 600))
            seconds.append(time.perf_counter() - began)
            if answers != dict.fromkeys(names, body):
                raise RuntimeError("a site has not sent back what it was sent")
    return seconds


def main() -> None:
    """Print a table: sites and settings, and the seconds of a round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bytes", type=int, default=150_000)
    arguments = parser.parse_args()
    print("| sites | settings | median (s) | least (s) | most (s) | until the first answer (s) |")
    print("|---|---|---|---|---|---|")
    for sites in arguments.sites:
        for name, engine_defaults in (("fedsa's", False), ("NVFlare's own", True)):
            first, *others = timed_rounds(sites, arguments.rounds, arguments.bytes, engine_defaults=engine_defaults)
            figures = (statistics.median(others), min(others), max(others), first)
            print(f"| {sites} | {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
