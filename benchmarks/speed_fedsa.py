"""The parts of speed.py that need fedsa: its rows, what all rows work on, and the limit that the machine sets."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import speed_loops
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from fedsa import Callback, Federation, run
from fedsa.client.training import cohort
from fedsa.client.training.job import Job, local_batches
from fedsa.data.packaged.sentiment import read_sentiment
from fedsa.packages.parts import PREFIX, part_folder
from fedsa.recipe import Recipe, parse_recipe

LABELS = ("negative", "positive")
SST2_DEV_ROWS = 872  # as many are evaluated where the rows are not SST-2's
TEST_ROWS = 3  # of each client: fedsa needs a test split, which is measured after the last round
SEED = 0
GEMM_PASSES = 200


@dataclass(frozen=True)
class Size:
    """A round: how many clients, local steps and rows in a batch."""

    clients: int
    steps: int
    batch: int


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        device: cpu or cuda.
        threads: of the processor.
        model: the base model, a path or a part.
    """

    device: str
    threads: int
    model: str


def read_texts() -> tuple[str, list[tuple[str, int]], list[tuple[str, int]]]:
    """Return what the rows are, those to train on and those to evaluate on."""
    if folder := os.environ.get("FEDSA_DATA"):
        train, dev = (_read_tsv(Path(folder) / "glue" / "SST-2" / f"{split}.tsv") for split in ("train", "dev"))
        return "SST-2 phrases", train, dev
    table = read_sentiment(part_folder("sentiment"))
    rows = [(text, LABELS.index(label)) for text, label in zip(table["text"], table["label"], strict=True)]
    mixed = [rows[number] for number in np.random.default_rng(SEED).permutation(len(rows))]
    what = "rows of part:sentiment (set FEDSA_DATA to a folder with glue/SST-2/{train,dev}.tsv for SST-2)"
    return what, mixed[SST2_DEV_ROWS:], mixed[:SST2_DEV_ROWS]


