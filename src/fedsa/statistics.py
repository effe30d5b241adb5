"""One metric over many clients: weighted and unweighted mean, spread, and the worst client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Statistics", "interval", "summarize", "summarize_clients"]


@dataclass(frozen=True)
class Statistics:
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


def summarize(values: Mapping[str, float], weights: Mapping[str, float]) -> Statistics:
    """Return the statistics of one metric over clients.

    Args:
        values: client id to the metric; higher is better.
        weights: client id to its number of rows.

    Raises:
        ValueError: no clients.

    >>> summarize({"a": 0.5, "b": 1.0}, {"a": 3, "b": 1})
    Statistics(weighted_mean=0.625, mean=0.75, std=0.25, worst=0.5, worst_client='a')
    """
    if not values:
        raise ValueError("no client was evaluated")
    clients = sorted(values)
    numbers = np.array([values[client] for client in clients], dtype=np.float64)
    shares = np.array([weights[client] for client in clients], dtype=np.float64)
    worst = int(numbers.argmin())
    return Statistics(
        weighted_mean=float((numbers * shares).sum() / shares.sum()),
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        worst=float(numbers[worst]),
        worst_client=clients[worst],
    )


def summarize_clients(results: Mapping[str, Mapping[str, Any]], metric: str) -> Statistics:
    """Return the statistics of one metric of clients' results.

    Args:
        results: client id to its metrics, ``examples`` among them.
        metric: which.
    """
    return summarize(
        {client: result[metric] for client, result in results.items()},
        {client: result["examples"] for client, result in results.items()},
    )


def interval(value: float, rows: int, metric: str) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share of rows: what it may be on other rows of the same kind.

    Args:
        value: the share of the rows that are right.
        rows: how many were looked at.
        metric: whose value it is.

    Returns:
        The lower and the upper end, or None where the metric is not a share of rows, each right or wrong.

    >>> [round(end, 3) for end in interval(84 / 98, 98, "accuracy")]
    [0.774, 0.913]
    """
    if metric not in _SHARES_OF_ROWS or rows < 1 or not 0 <= value <= 1:
        return None
    square = _QUANTILE**2 / rows
    middle = value + square / 2
    half = _QUANTILE * math.sqrt(value * (1 - value) / rows + square / (4 * rows))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


_SHARES_OF_ROWS = frozenset({"accuracy", "accuracy_norm", "exact_match"})
_QUANTILE = 1.959963984540054  # of the normal distribution, at 97.5 %; scipy.stats takes a second to import
