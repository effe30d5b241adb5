"""One metric over many clients: means, spread, the worst client; and two methods over the same clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["RESAMPLES", "Difference", "Statistics", "interval", "paired_difference", "summarize", "summarize_clients"]


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


# -- two methods over the same clients ---------------------------------------------------------------------------------

RESAMPLES = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Difference:
    """A method's metric less the reference's, over pairs of the same client and seed.

    Attributes:
        mean: over seeds of the mean over clients.
        low: of the 95 % bootstrap interval.
        high: of the same.
        seeds: how many both have.
        pairs: how many in all.
    """

    mean: float
    low: float
    high: float
    seeds: int
    pairs: int

    @property
    def is_clear(self) -> bool:
        """The interval does not contain zero."""
        return not self.low <= 0 <= self.high


def paired_difference(
    method: Mapping[int, Mapping[str, float]], reference: Mapping[int, Mapping[str, float]]
) -> Difference | None:
    """Return by how much a method is above a reference, with a percentile bootstrap interval.

    A resample draws seeds with replacement, and for each drawn seed its clients with replacement: another seed is
    another split, so a client's rows are its own only within a seed. With one seed, clients alone are drawn, and the
    interval says nothing of other seeds. All clients count alike.

    Args:
        method: seed to client to metric.
        reference: the same of the reference.

    Returns:
        None where no client and seed are in both.
    """
    pairs = {
        seed: np.array(
            [own[client] - reference[seed][client] for client in sorted(own.keys() & reference[seed].keys())]
        )
        for seed, own in sorted(method.items())
        if seed in reference
    }
    values = [differences for differences in pairs.values() if len(differences)]
    if not values:
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (RESAMPLES, len(values)))
    means = np.empty(drawn.shape)
    for number, own in enumerate(values):
        places = drawn == number
        means[places] = _resampled_means(own, int(places.sum()), rng)
    low, high = np.percentile(means.mean(axis=1), [2.5, 97.5])
    return Difference(
        mean=float(np.mean([own.mean() for own in values])),
        low=float(low),
        high=float(high),
        seeds=len(values),
        pairs=sum(len(own) for own in values),
    )


def _resampled_means(values: np.ndarray[Any, Any], count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return means of ``count`` resamples; so many at a time that memory stays small."""
    each = max(1, 10**6 // len(values))
    blocks = [
        values[rng.integers(0, len(values), (min(each, count - start), len(values)))].mean(axis=1)
        for start in range(0, count, each)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0)
