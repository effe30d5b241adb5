"""Compare the speed of two checkouts of fedsa, round by round in turn, so that a machine that drifts slows both.

    python benchmarks/two_trees.py OLD_CHECKOUT NEW_CHECKOUT --rounds 10
    python benchmarks/two_trees.py OLD NEW --recipe quickstart --set training.trainer=sequential

Each checkout has a process of its own that stops after every round and lets the other go on: of the two, one computes
at a time. The first rounds are left out (``--skip``): in them memory is laid out and heads are warmed up. Printed are
both trees' seconds of training, of whole rounds and of the processor for each round, and the ratios of their sums, new
over old.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, cast

_RUN = """
import sys, json, time
from fedsa.api import run
from fedsa.callbacks import Callback
from fedsa.federation import Federation
from fedsa.recipe import apply_overrides, parse_recipe, read_recipe

class InTurn(Callback):
    begun = None

    def on_round_end(self, round, lines, validation):
        if self.begun is not None:
            seconds, processor = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
            training = sum(line["train"]["seconds"] for line in lines if line["train"])
            print(json.dumps({"round": round, "training": training, "round_seconds": seconds, "processor": processor}))
        else:
            print(json.dumps({"round": round}))
        sys.stdout.flush()
        sys.stdin.readline()
        self.begun = time.perf_counter(), time.process_time()

data, name = read_recipe(sys.argv[1])
federation = Federation.from_recipe(parse_recipe(apply_overrides(data, sys.argv[3:])))
run(federation, sys.argv[2], callbacks=[InTurn()])
"""


def main() -> None:
    """Run both trees in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar="CHECKOUT", help="the old one, then the new one")
    parser.add_argument("--recipe", default="quickstart", help="name or file (default: quickstart)")
    parser.add_argument("--rounds", type=int, default=10, help="of each run (default: 10)")
    parser.add_argument("--skip", type=int, default=2, help="first rounds that are not counted (default: 2)")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of both runs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs = [_begun(tree, asked, Path(place) / str(number)) for number, tree in enumerate(asked.trees)]
        for run in runs:  # round 0, the evaluation before any training
            _line(run)
        sums = [dict.fromkeys(("training", "round_seconds", "processor"), 0.0) for _ in runs]
        for round in range(1, asked.rounds + 1):
            for number in (0, 1) if round % 2 else (1, 0):
                _go_on(runs[number])
                line = _line(runs[number])
                print("old" if number == 0 else "new", json.dumps(line), flush=True)
                if round > asked.skip:
                    for name in sums[number]:
                        sums[number][name] += line[name]
        for run in runs:
            run.kill()
    for name, old in sums[0].items():
        print(f"{name}: old {old:.2f} s, new {sums[1][name]:.2f} s, new over old {sums[1][name] / old:.4f}")


def _begun(tree: Path, asked: argparse.Namespace, out: Path) -> subprocess.Popen[str]:
    settings = [f"rounds={asked.rounds}", *asked.settings]
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, asked.recipe, str(out), *settings],
        env={**os.environ, "PYTHONPATH": str(tree.resolve() / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(run: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a run says of its next round.

    Raises:
        SystemExit: it has ended.
    """
    for text in cast(IO[str], run.stdout):
        if text.startswith("{"):
            line: dict[str, Any] = json.loads(text)
            return line
    raise SystemExit(f"a run has ended with exit code {run.wait()}")


def _go_on(run: subprocess.Popen[str]) -> None:
    pipe = cast(IO[str], run.stdin)
    pipe.write("\n")
    pipe.flush()


if __name__ == "__main__":
    main()
