"""Bytes on the wire, counted by a proxy on loopback between the sites and the server, beside the bytes of the messages.

    python benchmarks/wire_bytes.py [--sites 2] [--rounds 20] [--bytes 150000]
    python benchmarks/wire_bytes.py --recipe quickstart [--sites 3] [--set rounds=4]

The first form carries messages of so many bytes to sites that send them back. It also counts what passes in ten seconds
in which nothing is to be carried: a waiting site asks ten times a second. The second form is a real federation; there
a message is as large as its tensors, and A goes down twice in a round, once for training and once for the evaluation.
Counted is what TLS sends, without the headers of TCP and IP (about 3 % more on an Ethernet).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxy import Proxy, free_port
from wire import WORKER

from fedsa.callbacks import Callback
from fedsa.commands.shared.recipe import recipe_of_command
from fedsa.deploy.local import deploy_local
from fedsa.deploy.parties import run_local
from fedsa.deploy.status import sent_of
from fedsa.recipe import Recipe

WAITING_SECONDS = 10
SETTLE_SECONDS = 0.3  # after the last answer, for what still follows it


def echoed(sites: int, rounds: int, size: int) -> tuple[tuple[float, float], list[tuple[float, float, float]]]:
    """Carry messages to sites that send them back, and count.

    Args:
        sites: how many.
        rounds: how many.
        size: bytes of each message.

    Returns:
        For a site: bytes up and down in a second of waiting; and for each round its seconds, bytes up and bytes down.
    """
    names, listen, found = [f"site-{number}" for number in range(1, sites + 1)], free_port(), []
    commands = {name: [sys.executable, "-c", WORKER] for name in names}
    with (
        tempfile.TemporaryDirectory() as folder,
        Proxy(listen) as proxy,
        run_local(Path(folder), commands, port=proxy.port, listen=listen, patience=300) as carry,
    ):

        def counted(seconds: float, send: bool) -> tuple[float, float, float]:
            began, before = time.perf_counter(), proxy.total()
            if send:
                dict(carry(dict.fromkeys(names, os.urandom(size)), 600))
            time.sleep(seconds)
            took, after = time.perf_counter() - began, proxy.total()
            return took, (after[0] - before[0]) / sites, (after[1] - before[1]) / sites

        counted(SETTLE_SECONDS, True)  # waits for all processes to start
        took, up, down = counted(WAITING_SECONDS, False)
        found = [counted(SETTLE_SECONDS, True) for _ in range(rounds)]
    return (up / took, down / took), found


class _Rounds(Callback):
    """Notes what has passed when each round ends."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.marks: list[tuple[float, int, int]] = []

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Note it."""
        self.marks.append((time.perf_counter(), *self._proxy.total()))


def trained(recipe: Recipe, sites: int) -> Iterator[tuple[int, float, float, float, float, float]]:
    """Run a federation, and count.

    Args:
        recipe: what it runs.
        sites: how many.

    Yields:
        Of each round but the first, which sends no A down: its number and seconds; and for a site the bytes of the
        tensors that were sent up, what passed up, the bytes of the tensors that were sent down, what passed down.
    """
    listen, names = free_port(), [f"site-{number}" for number in range(1, sites + 1)]
    with tempfile.TemporaryDirectory() as folder, Proxy(listen) as proxy:
        rounds, out = _Rounds(proxy), Path(folder) / "run"
        deploy_local(recipe, out, names, port=proxy.port, listen=listen, callbacks=[rounds])
        sent, one = Counter[int](), {}
        for entry in sent_of(out):
            for tensor in entry.get("tensors", []):
                sent[entry["round"]] += tensor["bytes"]
                one[tensor["name"]] = tensor["bytes"]
    down = 2 * sum(one.values())  # clients of one site that are sent the same tensors share one copy
    first = len(rounds.marks) - recipe.rounds  # with a mark for the evaluation before any training, it has one more
    for number in range(2, recipe.rounds + 1):
        (began, *before), (ended, *after) = rounds.marks[first + number - 2], rounds.marks[first + number - 1]
        passed = [(there - here) / sites for here, there in zip(before, after, strict=True)]
        yield number, ended - began, sent[number] / sites, passed[0], down, passed[1]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bytes", type=int, default=150_000)
    parser.add_argument("--recipe", help="run this federation instead")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.recipe:
        recipe, _ = recipe_of_command(arguments.recipe, arguments.set)
        print("| round | seconds | A up (bytes) | on the wire | more | A down (bytes) | on the wire | more |")
        print("|---|---|---|---|---|---|---|---|")
        for number, seconds, up, up_wire, down, down_wire in trained(recipe, arguments.sites):
            print(
                f"| {number} | {seconds:.1f} | {up:,.0f} | {up_wire:,.0f} | {up_wire / up - 1:.1%} "
                f"| {down:,.0f} | {down_wire:,.0f} | {down_wire / down - 1:.1%} |"
            )
        return
    waiting, rounds = echoed(arguments.sites, arguments.rounds, arguments.bytes)
    print("| way | message (bytes) | on the wire in a round | more | in a second of waiting | without waiting | more |")
    print("|---|---|---|---|---|---|---|")
    for way, column in (("up", 1), ("down", 2)):
        wire = statistics.median(each[column] for each in rounds)
        rest = statistics.median(each[column] - each[0] * waiting[column - 1] for each in rounds)
        print(
            f"| {way} | {arguments.bytes:,} | {wire:,.0f} | {wire / arguments.bytes - 1:.1%} "
            f"| {waiting[column - 1]:,.0f} | {rest:,.0f} | {rest / arguments.bytes - 1:.1%} |"
        )


if __name__ == "__main__":
    main()
