"""Honest measuring: each client on its own rows, figures over clients, and the one round that is chosen for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedsa.tasks.base import Encoded, IntArray, Task

if TYPE_CHECKING:
    from fedsa.models import AdaptedModel

__all__ = ["Figures", "evaluate", "majority_accuracy", "summarize", "summarize_clients"]


@dataclass(frozen=True)
class Figures:
    """One metric over all clients.

    Attributes:
        weighted_mean: weighted by each client's number of evaluated rows: the share of all rows, for accuracy.
        mean: unweighted: every client counts alike.
        std: standard deviation over clients (of the population, not a sample).
        worst: the lowest value.
        worst_client: whose it is.
    """

    weighted_mean: float
    mean: float
    std: float
    worst: float
    worst_client: str


def evaluate(model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray, *, batch_size: int) -> dict[str, float]:
    """Return the metrics of what the model holds now, on some rows.

    Args:
        model: with the client's tensors written into it.
        task: gives outputs and metrics.
        encoded: the rows' tokens.
        rows: row numbers; they are batched by length, so that little is padded.
        batch_size: rows per forward pass.

    Returns:
        The task's metrics, and ``examples``.
    """
    order = np.argsort(encoded.lengths[rows], kind="stable")
    parts = []
    model.model.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = encoded.batch(rows[order[start : start + batch_size]])
            with model.autocast():
                parts.append(
                    task.outputs(model.model, {name: value.to(model.device) for name, value in batch.items()}).cpu()
                )
    outputs = torch.cat(parts)[torch.from_numpy(np.argsort(order))]
    return {"examples": len(rows), **task.score(encoded, rows, outputs)}


def summarize(values: Mapping[str, float], weights: Mapping[str, float]) -> Figures:
    """Return the figures of one metric over clients.

    Args:
        values: client id to the metric; higher is better.
        weights: client id to its number of rows.

    Raises:
        ValueError: no clients.

    >>> summarize({"a": 0.5, "b": 1.0}, {"a": 3, "b": 1})
    Figures(weighted_mean=0.625, mean=0.75, std=0.25, worst=0.5, worst_client='a')
    """
    if not values:
        raise ValueError("no client was evaluated")
    clients = sorted(values)
    numbers = np.array([values[client] for client in clients], dtype=np.float64)
    shares = np.array([weights[client] for client in clients], dtype=np.float64)
    worst = int(numbers.argmin())
    return Figures(
        weighted_mean=float((numbers * shares).sum() / shares.sum()),
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        worst=float(numbers[worst]),
        worst_client=clients[worst],
    )


def summarize_clients(results: Mapping[str, Mapping[str, Any]], metric: str) -> Figures:
    """Return the figures of what `evaluate` gave for each client."""
    return summarize(
        {client: result[metric] for client, result in results.items()},
        {client: result["examples"] for client, result in results.items()},
    )


def majority_accuracy(train_labels: Sequence[int] | IntArray, test_labels: Sequence[int] | IntArray) -> float:
    """Return the test accuracy of always guessing the most frequent training label; of equals, the lowest.

    >>> majority_accuracy([0, 0, 1], [0, 1, 1, 1])
    0.25
    """
    guess = int(np.bincount(np.asarray(train_labels)).argmax())
    return float((np.asarray(test_labels) == guess).mean())
