"""Rounds that AdamW and the paper's plain SGD need to the same accuracy.

    python benchmarks/rounds_to_accuracy.py quickstart glue-sst2-small --out runs/rounds

For each recipe: a run as the recipe has it (AdamW), whose validation accuracy at the end is the mark; its rounds to
90 % of the mark are counted on validation, which is measured after every round. Then SGD without momentum, at a
constant rate, for ``--times`` as many rounds as AdamW needed, at each of ``--rates``: the one that is there first
counts, or none. All of the same seed, so of the same split, initial tensors and batches; gradients are clipped as the
recipe says. Runs that are finished are read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path


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
        out.with_suffix(".log").write_text(done.stdout + done.stderr, encoding="utf-8")
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


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.2, 0.5, 1.0, 2.0], help="of SGD")
    parser.add_argument("--times", type=float, default=6, help="as many rounds of SGD as AdamW needs, at most")
    parser.add_argument("--share", type=float, default=0.9, help="of AdamW's last accuracy: the mark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"))
    options = parser.parse_args()
    print(
        "| recipe | mark | AdamW, rounds | SGD, rounds | ratio | SGD's best at each rate |\n|---|---|---|---|---|---|"
    )
    for recipe in options.recipes:
        name = Path(recipe).stem
        always = ["compute.threads=1", "evaluation.evaluate_every=1", f"seed={options.seed}", *options.extra]
        ours = curve(recipe, always, options.out / f"{name}-adamw-{options.seed}")
        mark = options.share * ours[-1]
        needed = rounds_to(mark, ours)
        if needed is None:
            raise SystemExit(f"{name}: AdamW does not stay at its mark")
        rounds = round(options.times * needed)
        tried = {}
        for rate in options.rates:
            settings = ["training.optimizer=sgd", f"training.learning_rate={rate:g}", "training.schedule=constant"]
            settings += ["training.warmup_fraction=0.0", f"rounds={rounds}", *always]
            tried[rate] = curve(recipe, settings, options.out / f"{name}-sgd{rate:g}-{options.seed}")
        reached = [at for values in tried.values() if (at := rounds_to(mark, values)) is not None]
        sgd = min(reached, default=None)
        best = ", ".join(
            f"{rate:g}: {100 * max(values):.1f}" if values else f"{rate:g}: failed" for rate, values in tried.items()
        )
        ratio = f"{needed / sgd:.2f}" if sgd else f"< {needed / rounds:.2f}"
        row = [name, f"{100 * mark:.1f}", str(needed), str(sgd) if sgd else f"> {rounds}", ratio, best]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
