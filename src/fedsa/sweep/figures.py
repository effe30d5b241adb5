"""What a sweep's runs come to: tidy rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedsa.sweep.grid import Cell, Grid
from fedsa.sweep.running import Result, chosen_rate

__all__ = ["cell_rows", "client_rows"]

_TESTS = ("test", "test_final", "test_after_training", "test_final_after_training", "test_after_aggregate")
_FIGURES = ("weighted_mean", "mean", "worst")
_UNTRAINED = ("untrained_clients", "untrained_mean")


def cell_rows(grid: Grid, results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    """Return a row per finished run; a figure that a run does not have is None. Metrics are shares, not percent."""
    return [
        {
            **_about(cell, grid, results),
            "metric": summary["metric"],
            "chosen_round": summary["chosen_round"],
            "chosen_score": summary["chosen_score"],
            **{
                f"{test}_{name}": summary.get(test, {}).get(name)
                for test in _TESTS
                for name in (*_FIGURES, *_UNTRAINED)
            },
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
                        **{name: entry.get(name) for name in ("rounds_trained", "rounds_trained_until_chosen")},
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
