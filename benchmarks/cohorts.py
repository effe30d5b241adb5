"""How many clients in one pass pay, and whether two processes of one thread beat one process of two.

    python benchmarks/cohorts.py

Trains MiniLM with LoRA on the packaged sentiment rows, for several batch sizes with several cohort sizes: the seconds
of ten steps of every client, and the ratio to clients one at a time (`trainer = "sequential"`). Then the same number of
clients is trained by one process with all threads, and by as many processes as there are threads with one thread each.
Each figure is the median of ``--repeat`` rounds after one to warm up, in a process of its own. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

STEPS = 10


def measure(batch_size: int, size: int, clients: int, threads: int, repeat: int, start: float = 0.0) -> dict[str, Any]:
    """Return the seconds in which ``clients`` train ten steps each, and the peak memory.

    Args:
        batch_size: rows of a client's step.
        size: clients in one pass; 0: the sequential trainer.
        clients: how many train.
        threads: of this process.
        repeat: rounds that are measured.
        start: begin to measure at this time, so that processes run side by side.
    """
    import torch

    from fedsa.client.training import cohort, sequential
    from fedsa.client.training.job import Job
    from fedsa.federation import Federation
    from fedsa.recipe import apply_overrides, parse_recipe, read_recipe
    from fedsa.system.process import peak_rss_bytes

    data, _ = read_recipe("quickstart")
    trainer = ["training.trainer=cohort", f"training.cohort_size={size}"] if size else ["training.trainer=sequential"]
    settings = [f"training.batch_size={batch_size}", f"training.local_steps={STEPS}", f"compute.threads={threads}"]
    settings += ["training.optimizer_state=reset", "training.warmup_fraction=0.1"]
    recipe = parse_recipe(apply_overrides(data, [*trainer, *settings, "data.partition.max_examples=600"]))
    federation = Federation.from_recipe(recipe)
    torch.set_num_threads(threads)
    holders = sorted(federation.rows.partition.clients.items())
    model, chosen = federation.model, federation.recipe.training
    common: Any = {"model": model, "task": federation.task, "encoded": federation.encoded, "settings": chosen}

    def train(round: int) -> None:
        jobs = [
            Job(f"{number}", round, 100, 0, model.initial, model.keys, (), {}, holders[number % len(holders)][1].train)
            for number in range(clients)
        ]
        if size:
            for first in range(0, clients, size):
                cohort.train(jobs[first : first + size], **common, pack=bool(chosen.packing))
        else:
            for job in jobs:
                sequential.train(job, **common)

    train(1)
    time.sleep(max(0.0, start - time.time()))
    seconds = []
    for round in range(2, repeat + 2):
        started = time.perf_counter()
        train(round)
        seconds.append(time.perf_counter() - started)
    return {"seconds": median(seconds), "peak_rss_bytes": peak_rss_bytes()}


def in_processes(count: int, threads: int, *arguments: int, wait: float = 0.0) -> list[dict[str, Any]]:
    """Return the measures of ``count`` processes that run side by side."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "20000"}
    batch_size, size, clients, repeat = arguments
    words = [batch_size, size, clients, threads, repeat, time.time() + wait]
    command = [sys.executable, __file__, "--measure", *[str(word) for word in words]]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{' '.join(command)} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        *whole, start = given.measure
        batch_size, size, clients, threads, repeat = (int(word) for word in whole)
        print(json.dumps(measure(batch_size, size, clients, threads, repeat, float(start))))
        return
    print(f"{STEPS} steps of every client, {given.threads} threads\n")
    print("| batch | clients | cohort | seconds | times one at a time | peak, MiB |\n|---|---|---|---|---|---|")
    for batch_size, clients, sizes in ((1, 32, (0, 1, 8, 32)), (4, 16, (0, 1, 4, 8, 16)), (32, 8, (0, 1, 2, 4, 8))):
        alone = 0.0
        for size in sizes:
            (got,) = in_processes(1, given.threads, batch_size, size, clients, given.repeat)
            alone = alone or got["seconds"]
            cohort = size or "sequential"
            figures = f"{got['seconds']:.2f} | {alone / got['seconds']:.1f} | {got['peak_rss_bytes'] / 2**20:.0f}"
            print(f"| {batch_size} | {clients} | {cohort} | {figures} |", flush=True)
    print("\n| batch | clients | processes × threads | seconds |\n|---|---|---|---|")
    for batch_size, clients, size in ((1, 32, 16), (32, 8, 2)):
        for processes, threads in ((1, given.threads), (given.threads, 1)):
            each = clients // processes
            got = in_processes(processes, threads, batch_size, min(size, each), each, given.repeat, wait=40.0)
            slowest = max(one["seconds"] for one in got)
            print(f"| {batch_size} | {clients} | {processes} × {threads} | {slowest:.2f} |", flush=True)


if __name__ == "__main__":
    main()
