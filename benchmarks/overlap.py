"""What rounds that overlap save, and what they cost, where one client is slow: in the simulator, with its clock.

    python benchmarks/overlap.py quickstart --slow 4 --buffer 8 --buffer 7 --seed 0 --out runs/overlap
    python benchmarks/overlap.py quickstart --slow 4 --buffer 7 --rounds 32 --seed 0 --out runs/overlap

The client ``--client`` takes ``--slow`` times as long for a step as each of the others. A buffer of all clients
is the run without overlap, byte for byte. The unit of time is one step of a fast client. A row of the table: the time
until the last round but one has ended (the last one waits for all), rounds in a thousand units of it, accuracy on test
after the final round (of all clients, and of the slow one), and by how many rounds its updates came late. All are means
over the seeds. Runs that are finished are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Figures(NamedTuple):
    """What a run comes to.

    Attributes:
        time: simulated, until its last round but one has ended.
        rounds: that have ended by then.
        accuracy: on test after the final round: the weighted mean over clients.
        slow: the slow client's own.
        late: rounds by which the slow client's updates came late, on average.
    """

    time: float
    rounds: int
    accuracy: float
    slow: float
    late: float


def run(recipe: str, settings: list[str], out: Path) -> None:
    """Run a recipe into a folder, if it is not there yet."""
    if (out / "summary.json").exists():
        return
    words = [word for setting in settings for word in ("--set", setting)]
    fedsa = [sys.executable, "-m", "fedsa"]
    command = [*fedsa, "run", recipe, "--out", str(out), *words]
    if (out / "state.json").exists():
        command = [*fedsa, "resume", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def figures(out: Path, slow: str) -> Figures:
    """Return what a finished run came to, of all clients and of the slow one."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metric, before = summary["metric"], summary["rounds"] - 1
    late = [line["staleness"] for line in lines if line["client"] == slow and line["train"]]
    return Figures(
        max(line["clock"] for line in lines if line["round"] == before),
        before,
        summary["test_final"]["weighted_mean"],
        summary["per_client"][slow]["test_final"][metric],
        float(np.mean(late)),
    )


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--slow", type=float, default=4.0, help="how many times as long the slow client takes")
    parser.add_argument("--buffer", type=int, action="append", required=True)
    parser.add_argument("--rounds", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, action="append", required=True)
    parser.add_argument("--client", default="amazon-1", help="the slow client (quickstart has one of this name)")
    parser.add_argument("--set", action="append", default=[], help="further settings of the recipe")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print("| buffer | rounds | time | rounds in 1,000 | accuracy | slow client's | its updates late by |")
    print("|---|---|---|---|---|---|---|")
    for buffer in given.buffer:
        each = []
        for seed in given.seed:
            rounds = [f"rounds={given.rounds}"] if given.rounds else []
            overlap = f"overlap={{kind='buffered', buffer={buffer}, paces={{'{given.client}'={given.slow}}}}}"
            out = given.out / f"{given.recipe}-{buffer}-{given.rounds or 'all'}-{given.slow:g}-{seed}"
            run(given.recipe, [f"seed={seed}", "compute.threads=1", overlap, *rounds, *given.set], out)
            each.append(figures(out, given.client))
        mean = Figures(*np.mean(each, axis=0))
        print(
            f"| {buffer} | {mean.rounds + 1:.0f} | {mean.time:.0f} | {1000 * mean.rounds / mean.time:.0f} "
            f"| {mean.accuracy:.1%} | {mean.slow:.1%} | {mean.late:.1f} |"
        )


if __name__ == "__main__":
    main()