def _read_tsv(path: Path) -> list[tuple[str, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def write_rows(folder: Path, size: Size, rounds: int) -> str:
    """Write clients' rows for fedsa, one file a split with a column that names the client; return what they are."""
    what, train, dev = read_texts()
    count = size.clients * rounds * size.steps * size.batch
    if count > len(train):
        raise SystemExit(f"{count} rows are needed to train on, there are {len(train)}: give fewer --rounds")
    drawn = [train[number] for number in np.random.default_rng(SEED).choice(len(train), count, replace=False)]
    folder.mkdir(parents=True)
    test = dev[: size.clients * TEST_ROWS]
    for split, rows in (("train", drawn), ("validation", dev), ("test", test)):
        lines = [
            {"text": text, "label": LABELS[label], "client": f"client-{number % size.clients:03d}"}
            for number, (text, label) in enumerate(rows)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return what


def recipe(rows: Path, size: Size, rounds: int, machine: Machine, training: Mapping[str, Any]) -> Recipe:
    """Return the recipe of fedsa's rows."""
    return parse_recipe(
        {
            "rounds": rounds,
            "seed": SEED,
            "model": {"path": machine.model},
            "adapter": {
                "r": speed_loops.RANK,
                "lora_alpha": speed_loops.ALPHA,
                "dropout": speed_loops.DROPOUT,
                "target_modules": list(speed_loops.TARGETS),
            },
            "task": {"labels": list(LABELS), "max_length": speed_loops.MAX_LENGTH},
            "data": {
                "path": str(rows),
                "validation_split": "validation",
                "test_split": "test",
                "partition": {"kind": "column", "column": "client"},
            },
            "training": {
                "local_steps": size.steps,
                "batch_size": size.batch,
                "learning_rate": speed_loops.LEARNING_RATE,
                "max_grad_norm": "none",
                **training,
            },
            "evaluation": {"batch_size": speed_loops.EVALUATION_BATCH},
            "compute": {"device": machine.device, "precision": "bf16", "threads": machine.threads},
        }
    )


def prepare(folder: Path, size: Size, rounds: int, machine: Machine) -> dict[str, Any]:
    """Write what all rows work on: fedsa's own batches and initial tensors, for the loops; return what they are."""
    what = write_rows(folder / "rows", size, rounds)
    federation = Federation.from_recipe(recipe(folder / "rows", size, rounds, machine, {}))
    table, labels, partition = federation.rows.table, federation.rows.labels, federation.rows.partition
    tokenized = federation.tokenizer(list(table["text"]), truncation=True, max_length=speed_loops.MAX_LENGTH)
    rows = [[tokens, int(label)] for tokens, label in zip(tokenized["input_ids"], labels, strict=True)]
    work = {
        "model": str(
            part_folder(machine.model.removeprefix(PREFIX)) if machine.model.startswith(PREFIX) else machine.model
        ),
        "pad": federation.tokenizer.pad_token_id,
        "train": [
            [
                [[rows[number] for number in batch] for (batch,) in _batches(federation, client, round)]
                for round in range(1, rounds + 1)
            ]
            for client in federation.clients
        ],
        "evaluation": [
            [rows[number] for number in partition.clients[client].validation] for client in federation.clients
        ],
    }
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
    save_file(speed_loops.read(federation.model.model), folder / "initial.safetensors")
    lengths = [len(row[0]) for steps in work["train"] for round in steps for batch in round for row in batch]
    evaluated = [len(row[0]) for mine in work["evaluation"] for row in mine]
    return {
        "rows": what,
        "train_tokens": float(np.mean(lengths)),
        "evaluation_rows": len(evaluated),
        "evaluation_tokens": float(np.mean(evaluated)),
    }


def _batches(federation: Federation, client: str, round: int) -> list[list[Any]]:
    job = Job(
        client=client,
        round=round,
        rounds=federation.recipe.rounds,
        seed=federation.recipe.seed,
        tensors={},
        keys=(),
        received=(),
        optimizer_state={},
        rows=federation.rows.partition.clients[client].train,
    )
    return local_batches(job, federation.recipe.training, federation.encoded.lengths)


class Computing:
    """Sums up the seconds inside the model's forward pass, ``backward`` and the optimiser's step.

    A cohort's step begins with gathering its clients' gradients and ends with putting their new values into the layers.
    A trainer that does one of these otherwise has it counted as time between them.
    """

    def __init__(self, model: Any) -> None:
        self.seconds, self._inside = 0.0, False
        model.forward = self._timed(model.forward)
        torch.Tensor.backward = self._timed(torch.Tensor.backward)
        torch.optim.AdamW.step = self._timed(torch.optim.AdamW.step)
        for name in ("add_gradients", "step"):
            setattr(cohort.Optimizers, name, self._timed(getattr(cohort.Optimizers, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:  # torch calls ``backward`` again inside itself where a function mode is active
                return function(*arguments, **named)
            started, self._inside = time.perf_counter(), True
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started
                self._inside = False

        return call


class Watch(Callback):
    """Notes when a round is safe on disk, and what the run says of its own time by then."""

    def __init__(self, computing: Computing) -> None:
        self.computing = computing
        self.ends: list[dict[str, float]] = []
        self.loss: list[float] = []
        self.accuracy: list[float] = []

    def on_run_begin(self, path: Path, *rest: Any) -> None:
        """Remember the run's folder."""
        self.path = path

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Note the time; round 0 is the evaluation before any training."""
        state = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        seconds = {"train": state["train_seconds"], "evaluation": state["evaluation_seconds"]}
        self.ends.append({"round": time.perf_counter(), "computing": self.computing.seconds, **seconds})
        if round:
            self.loss.append(sum(line["train"]["loss"] for line in lines) / len(lines))
            self.accuracy.append(validation["weighted_mean"] if validation else float("nan"))

    def seconds(self) -> dict[str, list[float]]:
        """Return each round's seconds, from the end of the round before to its own."""
        pairs = list(zip(self.ends, self.ends[1:], strict=False))
        return {name: [end[name] - start[name] for start, end in pairs] for name in self.ends[0]}


def run_fedsa(folder: Path, size: Size, rounds: int, machine: Machine, training: Mapping[str, Any]) -> dict[str, Any]:
    """Run a federation and return each round's seconds, mean loss and accuracy, and the peak memory."""
    federation = Federation.from_recipe(recipe(folder / "rows", size, rounds, machine, training))
    watch = Watch(Computing(federation.model.model))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        result = run(federation, Path(place) / "run", callbacks=[watch])
    return {
        "seconds": watch.seconds(),
        "loss": watch.loss,
        "accuracy": watch.accuracy,
        "peak_rss": result.summary["peak_rss_bytes"],
    }


def limit(folder: Path, device: str) -> dict[str, Any]:
    """Return the operations of a round, and the machine's bf16 GEMM rate at several numbers of tokens."""
    work = speed_loops.read_work(folder)
    model = speed_loops.load_model(work, "eager")
    rounds = [[batch for client in work.train for batch in client[number]] for number in range(len(work.train[0]))]
    measured = rounds[1:] or rounds
    trained = [len(row.tokens) for batches in measured for batch in batches for row in batch]
    evaluated = [len(row.tokens) for rows in work.evaluation for row in rows]
    operations = {length: count_operations(model, length) for length in {*trained, *evaluated}}
    step = sum(trained) / sum(map(len, measured))
    forward = sum(evaluated) / len(evaluated) * min(speed_loops.EVALUATION_BATCH, len(work.evaluation[0]))
    config = model.base_model.model.config
    return {
        "train_flops": sum(operations[length][1] for length in trained) / len(measured),
        "evaluation_flops": sum(operations[length][0] for length in evaluated),
        "flops_per_second": {
            round(tokens): gemm_rate(
                round(tokens), config.hidden_size, config.intermediate_size, config.num_hidden_layers, device
            )
            for tokens in (step, step * len(work.train), forward)
        },
    }


def count_operations(model: Any, length: int) -> tuple[int, int]:
    """Return the matrix products' operations for one row without padding: of a forward pass, and of a training step.

    Backward is counted as autograd does it: gradients of activations wherever something below is trained, of weights
    for adapters and head alone.
    """
    batch = {"input_ids": torch.full((1, length), 100), "labels": torch.tensor([0])}
    model.train()
    with FlopCounterMode(display=False) as forward:
        loss = model(**batch).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


@torch.inference_mode()
def gemm_rate(tokens: int, hidden: int, inner: int, layers: int, device: str) -> float:
    """Return the operations per second of a bare pass through the encoder's matrix products in bf16, the fastest.

    Four products tokens × hidden × hidden, one tokens × hidden × inner, one tokens × inner × hidden in each layer,
    every layer with weights of its own.
    """
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]
    made: Any = {"dtype": torch.bfloat16, "device": device}
    weights = [torch.randn(shape, **made) for _ in range(layers) for shape in shapes]
    inputs = {width: torch.randn(tokens, width, **made) for width in (hidden, inner)}
    seconds = []
    for _ in range(GEMM_PASSES):
        started = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * tokens * sum(weight.numel() for weight in weights) / min(seconds)
