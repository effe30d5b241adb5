"""Seconds per round: fedsa beside plain PEFT loops and Flower's simulation, and beside what the machine can do.

    python benchmarks/speed.py --flower-python FLOWER/bin/python

MiniLM-L6 with LoRA (r 8, alpha 16, dropout 0.05, on query and value) and a linear head; AdamW at 2e-3, gradients not
clipped. Three parts:

- ``main``: 3 clients × 10 steps × batch 32.
- ``many``: 32 clients × 10 steps × batch 1.
- ``overhead``: 10 clients × 10 steps × batch 32; fedsa alone: the part of a round that is not training or evaluation by
  the run's own figures, and the part that is not forward, backward or optimiser step by timers around those: the
  second has padding, metrics, copying, checking, reading and writing in it.

Rows are SST-2 phrases, from ``$FEDSA_DATA/glue/SST-2/{train,dev}.tsv``; without FEDSA_DATA those of ``part:sentiment``.
After every round each client is evaluated on its own part of the 872 dev rows, which are shared out: a round evaluates
each of them once.

All rows of a table have the same clients, batches of the same rows in the same order, the same initial tensors and the
same way of averaging (A over the clients; B and the head stay), so that their losses can be compared; what the dropout
draws differs. They have the same number of threads, and the GOMP_SPINCOUNT and GLIBC_TUNABLES of the ``fedsa`` command
(see docs/decisions/0004 and 0013). Loading and tokenising are done before the first round and not counted. Padding is
counted. Evaluation is in batches of 64, the loops' in the order of the rows; fedsa sorts them by length. Only fedsa
writes to disk, and that is counted: its round ends when it is safe there. Its measurement on test after the last round
is not.

Each run is a process of its own, all are repeated in turn (``--repeat``). The first round of each run is a warm-up and
left out; a run's figure is the mean of its other rounds, a table's the median over runs with the range. Peak memory is
the process's own; of Flower, the sum over its processes, in which pages that they share count more than once. Where a
row was run in several ways, the table has the fastest, and what the others took stands below it.

The limit is the time that the matrix products of one round would take on real tokens alone (no padding; forward,
and backward as far as something is trained below) at the highest bf16 GEMM rate of this machine on the model's own
shapes, measured as often as each row. A row's share is the limit divided by its seconds.

Flower lives in an environment of its own, since its pins do not go with ours; without it its row is left out:

    python3 -m venv FLOWER
    FLOWER/bin/pip install "flwr[simulation]==1.41.0" torch==2.13.0 transformers==5.23.0 peft==0.21.2 safetensors

``--device cuda`` puts everything but the rows on the GPU (Flower's rows are left out); ``--model`` names another base.

Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import speed_loops
import torch

SIZES = {"main": (3, 10, 32), "many": (32, 10, 1), "overhead": (10, 10, 32)}  # clients, steps, rows in a batch
LOOPS = {
    "padded": speed_loops.Loop(width=speed_loops.MAX_LENGTH, bf16=False, attention="eager"),
    "dynamic": speed_loops.Loop(width=None, bf16=False, attention="eager"),
    "bf16-eager": speed_loops.Loop(width=None, bf16=True, attention="eager"),
    "bf16-sdpa": speed_loops.Loop(width=None, bf16=True, attention="sdpa"),
}
FLOWER = ("flower-one", "flower-several")
FEDSA: dict[str, tuple[str, dict[str, Any]]] = {  # row to its title, and its settings in [training]
    "fedsa-sequential": ("fedsa, one client at a time, bf16", {"trainer": "sequential"}),
    "fedsa-cohort": ("fedsa, in cohorts, bf16", {"trainer": "cohort"}),
}
ROWS = {
    "main": (*LOOPS, *FLOWER, *FEDSA),
    "many": ("bf16-eager", "bf16-sdpa", *FEDSA),
    "overhead": tuple(FEDSA),
}
TITLES = {
    "padded": "plain PEFT loop, padded to 128, fp32, eager",
    "dynamic": "plain PEFT loop, dynamic padding, fp32, eager",
    "bf16-eager": "plain PEFT loop, dynamic padding, bf16, eager",
    "bf16-sdpa": "plain PEFT loop, dynamic padding, bf16, sdpa",
    "flower-one": "Flower simulation, one client at a time on all threads, bf16",
    "flower-several": "Flower simulation, as many clients at once as threads, bf16",
    **{name: title for name, (title, _) in FEDSA.items()},
}
SHOW_FASTEST = (("bf16-eager", "bf16-sdpa"), FLOWER)  # of each group the table has one row
SPIN_COUNT = "20000"
SAMPLE_SECONDS = 0.5


# -- one run, in a process of its own --------------------------------------------------------------------------------


def run_row(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one run; only what a row needs is imported, for Flower's Python has no fedsa."""
    torch.set_num_threads(options.threads)
    if name in FLOWER:
        from speed_flower import run_flower

        return run_flower(folder, options.threads, at_once=1 if name == "flower-one" else options.threads)
    if name in LOOPS:
        loop = replace(LOOPS[name], device=options.device)
        figures = speed_loops.run_loop(speed_loops.read_work(folder), loop)
        return {**figures, "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    from speed_fedsa import Machine, Size, limit, prepare, run_fedsa

    size, machine = Size(*SIZES[options.parts[0]]), Machine(options.device, options.threads, options.model)
    if name == "prepare":
        return prepare(folder, size, options.rounds, machine)
    if name == "limit":
        return limit(folder, options.device)
    return run_fedsa(folder, size, options.rounds, machine, FEDSA[name][1])


def start_row(name: str, part: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a row in a process of its own and return its figures."""
    from fedsa.system.process import MALLOC_TUNABLES

    folder = Path(tempfile.mkdtemp(dir=work))
    python = options.flower_python if name in FLOWER else sys.executable
    command = [python, __file__, "--row", name, "--parts", part]
    command += ["--work", str(work / part), "--result", str(folder / "result.json")]
    command += ["--threads", str(options.threads), "--rounds", str(options.rounds)]
    command += ["--device", options.device, "--model", options.model]
    environment = {
        **os.environ,
        "GOMP_SPINCOUNT": SPIN_COUNT,
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", MALLOC_TUNABLES),
        "OMP_NUM_THREADS": str(options.threads),
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "FLWR_HOME": str(work / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    environment.pop("OMP_WAIT_POLICY", None)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        peak = watch_memory(process) if name in FLOWER else 0
        process.wait()
    if process.returncode or not (folder / "result.json").exists():
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}\n{(folder / 'log').read_text()}")
    return {"peak_rss": peak, **json.loads((folder / "result.json").read_text(encoding="utf-8"))}


def watch_memory(process: subprocess.Popen[bytes]) -> int:
    """Return the most memory that a process and all below it held together, sampled until it ends."""
    import psutil

    peak = 0
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            held = 0
            for each in (parent, *parent.children(recursive=True)):
                held += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        peak = max(peak, held)
        time.sleep(SAMPLE_SECONDS)
    return peak


# -- figures ---------------------------------------------------------------------------------------------------------


def steady(run: Mapping[str, Any], phase: str) -> float:
    """Return a run's mean seconds per round, without its first round."""
    return statistics.mean(run["seconds"][phase][1:])


def median(runs: list[dict[str, Any]], phase: str = "round") -> float:
    """Return the median over runs of their seconds per round."""
    return statistics.median(steady(run, phase) for run in runs)


def table(results: Mapping[str, list[dict[str, Any]]], limit: float) -> str:
    """Return the Markdown table of one part.

    Args:
        results: row to its runs.
        limit: seconds of a round.
    """
    hidden = set()
    for group in SHOW_FASTEST:
        there = [name for name in group if name in results]
        fastest = min(there, key=lambda name: median(results[name]), default=None)
        hidden |= {name for name in there if name != fastest}
    shown = {name: runs for name, runs in results.items() if name not in hidden}
    base = median(next(iter(shown.values())))
    lines = [
        "| | train, s | evaluation, s | the rest, s | round, s (range) | speed, first row = 1 | share of the limit "
        "| training loss by round | accuracy | peak RSS, MiB | peak on the device, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in shown.items():
        each, whole = [steady(run, "round") for run in runs], median(runs)
        train, evaluation = median(runs, "train"), median(runs, "evaluation")
        rest = statistics.median(
            steady(run, "round") - steady(run, "train") - steady(run, "evaluation") for run in runs
        )
        cells = [
            TITLES[name],
            f"{train:.2f}",
            f"{evaluation:.2f}",
            f"{rest:.3f}",
            f"{whole:.2f} ({min(each):.2f}–{max(each):.2f})",
            f"{base / whole:.2f}",
            f"{100 * limit / whole:.1f} %",
            ", ".join(f"{statistics.mean(losses):.3f}" for losses in zip(*(run["loss"] for run in runs), strict=True)),
            f"{100 * statistics.mean(run['accuracy'][-1] for run in runs):.1f} %",
            f"{statistics.median(run['peak_rss'] for run in runs) / 2**20:.0f}",
            f"{statistics.median(run.get('peak_device', 0) for run in runs) / 2**20:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    first = ", ".join(
        f"{name} {statistics.median(run['seconds']['round'][0] for run in runs):.2f}" for name, runs in results.items()
    )
    lines += ["", f"The first round, which is left out above, took (s): {first}."]
    if hidden:
        slower = ", ".join(f"{TITLES[name]}: {median(results[name]):.2f} s" for name in sorted(hidden))
        lines += ["", f"Not in the table, for they were slower: {slower}."]
    return "\n".join(lines)


def overhead(results: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the parts of a round that are neither training nor evaluation, and neither forward, backward nor step."""
    lines = [
        "| | round, s | train, s | evaluation, s | not training or evaluation | not forward, backward or step "
        "| peak RSS, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        rests = [
            [1 - sum(steady(run, phase) for phase in phases) / steady(run, "round") for run in runs]
            for phases in (("train", "evaluation"), ("computing",))
        ]
        cells = [
            TITLES[name],
            *(f"{median(runs, phase):.2f}" for phase in ("round", "train", "evaluation")),
            *(f"{100 * statistics.median(rest):.2f} % ({100 * min(rest):.2f}–{100 * max(rest):.2f})" for rest in rests),
            f"{statistics.median(run['peak_rss'] for run in runs) / 2**20:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(part: str, prepared: Mapping[str, Any]) -> str:
    """Return what a part is."""
    clients, steps, batch = SIZES[part]
    return (
        f"{clients} clients × {steps} steps × batch {batch} of {prepared['rows']} (mean {prepared['train_tokens']:.1f} "
        f"tokens); evaluation on {prepared['evaluation_rows']} rows in all (mean {prepared['evaluation_tokens']:.1f} "
        "tokens), each client on its own part of them."
    )


def find_limit(limits: list[dict[str, Any]]) -> tuple[str, float]:
    """Return what the limit comes from, and the seconds of a round's operations at the highest rate of all runs."""
    train, evaluation = (limits[0][phase] / 1e12 for phase in ("train_flops", "evaluation_flops"))
    rates = {
        tokens: max(run["flops_per_second"][tokens] for run in limits) / 1e12
        for tokens in limits[0]["flops_per_second"]
    }
    seconds = (train + evaluation) / max(rates.values())
    shown = ", ".join(f"{tokens}: {rate:.3f}" for tokens, rate in rates.items())
    return (
        f"bf16 GEMM rate in TFLOP/s, by number of tokens: {shown}. One round needs {train:.3f} TFLOP for training and "
        f"{evaluation:.3f} for evaluation; limit: {seconds:.2f} s."
    ), seconds


def main() -> None:
    """Run everything in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rows", nargs="+", default=list(TITLES), choices=TITLES, help="leave out the others")
    parser.add_argument("--flower-python", help="the Python of an environment with flwr 1.41 and Ray")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each row")
    parser.add_argument("--rounds", type=int, default=3, help="of each run; the first is a warm-up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="part:all-minilm-l6-v2", help="another encoder with query and value layers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--row", help="used by this script itself: one run in this process")
    parser.add_argument("--work", type=Path, help="used by this script itself")
    parser.add_argument("--result", type=Path, help="used by this script itself")
    options = parser.parse_args()
    if options.row:
        figures = run_row(options.row, options.work, options)
        if options.device != "cpu":
            figures["peak_device"] = torch.cuda.max_memory_allocated()
        options.result.write_text(json.dumps(figures), encoding="utf-8")
        return
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, for the first is a warm-up")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"python {shlex.join(sys.argv)}\n")
    print(f"{device}, {options.threads} threads, {options.repeat} runs of {options.rounds} rounds")
    if not options.flower_python:
        print("Flower is left out: give --flower-python (see --help)")
    everything: dict[str, Any] = {"threads": options.threads, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as place:
        for part in options.parts:
            names = [name for name in ROWS[part] if name in options.rows]
            if not options.flower_python or options.device != "cpu":
                names = [name for name in names if name not in FLOWER]
            if names:
                everything[part] = run_part(part, names, Path(place), options)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def run_part(part: str, names: list[str], work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the named rows of a part in turn, print its table and return all figures."""
    prepared, limits = start_row("prepare", part, work, options), []
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(options.repeat):
        if part != "overhead":
            limits.append(start_row("limit", part, work, options))
        for name in names:
            results[name].append(start_row(name, part, work, options))
            seconds = steady(results[name][-1], "round")
            print(f"{part}, run {repeat + 1}, {name}: {seconds:.2f} s a round", file=sys.stderr, flush=True)
    print(f"\n## {part}\n\n{describe(part, prepared)}\n")
    if part == "overhead":
        print(overhead(results), flush=True)
    else:
        text, seconds = find_limit(limits)
        print(f"{text}\n\n{table(results, seconds)}", flush=True)
    return {"prepared": prepared, "limits": limits, "runs": results}


if __name__ == "__main__":
    main()
