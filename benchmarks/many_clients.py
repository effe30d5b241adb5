"""Measure what registered clients cost: start-up, bookkeeping of a round, and memory, with few and with very many.

    python benchmarks/many_clients.py --few 10 --many 10000 --trained 100 --out runs/many-clients

Three federations on the same rows (short made-up sentences, dealt out evenly), the quickstart's model and adapter:
few registered clients that all train; ``--trained`` clients that all train; many registered clients of which
``--trained`` train in a round and as many are evaluated. Each is a process of its own.

Training and evaluation are stand-ins that cost next to nothing, so that what is left can be seen: aggregation, checks,
reading and writing of states, tables, files. (The first client of a process is trained and evaluated in earnest, so
that the memory this takes is in its peak.) Printed are:

- start-up: seconds from the start of the process to the first round, libraries and tokens of all rows included;
- bookkeeping: seconds of a round beside the stand-ins, the median over rounds, on the clock and of the processor;
- the end: seconds of the summary and of the report, which have a row for every client;
- peak RSS, as the operating system counted it for the process (``ru_maxrss`` from ``wait4``).

The ratio of peak RSS, many to few, must be at most 1.1, else the exit code is 1. ``--train-seconds`` has the stand-in
sleep, and ``--fsync-seconds`` makes the disk slow: does writing hide behind the training? POSIX only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
LIMIT = 1.1
ROWS_EACH = 4
FILLER = ["the", "film", "was", "a", "product", "we", "saw", "it", "today", "very", "service", "plot", "cast", "screen"]
WORDS = {"negative": ["awful", "dull", "poor", "sad"], "positive": ["great", "lovely", "fine", "happy"]}


def write_rows(path: Path, count: int) -> None:
    """Write a CSV of made-up short sentences, the two classes in turn."""
    rng = random.Random(0)
    lines = ["text,label"]
    for number in range(count):
        label = list(WORDS)[number % 2]
        lines.append(
            f"{' '.join([*rng.choices(FILLER, k=5), rng.choice(WORDS[label]), *rng.choices(FILLER, k=3)])},{label}"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class StandIns:
    """What takes the place of training and evaluation, and the time that it took.

    Args:
        train_seconds: how long each client's training sleeps.
        fsync_seconds: how much longer each fsync takes.
    """

    def __init__(self, train_seconds: float, fsync_seconds: float) -> None:
        import torch

        from fedsa.client import learner
        from fedsa.client.training.job import TrainingResult

        self.seconds, self.cpu_seconds = 0.0, 0.0
        train, evaluate, fsync = learner.cohort.train, learner.evaluate, os.fsync
        in_earnest = {"train", "evaluate"}
        noise: dict[Any, Any] = {}

        def fake_train(jobs: Any, **given: Any) -> Any:
            if "train" in in_earnest:
                in_earnest.remove("train")
                return train(jobs, **given)
            return [fake_client(job) for job in jobs]

        def fake_client(job: Any) -> Any:
            started, cpu = time.perf_counter(), time.thread_time()
            if not noise:
                noise.update({key: 1e-3 * torch.randn(job.tensors[key].shape) for key in job.keys})
            tensors = {key: value + noise[key] if key in noise else value for key, value in job.tensors.items()}
            time.sleep(train_seconds)
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self.cpu_seconds += time.thread_time() - cpu
            return TrainingResult(tensors, {}, {"loss": 0.5, "steps": 1, "seconds": seconds})

        def fake_evaluate(model: Any, task: Any, encoded: Any, clients: Any, **options: Any) -> Any:
            if "evaluate" in in_earnest:
                in_earnest.remove("evaluate")
                clients = list(clients)
                yield from evaluate(model, task, encoded, clients[:1], **options)
                clients = clients[1:]
            for client, _, rows in clients:
                yield client, {"examples": len(rows), "accuracy": 0.5, "loss": 0.7}

        def slow_fsync(file: int) -> None:
            time.sleep(fsync_seconds)
            fsync(file)

        learner.cohort.train, learner.evaluate = fake_train, fake_evaluate
        if fsync_seconds:
            os.fsync = slow_fsync


def run_one(options: argparse.Namespace, clients: int, trained: int, out: Path) -> None:
    """Run one federation in this process, and print what was measured as JSON."""
    import fedsa
    from fedsa.callbacks import Callback
    from fedsa.recipe import apply_overrides, parse_recipe, read_recipe

    data, _ = read_recipe("quickstart")
    settings = [
        f"data.path={options.out / 'rows.csv'}",
        f"data.partition={{kind = 'iid', clients = {clients}, min_examples = 3}}",
        f"fraction_train={trained / clients}",
        f"evaluation.fraction_evaluate={trained / clients}",
        f"rounds={options.rounds}",
        "compute.threads=1",
        "training.head_warmup_epochs=0",
        "training.optimizer_state=reset",
        *options.set,
    ]
    recipe = parse_recipe(apply_overrides(data, settings))
    stand_ins = StandIns(options.train_seconds, options.fsync_seconds)

    class Clock(Callback):
        wall: list[float]
        cpu: list[float]

        def on_run_begin(self, run: Any, recipe: Any, clients: Any, finished_rounds: int) -> None:
            self.start_up = time.perf_counter() - STARTED
            self.wall, self.cpu = [], []
            self._begin()

        def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
            self.wall.append(time.perf_counter() - self._wall - stand_ins.seconds)
            self.cpu.append(time.process_time() - self._cpu - stand_ins.cpu_seconds)
            self._begin()

        def _begin(self) -> None:
            stand_ins.seconds = stand_ins.cpu_seconds = 0.0
            self._wall, self._cpu = time.perf_counter(), time.process_time()

    clock = Clock()
    federation = fedsa.Federation.from_recipe(recipe)
    fedsa.run(federation, out, callbacks=[clock])
    measured = {
        "start_up": clock.start_up,
        "wall": statistics.median(clock.wall[2:]),  # not round 0, nor the one with a training in earnest
        "cpu": statistics.median(clock.cpu[2:]),
        "end": time.perf_counter() - clock._wall,
    }
    print(json.dumps(measured))


def measure(options: argparse.Namespace, clients: int, trained: int, repeat: int) -> dict[str, float]:
    """Run one federation in a process of its own, and return what was measured."""
    out = options.out / f"clients-{clients}-{repeat}"
    command = [sys.executable, *sys.argv, "--one", str(clients), str(trained), str(out)]
    log = out.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}\n{log.read_text()}")
    shutil.rmtree(out)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {**json.loads(log.read_text().splitlines()[-1]), "peak": peak}


def main() -> None:
    """Measure all three, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=10, help="registered clients, all of which train in each round")
    parser.add_argument("--many", type=int, default=10_000, help="registered clients, of which --trained train")
    parser.add_argument("--trained", type=int, default=100, help="clients of the many that train in a round")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of each run, at least 2")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the medians are shown")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--train-seconds", type=float, default=0.0, help="how long the stand-in for a training sleeps")
    parser.add_argument("--fsync-seconds", type=float, default=0.0, help="how much longer an fsync takes")
    parser.add_argument("--out", type=Path, default=Path("runs/many-clients"), help="a new folder for all runs")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        clients, trained, out = options.one
        run_one(options, int(clients), int(trained), Path(out))
        return
    print(f"python {shlex.join(sys.argv)}\n", flush=True)
    if options.out.exists() and any(options.out.iterdir()):
        raise SystemExit(f"{options.out} is not empty: give --out a new folder")
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "rows.csv", ROWS_EACH * options.many)

    print(
        "| registered | trained a round | start-up, s | bookkeeping of a round, s (processor) | of a client, ms "
        "| summary and report, s | peak RSS, MiB |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    results = []
    for clients, trained in (
        (options.few, options.few),
        (options.trained, options.trained),
        (options.many, options.trained),
    ):
        runs = [measure(options, clients, trained, repeat) for repeat in range(options.repeat)]
        one = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        results.append(one)
        print(
            f"| {clients} | {trained} | {one['start_up']:.1f} | {one['wall']:.3f} ({one['cpu']:.3f}) "
            f"| {1000 * one['wall'] / trained:.1f} | {one['end']:.1f} | {one['peak'] / 2**20:.1f} |",
            flush=True,
        )
    few, some, many = results
    start_up, peak = (f"{many[name] / few[name]:.3f}" for name in ("start_up", "peak"))
    wall, cpu = (f"{many[name] / some[name]:.2f}" for name in ("wall", "cpu"))
    print(f"\n{options.many} registered clients against {options.few}: start-up × {start_up}, peak RSS × {peak}")
    print(f"{options.many} against {options.trained}, as many of which train: bookkeeping × {wall} (processor × {cpu})")
    sys.exit(many["peak"] > LIMIT * few["peak"])


if __name__ == "__main__":
    main()
