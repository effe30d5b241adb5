"""A simulation spread over worker processes, beside the same one in one process: the same numbers, and the seconds.

    FEDSA_DATA=DIR python benchmarks/workers.py [--rounds 6] [--clients 100] [--trained 10] [--workers 2]

MiniLM-L6 and LoRA r 8; 12,000 of SST-2's phrases (``$FEDSA_DATA/glue/SST-2/train.tsv``) dealt out to the clients with
Dirichlet 1.0. In a round so many of them train 10 steps of 16 and as many are evaluated; at the end all are tested. Two
comparisons of ``fedsa run RECIPE`` to ``fedsa deploy local RECIPE --workers N``:

- one client after the other on one thread, over two rounds: the tensors of the server after every round and the table
  of results must be equal, byte for byte, else the exit code is 1;
- as fedsa chooses by itself, in cohorts: one process with a thread for each worker, against workers with one thread
  each. Printed are the seconds of a round (median, the first left out, for the warm-up of heads is in it for nearly all
  of its clients), those of the whole command, and the result. It is not the same: the clients of one pass share one
  stream of the base model's own dropout, and other clients come together in a pass.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROWS = 12_000
RECIPE = """
algorithm = "fedsa"
rounds = {rounds}
keep_rounds = "all"
fraction_train = {fraction}

[model]
path = "part:all-minilm-l6-v2"
attn_implementation = "eager"

[adapter]
variant = "lora"
target_modules = ["query", "value"]

[task]
text_columns = ["sentence"]
label_column = "label"
labels = ["0", "1"]
max_length = 64

[data]
path = {path}

[data.partition]
kind = "dirichlet"
clients = {clients}
dirichlet_alpha = 1.0

[training]
local_steps = 10
batch_size = 16
learning_rate = 5e-3
head_warmup_epochs = 5

[evaluation]
fraction_evaluate = {fraction}
"""


def write_rows(path: Path) -> None:
    """Write the first rows of SST-2 as a CSV."""
    source = Path(os.environ["FEDSA_DATA"]) / "glue" / "SST-2" / "train.tsv"
    with source.open(encoding="utf-8", newline="") as there, path.open("w", encoding="utf-8", newline="") as here:
        reader = csv.reader(there, delimiter="\t", quoting=csv.QUOTE_NONE)
        csv.writer(here).writerows(itertools.islice(reader, ROWS + 1))


def run(words: list[str], out: Path) -> tuple[float, dict[str, Any]]:
    """Run a command of fedsa, and return its seconds and the summary of the run."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "fedsa", *words, "--out", str(out), "--json"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began, json.loads((out / "summary.json").read_text(encoding="utf-8"))


def round_seconds(out: Path) -> list[float]:
    """Seconds between the moments at which the server's files of two rounds were written."""
    moments = [path.stat().st_mtime for path in sorted((out / "server").glob("round-*.safetensors"))]
    return [after - before for before, after in itertools.pairwise(moments)]


def differing(here: Path, there: Path, summaries: tuple[Mapping[str, Any], Mapping[str, Any]]) -> list[str]:
    """What is not equal: files of the server by their tensors, and entries of the summary that are results."""
    other = []
    for path in sorted((here / "server").glob("round-*.safetensors")):
        first, second = load_file(path), load_file(there / "server" / path.name)
        # Of what stays at clients a simulation's server has the initial values; a server of a deployment has not.
        if not second.keys() <= first.keys() or any(
            first[name].numpy().tobytes() != second[name].numpy().tobytes() for name in second
        ):
            other.append(path.name)
    first, second = summaries
    names = ("chosen_round", "chosen_score", "test", "test_final", "total_upload_bytes", "total_download_bytes")
    return other + [name for name in names if first[name] != second[name]]


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--trained", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("bytes", "seconds"), help="one of the two comparisons")
    arguments = parser.parse_args()
    spread = ["deploy", "local", "--workers", str(arguments.workers)]
    other: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "rows.csv")
        recipe, about = folder / "recipe.toml", vars(arguments) | {"path": json.dumps(str(folder / "rows.csv"))}
        recipe.write_text(RECIPE.format(**about, fraction=arguments.trained / arguments.clients), encoding="utf-8")
        if arguments.only != "seconds":
            plain = ["--set", "training.trainer=sequential", "--set", "compute.threads=1", "--set", "rounds=2"]
            _, alone = run(["run", str(recipe), *plain], folder / "alone")
            _, together = run([*spread, str(recipe), *plain], folder / "together")
            other = differing(folder / "alone", folder / "together", (alone, together))
            print(f"one after the other: {len(other)} differences {other or ''}", flush=True)
        if arguments.only != "bytes":
            print(
                "\n| | a round (s) | least | most | the whole command (s) | test accuracy |\n|---|---|---|---|---|---|"
            )
            threads = ["--set", f"compute.threads={arguments.workers}"]
            for name, words in (
                (f"one process, {arguments.workers} threads", ["run", str(recipe), *threads]),
                (f"{arguments.workers} workers", [*spread, str(recipe)]),
            ):
                out = folder / name.replace(" ", "-")
                seconds, summary = run(words, out)
                rounds = round_seconds(out)
                print(
                    f"| {name} | {statistics.median(rounds):.2f} | {min(rounds):.2f} | {max(rounds):.2f} "
                    f"| {seconds:.1f} | {summary['test']['weighted_mean']:.4f} |",
                    flush=True,
                )
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
