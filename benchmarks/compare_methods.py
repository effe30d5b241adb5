"""Compare methods on one recipe: every method at several learning rates and seeds, the rate chosen on validation.

    python benchmarks/compare_methods.py --out runs/compare

Each cell is one ordinary ``fedsa run`` in a process of its own; a run that is finished already is read, not repeated,
so the command can be interrupted and given again. For each method the rate with the best validation figure (weighted
mean at the chosen round, mean over the tuning seeds) is taken, and the rates are extended by a factor of two where the
best is the lowest or the highest tried; test figures are of the chosen rate alone, over all seeds.
Prints the table as Markdown, and writes it to OUT/table.md and all figures to OUT/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedsa.algorithms import algorithm_names

METHODS = {
    **{name: [f"algorithm={name}"] for name in algorithm_names()},
    "fedit, head local": ["algorithm=fedit", "share_head=false"],
}
"""Every method with its paper's own treatment of the head, and the control for those that keep it local."""


@dataclass(frozen=True)
class Cell:
    """One run: a method, a learning rate, a seed."""

    method: str
    rate: float
    seed: int

    def folder(self, out: Path) -> Path:
        """Return its run folder."""
        return out / f"{self.method.replace(', ', '-').replace(' ', '-')}_lr{self.rate:g}_seed{self.seed}"

    def settings(self) -> list[str]:
        """Return its ``--set`` values."""
        return [*METHODS[self.method], f"training.learning_rate={self.rate:g}", f"seed={self.seed}"]


def run(cell: Cell, recipe: str, extra: list[str], out: Path, threads: int) -> dict[str, Any]:
    """Return a cell's summary, running or resuming it where it is not finished."""
    folder = cell.folder(out)
    fedsa = [sys.executable, "-m", "fedsa"]
    if not (folder / "summary.json").exists():
        if (folder / "state.json").exists():
            command = [*fedsa, "resume", str(folder)]
        else:
            settings = [*cell.settings(), f"compute.threads={threads}", "evaluation.evaluate_after=both", *extra]
            command = [*fedsa, "run", recipe, "--out", str(folder)]
            command += [word for setting in settings for word in ("--set", setting)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        log = folder.with_name(f"{folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            print(f"processor seconds: {used.ru_utime + used.ru_stime:.1f}", file=output)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\n{log.read_text(encoding='utf-8')}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary["processor_seconds"] = _processor_seconds(folder)
    print(f"{folder.name}: validation {summary['chosen_score']:.4f}", file=sys.stderr, flush=True)
    return summary


def _processor_seconds(folder: Path) -> float:
    """Return what a run took of the processor, start and imports included; wall time on a shared machine says little.

    Of a run that was interrupted and resumed it is the last part.
    """
    log = folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8")
    return float(log.rpartition("processor seconds: ")[2])


def spread(values: list[float]) -> str:
    """Return mean ± sample standard deviation over seeds, in percent."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}" if len(values) > 1 else f"{100 * values[0]:.1f}"


def best_rate(method: str, results: dict[Cell, dict[str, Any]]) -> float:
    """Return the learning rate with the best mean validation figure among the results of a method."""
    scores: dict[float, list[float]] = {}
    for cell, summary in results.items():
        if cell.method == method:
            scores.setdefault(cell.rate, []).append(summary["chosen_score"])
    return max(sorted(scores), key=lambda rate: mean(scores[rate]))


def scores(method: str, results: dict[Cell, dict[str, Any]]) -> dict[float, float]:
    """Return a method's mean validation figure at each learning rate that was tried."""
    by_rate: dict[float, list[float]] = {}
    for cell, summary in results.items():
        if cell.method == method:
            by_rate.setdefault(cell.rate, []).append(summary["chosen_score"])
    return {rate: mean(by_rate[rate]) for rate in sorted(by_rate)}


def beyond(found: dict[float, float]) -> float | None:
    """Return the next rate to try where the best so far is the lowest or the highest, else None."""
    rates = list(found)
    best = max(rates, key=lambda rate: found[rate])
    return best / 2 if best == rates[0] else best * 2 if best == rates[-1] else None


def table(chosen: dict[str, float], results: dict[Cell, dict[str, Any]], seeds: list[int]) -> str:
    """Return the Markdown table."""
    lines = [
        "| method | rate | test | before aggregation | worst client | final round | chosen rounds | upload | cpu s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shown = [
        ("test", "weighted_mean"),
        ("test_after_training", "weighted_mean"),
        ("test", "worst"),
        ("test_final", "weighted_mean"),
    ]
    for method, rate in chosen.items():
        runs = [results[Cell(method, rate, seed)] for seed in seeds]
        columns = [spread([summary[which][figure] for summary in runs]) for which, figure in shown]
        rounds = ", ".join(str(summary["chosen_round"]) for summary in runs)
        upload = f"{runs[0]['upload_bytes']:,} B"
        seconds = f"{mean(summary['processor_seconds'] for summary in runs):.0f}"
        lines.append(f"| {' | '.join([method, f'{rate:g}', *columns, rounds, upload, seconds])} |")
    return "\n".join(lines)


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 5e-3, 1e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tuning-seeds", type=int, default=1, help="how many of the seeds the rate is chosen on")
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    seeds, tuning, methods = options.seeds, options.seeds[: options.tuning_seeds], options.methods
    fixed = (options.recipe, options.extra, options.out, options.threads)
    results: dict[Cell, dict[str, Any]] = {}

    def run_all(cells: list[Cell]) -> None:
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = {cell: pool.submit(run, cell, *fixed) for cell in cells if cell not in results}
            results.update({cell: future.result() for cell, future in futures.items()})

    run_all([Cell(method, rate, seed) for seed in tuning for rate in options.rates for method in methods])
    while more := {method: rate for method in methods if (rate := beyond(scores(method, results)))}:
        run_all([Cell(method, rate, seed) for seed in tuning for method, rate in more.items()])
    tried = {method: scores(method, results) for method in methods}
    chosen = {method: max(found, key=lambda rate: found[rate]) for method, found in tried.items()}
    run_all([Cell(method, chosen[method], seed) for seed in seeds for method in methods])
    text = (
        table(chosen, results, seeds)
        + "\n\nrates tried (mean validation figure over the tuning seeds):\n"
        + "".join(
            f"\n- {method}: " + ", ".join(f"{rate:g} ({100 * score:.1f})" for rate, score in found.items())
            for method, found in tried.items()
        )
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    kept = ("chosen_score", "test", "test_final", "test_after_training")
    figures = [
        {"method": cell.method, "rate": cell.rate, "seed": cell.seed, **{key: results[cell][key] for key in kept}}
        for cell in results
    ]
    (options.out / "results.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
