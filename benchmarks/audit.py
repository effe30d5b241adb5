"""The table of docs/audit.md: what A alone, B alone and both tell, by every attack, with and without protection.

The run is that of the recipe quickstart, on the packaged model and data. Each line is printed as soon as it is there,
and kept in a file, so that a part of the attacks can be made at a time.

    python benchmarks/audit.py [--run RUN] [--attack NAME ...] [--clients 4] [--rows 100] [--texts 3] [--steps 80]
        [--rank 8] [--keep FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fedsa
from fedsa.recipe import ExamplePrivacySettings, apply_overrides, parse_recipe, read_recipe
from fedsa.runs.audit import ATTACKS, Finding, Subject
from fedsa.runs.audit.canaries import canaries
from fedsa.runs.audit.membership import of_adapters, of_updates
from fedsa.runs.audit.rebuilding import Rebuilder
from fedsa.runs.audit.source import source
from fedsa.runs.audit.training import OneStep, Training, train_again

EPSILON, DELTA = 8.0, 1e-4
PRIVATE = ExamplePrivacySettings(target_epsilon=EPSILON, target_delta=DELTA, clipping_norm=1.0)
ONE, TEN = Training(1, 8, "sgd"), Training(10, 8, "adamw")
WHOLE = Training(80, 8, "adamw")
"""As many steps as a client of the quickstart takes in its eight rounds."""


def protected(how: Training) -> Training:
    """The same training with differential privacy of each row."""
    return replace(how, privacy=PRIVATE)


def of_source(subject: Subject) -> Iterator[Finding]:
    """Whose updates are: of one step and of ten, without and with protection. A sum has no single source."""
    for how in (ONE, TEN, protected(ONE), protected(TEN)):
        yield from source(subject, [how], rounds=3)


def of_membership(subject: Subject, steps: int) -> Iterator[Finding]:
    """Rows in adapters and in updates. Adapters with privacy are trained anew, each by itself, from the run's start."""
    plain = of_adapters(subject, {client: subject.state(client) for client in subject.clients})
    yield plain
    how = protected(replace(WHOLE, steps=steps))
    trained = {
        client: train_again(
            subject,
            client,
            subject.start(client),
            subject.federation.rows.partition.clients[client].train,
            how,
            "whole",
        )
        for client in subject.clients
    }
    yield of_adapters(subject, trained, how, control=plain.control)
    summed = replace(subject, summed=True)
    for seen, update in (
        (subject, ONE),
        (subject, TEN),
        (subject, protected(ONE)),
        (subject, protected(TEN)),
        (summed, ONE),
        (summed, TEN),
    ):
        yield from of_updates(seen, seen.clients, update)


def of_rebuilding(subject: Subject, texts: int) -> Iterator[Finding]:
    """Texts from updates, from the easiest to what a run really sends."""
    rebuilder = Rebuilder.of(subject)
    parts = list(subject.parts())
    summed = replace(rebuilder, subject=replace(subject, summed=True))
    dropping = replace(OneStep, dropout=True)
    adam = Training(1, 1, "adamw")
    batch = replace(TEN, steps=1, optimizer="sgd")
    for each, how, count in (
        (rebuilder, OneStep, texts),
        (rebuilder, dropping, texts),
        (rebuilder, adam, texts),
        (rebuilder, batch, 1),
        (rebuilder, TEN, 1),
        (rebuilder, protected(OneStep), 1),
        (rebuilder, protected(TEN), 1),
        (summed, OneStep, 1),
        (summed, TEN, 1),
    ):
        for part in parts:
            yield each.finding(part, how, texts=count)


def of_canaries(subject: Subject, steps: int) -> Iterator[Finding]:
    """The ε that is proved, without and with privacy."""
    how = replace(WHOLE, steps=steps)
    plain = list(canaries(subject, how))
    yield from plain
    yield from canaries(subject, protected(how), control=plain[0].control)


def run_of(rank: int, place: Path) -> Path:
    """A run of the recipe quickstart with an adapter of a rank."""
    data, _ = read_recipe("quickstart")
    recipe = parse_recipe(apply_overrides(data, [f"adapter.r={rank}", "compute.threads=1"]))
    return fedsa.run(fedsa.Federation.from_recipe(recipe), place, progress=True).path


def as_line(told: dict[str, Any]) -> str:
    """A line of the table."""
    interval = "-" if told["interval"] is None else "{:.2f} to {:.2f}".format(*told["interval"])
    control = "-" if told["control"] is None else f"{told['control']:.2f}"
    cells = (
        told["attack"],
        told["metric"],
        told["update"],
        told["privacy"],
        told["shared"],
        f"{told['score']:.2f}",
        interval,
        f"{told['chance']:.2f}",
        control,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, help="a finished run of quickstart; default: it is made")
    parser.add_argument("--attack", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80, help="of adapters with privacy, and with canaries")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--keep", type=Path, help="a file that gets each finding as a line of JSON")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        path = settings.run or run_of(settings.rank, Path(place) / "run")
        subject = Subject.open(path, most_clients=settings.clients, most_rows=settings.rows)
        print("| attack | metric | update | protection | seen | score | 95 % | chance | control |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        attacks = {
            "source": lambda: of_source(subject),
            "membership": lambda: of_membership(subject, settings.steps),
            "rebuilding": lambda: of_rebuilding(subject, settings.texts),
            "canaries": lambda: of_canaries(subject, settings.steps),
        }
        for name in settings.attack:
            for finding in attacks[name]():
                told = finding.as_dict()
                print(as_line(told), flush=True)
                if settings.keep:
                    with settings.keep.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
