"""Rounds that a recipe and plain SGD need to the same accuracy.

    python benchmarks/rounds_to_accuracy.py quickstart --seed 0 --seed 1 --out runs/rounds

For each recipe: runs as the recipe has it, whose validation accuracy at the end is the mark; its rounds to 90 % of
the mark are counted on validation, which is measured after every round. Then SGD without momentum, at a constant rate,
without a warm-up of the head, for ``--times`` as many rounds as the recipe needed. Its rate is the one of ``--rates``
that is there first at the first seed (where none is, the one that comes closest). Curves are means over the seeds; runs
of one seed have the same split, initial tensors and batches; gradients are clipped as the recipe says. ``--warm`` also
gives SGD the recipe's warm-up of the head, at its best rate, to tell what that is worth by itself. Runs that are
finished are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np


def curve(recipe: str, settings: list[str], out: Path) -> list[float]:
    """Return a run's weighted validation mean after each round, the initial one first; run it if it is not there."""
    fedsa = [sys.executable, "-m", "fedsa"]
    if not (out / "summary.json").exists():
        started = (out / "state.json").exists()
        words = [word for setting in settings for word in ("--set", setting)]
        command = [*fedsa, "resume", str(out)] if started else [*fedsa, "run", recipe, "--out", str(out), *words]
        out.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        (out.parent / f"{out.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            print(f"{out.name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return []
    metric = json.loads((out / "summary.json").read_text(encoding="utf-8"))["metric"]
    rows: dict[int, list[tuple[float, int]]] = defaultdict(list)
    with (out / "metrics.jsonl").open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            found = entry.get("validation")
            if found is not None:
                rows[entry["round"]].append((found[metric], found["examples"]))
    return [
        sum(value * examples for value, examples in rows[round]) / sum(examples for _, examples in rows[round])
        for round in sorted(rows)
    ]


def rounds_to(mark: float, values: list[float]) -> int | None:
    """Return the first round after which the mark is met."""
    return next((round for round, value in enumerate(values) if round and value >= mark), None)


def mean(curves: list[list[float]]) -> list[float]:
    """Return the mean of curves of one length; nothing where a run failed."""
    return np.mean(curves, axis=0).tolist() if all(curves) else []


def compare(recipe: str, name: str, options: argparse.Namespace) -> None:
    """Run one recipe and SGD, and print its row."""
    seeds: list[int] = options.seeds or [0]
    always = ["compute.threads=1", "evaluation.evaluate_every=1", *options.extra]

    def runs(what: str, seeds: list[int], settings: list[str]) -> list[float]:
        out = options.out / f"{name}-{what}"
        return mean([curve(recipe, [*always, *settings, f"seed={seed}"], Path(f"{out}-{seed}")) for seed in seeds])

    ours = runs("recipe", seeds, [])
    if not ours:
        raise SystemExit(f"{name}: a run of the recipe failed")
    mark, first = options.share * ours[-1], options.share * runs("recipe", seeds[:1], [])[-1]
    needed = rounds_to(mark, ours)
    if needed is None:
        raise SystemExit(f"{name}: the recipe does not reach its mark")
    rounds = round(options.times * needed)

    def sgd(what: str, seeds: list[int], rate: float, *more: str) -> list[float]:
        rates = [f"training.learning_rate={rate:g}", f"training.head_learning_rate={rate:g}"]
        plain = ["training.optimizer=sgd", "training.schedule=constant", "training.warmup_fraction=0.0"]
        plain += ["training.optimizer_state=reset", f"rounds={rounds}"]
        return runs(f"{what}{rate:g}-{rounds}rounds", seeds, [*plain, *rates, *more])

    cold = "training.head_warmup_epochs=0"
    tried = {rate: sgd("sgd", seeds[:1], rate, cold) for rate in options.rates}
    if not any(tried.values()):
        raise SystemExit(f"{name}: SGD failed at every rate")
    best = min(
        (rate for rate, values in tried.items() if values),
        key=lambda rate: (rounds_to(first, tried[rate]) or rounds + 1, -max(tried[rate])),
    )
    slow = sgd("sgd", seeds, best, cold)
    found = rounds_to(mark, slow)
    ratio = f"{needed / found:.2f}" if found else f"< {needed / rounds:.2f}" if slow else "a run failed"
    cells = [name, f"{100 * ours[-1]:.1f}", f"{100 * mark:.1f}", str(needed)]
    cells += [str(found) if found else f"> {rounds}", ratio]
    if options.warm:
        cells.append(str(rounds_to(mark, sgd("warm-sgd", seeds, best)) or f"> {rounds}"))
    each = (f"{rate:g}: {100 * max(values):.1f}" if values else f"{rate:g}: failed" for rate, values in tried.items())
    cells.append(f"{', '.join(each)}; {best:g} is taken")
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.2, 0.5, 1.0, 2.0], help="of SGD")
    parser.add_argument("--times", type=float, default=6, help="as many rounds of SGD as the recipe needs, at most")
    parser.add_argument("--share", type=float, default=0.9, help="of the recipe's last accuracy: the mark")
    parser.add_argument("--seed", dest="seeds", type=int, action="append", default=None)
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", help="in place of the recipe's, in the folders and the table")
    parser.add_argument("--warm", action="store_true", help="also SGD with the recipe's warm-up of the head")
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"))
    options = parser.parse_args()
    columns = ["recipe", "it ends at", "mark", "its rounds", "SGD's rounds", "ratio"]
    columns += ["SGD's, head warmed up"] * options.warm + ["SGD's best validation at each rate, first seed"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for recipe in options.recipes:
        compare(recipe, options.name or Path(recipe).stem, options)


if __name__ == "__main__":
    main()
