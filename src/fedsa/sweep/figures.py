"""What a sweep's runs come to: tidy rows, spread over seeds, paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from fedsa.sweep.grid import Cell, Grid
from fedsa.sweep.running import Result, chosen_rate
from fedsa.types import FRACTIONS

__all__ = ["Difference", "cell_rows", "client_rows", "paired_difference", "shown", "spread"]

RESAMPLES = 10_000
"""Of the bootstrap."""

_TESTS = ("test", "test_final", "test_after_training", "test_final_after_training", "test_after_aggregate")
_FIGURES = ("weighted_mean", "mean", "worst")


def cell_rows(grid: Grid, results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    """Return a row per finished run; a figure that a run does not have is None. Metrics are shares, not percent."""
    return [
        {
            **_about(cell, grid, results),
            "metric": summary["metric"],
            "chosen_round": summary["chosen_round"],
            "chosen_score": summary["chosen_score"],
            **{f"{test}_{name}": summary.get(test, {}).get(name) for test in _TESTS for name in _FIGURES},
            **{
                f"unseen_{moment}_{name}": summary.get("unseen", {}).get(moment, {}).get(name)
                for moment in ("before", "after")
                for name in _FIGURES
            },
            "upload_bytes": summary["upload_bytes"],
            "total_upload_bytes": summary["total_upload_bytes"],
            "trained_parameters": summary["trained_parameters"],
            "processor_seconds": results[cell].processor_seconds,
            "peak_rss_bytes": summary["peak_rss_bytes"],
            "run_folder": results[cell].folder.name,
        }
        for cell, summary in _finished(results)
    ]


def client_rows(grid: Grid, results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    """Return a row per finished run and client, clients that were never in the federation among them."""
    rows = []
    for cell, summary in _finished(results):
        metric = summary["metric"]
        about = _about(cell, grid, results)
        for unseen, clients in (
            (False, summary["per_client"]),
            (True, summary.get("unseen", {}).get("per_client", {})),
        ):
            for client, entry in clients.items():
                before = entry["before"]
                rows.append(
                    {
                        **about,
                        "client": client,
                        "is_unseen": unseen,
                        **{name: entry[name] for name in ("train_examples", "validation_examples", "test_examples")},
                        "majority": entry.get("majority"),  # where rows have classes
                        "before": before[metric] if unseen else before,
                        **{test: entry.get(test, {}).get(metric) for test in (*_TESTS, "after")},
                    }
                )
    return rows


def _finished(results: Mapping[Cell, Result]) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    for cell in sorted(results):
        summary = results[cell].summary
        if summary is not None:
            yield cell, summary


def _about(cell: Cell, grid: Grid, results: Mapping[Cell, Result]) -> dict[str, Any]:
    return {
        "method": cell.group.method,
        "variant": cell.group.variant,
        "setting": cell.group.setting,
        "seed": cell.seed,
        "learning_rate": cell.rate,
        "is_chosen": chosen_rate(cell.group, grid, results) == cell.rate,
    }


def shown(value: float, metric: str, sign: str = "") -> str:
    """Return a figure as tables have it: fractions in percent; ``sign="+"`` writes a plus too.

    >>> shown(0.8349, "accuracy"), shown(-1.2, "log_likelihood"), shown(0.01, "f1", "+")
    ('83.5', '-1.200', '+1.0')
    """
    return f"{100 * value:{sign}.1f}" if metric in FRACTIONS else f"{value:{sign}.3f}"


def spread(values: Sequence[float], metric: str) -> str:
    """Return mean ± sample standard deviation; of one value, that.

    >>> spread([0.8, 0.9, 1.0], "accuracy")
    '90.0 ± 10.0'
    """
    middle = shown(mean(values), metric)
    return f"{middle} ± {shown(stdev(values), metric)}" if len(values) > 1 else middle


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
