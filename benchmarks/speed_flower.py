"""The rows of speed.py that run in Flower's simulation (flwr 1.41, Ray), with the Python of --flower-python.

A client trains and evaluates with the plain loop: bf16, dynamic padding, eager attention. Favourable to Flower: a Ray
actor loads model and rows once, not for every message. The server averages A with FedAvg; B and the head stay in the
client's context, which the simulation keeps in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import speed_loops
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

LOOP = speed_loops.Loop(width=None, bf16=True, attention="eager")

client_app = ClientApp()


@cache
def loaded(folder: str, threads: int) -> tuple[speed_loops.Work, Any]:
    """Return rows and model; they stay in the actor."""
    torch.set_num_threads(threads)
    work = speed_loops.read_work(Path(folder))
    return work, speed_loops.load_model(work, LOOP.attention)


def begin(message: Message, context: Context) -> tuple[speed_loops.Work, Any, int]:
    """Return rows, the model with the client's tensors in it, and the client's number."""
    config = message.content["config"]
    work, model = loaded(config["folder"], config["threads"])
    own = context.state["own"].to_torch_state_dict() if "own" in context.state else {}
    shared = message.content["arrays"].to_torch_state_dict()
    speed_loops.write(model, {**work.initial, **own, **shared})
    return work, model, int(context.node_config["partition-id"])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for one round; send A, keep the rest."""
    work, model, client = begin(message, context)
    batches = work.train[client][message.content["config"]["server-round"] - 1]
    loss = speed_loops.train(model, batches, work.pad, LOOP)
    shared, own = speed_loops.split(speed_loops.read(model))
    context.state["own"] = ArrayRecord(own)
    metrics = MetricRecord({"num-examples": sum(map(len, batches)), "loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(shared), "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate one client on its rows."""
    work, model, client = begin(message, context)
    rows = work.evaluation[client]
    right = speed_loops.evaluate(model, rows, work.pad, LOOP)
    metrics = MetricRecord({"num-examples": len(rows), "accuracy": right / len(rows)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class TimedFedAvg(FedAvg):
    """FedAvg that notes when the phases of a round begin and end."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[float] = []
        self.trained: list[float] = []
        self.ended: list[float] = []

    def configure_train(self, *arguments: Any, **named: Any) -> Iterable[Message]:
        """Note the beginning of a round."""
        self.started.append(time.perf_counter())
        return super().configure_train(*arguments, **named)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the end of the training."""
        result = super().aggregate_train(server_round, _without_errors(replies))
        self.trained.append(time.perf_counter())
        return result

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Note the end of the round."""
        result = super().aggregate_evaluate(server_round, _without_errors(replies))
        self.ended.append(time.perf_counter())
        return result

    def seconds(self) -> dict[str, list[float]]:
        """Return each round's seconds."""
        marks = list(zip(self.started, self.trained, self.ended, strict=True))
        return {
            "train": [trained - started for started, trained, _ in marks],
            "evaluation": [ended - trained for _, trained, ended in marks],
            "round": [ended - started for started, _, ended in marks],
        }


def _without_errors(replies: Iterable[Message]) -> list[Message]:
    """Return the replies, or stop: Flower goes on without the clients that failed."""
    answered = list(replies)
    for message in answered:
        if message.has_error():
            raise RuntimeError(message.error.reason)
    return answered


def run_flower(folder: Path, threads: int, at_once: int) -> dict[str, Any]:
    """Run all rounds and return each round's seconds, mean loss and accuracy.

    Args:
        folder: what speed.py has prepared.
        threads: of the machine, shared out over the clients that run at once.
        at_once: clients at once.
    """
    work, strategy, server_app = speed_loops.read_work(folder), TimedFedAvg(), ServerApp()
    each = threads // at_once
    found: dict[str, Any] = {}

    @server_app.main()
    def run(grid: Grid, context: Context) -> None:
        shared, _ = speed_loops.split(work.initial)
        config = {"folder": str(folder), "threads": each}
        result = strategy.start(
            grid,
            ArrayRecord(shared),
            num_rounds=len(work.train[0]),
            train_config=ConfigRecord(config),
            evaluate_config=ConfigRecord(config),
        )
        found["loss"] = [metrics["loss"] for metrics in result.train_metrics_clientapp.values()]
        found["accuracy"] = [metrics["accuracy"] for metrics in result.evaluate_metrics_clientapp.values()]

    run_simulation(
        server_app,
        client_app,
        num_supernodes=len(work.train),
        backend_config={"client_resources": {"num_cpus": each}, "init_args": {"num_cpus": threads}},
    )
    return {"seconds": strategy.seconds(), **found}
