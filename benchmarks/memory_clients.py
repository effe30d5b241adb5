"""Measure how much memory registered clients cost: peak RSS with few and with many of them.

    python benchmarks/memory_clients.py --recipe quickstart --few 10 --many 200 --out runs/memory

Both runs have the same model, the same rows in total (dealt out evenly, ``data.partition.kind = "iid"``) and the same
number of clients that train in a round (``fraction_train``: all of the few, as many of the many), so that only the
number of registered clients differs: their states on disk, their entries in tables, the rows of ``metrics.jsonl``.
Every client is evaluated on its own rows in each round. Each run is a process of its own. The figure is the most
physical memory that the operating system counted for that process (``ru_maxrss`` from ``wait4``), the median over
``--repeat`` runs; the ratio of the two must be below 1.05, else the exit code is 1. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

LIMIT = 1.05


def peak_bytes(recipe: str, settings: list[str], out: Path) -> int:
    """Run a recipe in a process of its own and return the most memory it held, in bytes."""
    command = [sys.executable, "-m", "fedsa", "run", recipe, "--json", "--out", str(out)]
    command += [word for setting in settings for word in ("--set", setting)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(
            f"{shlex.join(command)}: exit code {process.returncode}\n{out.with_suffix('.log').read_text()}"
        )
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart", help="a recipe file or name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--few", type=int, default=10, help="registered clients, all of which train in each round")
    parser.add_argument("--many", type=int, default=200, help="registered clients, of which as many train")
    parser.add_argument("--min-examples", type=int, default=3, help="fewest rows of a client")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    parser.add_argument("--out", type=Path, default=Path("runs/memory"), help="a new folder for all runs")
    options = parser.parse_args()
    print(f"python {shlex.join(sys.argv)}\n", flush=True)
    if options.out.exists() and any(options.out.iterdir()):
        raise SystemExit(f"{options.out} is not empty: give --out a new folder")

    print("| registered | trained per round | rows in all | peak RSS, MiB |\n|---|---|---|---|", flush=True)
    medians = []
    for clients in (options.few, options.many):
        peaks = []
        for repeat in range(options.repeat):
            out = options.out / f"clients-{clients}-{repeat}"
            settings = [
                f"data.partition={{kind = 'iid', clients = {clients}, min_examples = {options.min_examples}}}",
                f"fraction_train={options.few / clients}",
                *options.set,
            ]
            peaks.append(peak_bytes(options.recipe, settings, out))
        about = json.loads((out / "clients.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        trained = sum(line["round"] == 1 and line["train"] is not None for line in lines)
        rows = sum(count for entry in about.values() for count in entry["labels"].values())
        shown = f"{statistics.median(peaks) / 2**20:.1f} ({', '.join(f'{peak / 2**20:.1f}' for peak in peaks)})"
        print(f"| {clients} | {trained} | {rows} | {shown} |", flush=True)
        medians.append(statistics.median(peaks))
    ratio = medians[1] / medians[0]
    print(f"\nratio {ratio:.4f}: {options.many} registered clients take {100 * (ratio - 1):+.1f} % of peak memory")
    sys.exit(ratio >= LIMIT)


if __name__ == "__main__":
    main()
