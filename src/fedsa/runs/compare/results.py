"""A comparison as one table for a paper, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from fedsa.runs.compare.comparison import Beside, Comparison
from fedsa.runs.compare.groups import Group
from fedsa.runs.scores import shown, spread
from fedsa.statistics import RESAMPLES
from fedsa.texts.escapes import for_csv
from fedsa.texts.tables import Table
from fedsa.texts.words import counted, sized
from fedsa.types import FRACTIONS

__all__ = ["as_csv", "as_json", "in_words", "table_of"]


def table_of(found: Comparison) -> Table:
    """Return one table: a row per group, with its difference from the reference."""
    untrained = ["never trained"] if any(_untrained(found, group) for group in found.groups) else []
    header = ["run", "seeds", "test", "mean", *untrained, "worst client", "chosen rounds", "sent", "training"]
    header += [f"less {found.reference.name}", "better, worse, same"] if found.beside else []
    beside = {each.group.name: each for each in found.beside}
    rows = [_row(found, group, beside.get(group.name), bool(untrained)) for group in found.groups]
    unit = " in %" if found.metric in FRACTIONS else ""
    after = "they received the aggregate" if found.moment == "aggregate" else "their local training"
    notes = [
        f"Test: {found.metric}{unit}, each client on its own rows after {after}, weighted by rows, at the round chosen "
        "on validation; mean: every client alike. With several seeds: mean ± sample standard deviation. Worst client: "
        "of each seed. Sent: by and to all clients in the whole run. Training: seconds of all clients’ local training."
    ]
    if untrained:
        notes.append(
            "Never trained: mean over the clients that had not trained by the chosen round, each client alike; of the "
            "seeds that had such clients."
        )
    if any(each.difference is not None for each in found.beside):
        notes.append(
            f"Less {found.reference.name}: mean difference over pairs of the same client and seed, all clients alike, "
            f"with a 95 % bootstrap interval ({RESAMPLES:,} resamples of seeds, and of clients within each); ○: it "
            "contains zero. Better, worse, same: clients, by their mean over seeds."
        )
    notes += found.notes
    notes += [f"{each.group.name}: {reason}" for each in found.beside for reason in each.reasons]
    return Table("", header, rows, notes)


def _row(found: Comparison, group: Group, beside: Beside | None, has_untrained: bool) -> list[str]:
    metric = group.runs[0].metric
    figures = [found.figures(run) for run in group.runs]
    summaries = [run.summary for run in group.runs]
    named = "" if metric == found.metric else f" ({metric})"
    row = [
        group.name,
        ", ".join(map(str, group.seeds)),
        spread([each["weighted_mean"] for each in figures], metric) + named,
        spread([each["mean"] for each in figures], metric),
        *([spread(values, metric) if (values := _untrained(found, group)) else "–"] if has_untrained else []),
        spread([each["worst"] for each in figures], metric),
        ", ".join(str(summary["chosen_round"]) for summary in summaries),
        "all rows"
        if summaries[0].get("pools_rows")
        else sized(_mean(summaries, "total_upload_bytes") + _mean(summaries, "total_download_bytes")),
        f"{_mean(summaries, 'train_seconds'):.0f} s",
    ]
    if not found.beside:
        return row
    if beside is None:
        return [*row, "", ""]
    return [*row, _difference(beside, metric), ", ".join(map(str, beside.counts.values())) if beside.clients else "–"]


def _untrained(found: Comparison, group: Group) -> list[float]:
    """The means over clients that had not trained by the chosen round, of the seeds that had some."""
    figures = [found.figures(run).get("untrained_mean") for run in group.runs]
    return [float(each) for each in figures if each is not None]


def _difference(beside: Beside, metric: str) -> str:
    if beside.difference is None:
        return "–"
    low, middle, high = (
        shown(value, metric, "+") for value in (beside.difference.low, beside.difference.mean, beside.difference.high)
    )
    return f"{middle} [{low}, {high}]" + ("" if beside.difference.is_clear else " ○")


def _mean(summaries: list[Mapping[str, Any]], name: str) -> float:
    return mean(float(summary.get(name) or 0) for summary in summaries)


def as_csv(found: Comparison) -> str:
    """Return a line per group with plain numbers: metrics as shares, bytes, seconds."""
    lines = [_plain(group) for group in as_json(found)["groups"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    difference = group["difference"] or dict.fromkeys(("mean", "low", "high", "pairs", "better", "worse", "same"))
    return {
        "name": for_csv(group["name"]),
        "runs": for_csv(" ".join(group["runs"])),
        "seeds": " ".join(map(str, group["seeds"])),
        "metric": group["metric"],
        **{f"test_{name}": value for name, value in group["test"].items()},
        "chosen_rounds": " ".join(map(str, group["chosen_rounds"])),
        **{name: group[name] for name in ("upload_bytes", "download_bytes", "train_seconds", "wall_seconds")},
        **{f"difference_{name}": value for name, value in difference.items() if name not in ("seeds", "is_clear")},
    }


def as_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON has it; docs/commands.md lists its keys."""
    beside = {each.group.name: each for each in found.beside}
    return {
        "metric": found.metric,
        "measured_after": found.moment,
        "against": found.reference.name,
        "groups": [_group(found, group, beside.get(group.name)) for group in found.groups],
        "notes": list(found.notes),
    }


def _group(found: Comparison, group: Group, beside: Beside | None) -> dict[str, Any]:
    figures, summaries = [found.figures(run) for run in group.runs], [run.summary for run in group.runs]
    values, untrained = [float(each["weighted_mean"]) for each in figures], _untrained(found, group)
    return {
        "name": group.name,
        "runs": [str(run.path) for run in group.runs],
        "seeds": group.seeds,
        "algorithm": group.recipe.algorithm,
        "variant": group.recipe.adapter.variant,
        "model": group.recipe.model.path,
        "settings": dict(group.settings),
        "metric": group.runs[0].metric,
        "test": {
            "weighted_mean": mean(values),
            "std_over_seeds": stdev(values) if len(values) > 1 else None,
            "mean": mean(each["mean"] for each in figures),
            "worst": mean(each["worst"] for each in figures),
            "untrained_mean": mean(untrained) if untrained else None,
        },
        "chosen_rounds": [summary["chosen_round"] for summary in summaries],
        "upload_bytes": _mean(summaries, "total_upload_bytes"),
        "download_bytes": _mean(summaries, "total_download_bytes"),
        "train_seconds": _mean(summaries, "train_seconds"),
        "wall_seconds": _mean(summaries, "wall_seconds"),
        "curves": [
            {"run": str(run.path), "seed": run.seed, "points": [asdict(point) for point in run.curve]}
            for run in group.runs
        ],
        "difference": None
        if beside is None or beside.difference is None
        else {**asdict(beside.difference), "is_clear": beside.difference.is_clear, **beside.counts},
        "per_client": [{**asdict(pair), "difference": pair.difference} for pair in (beside.clients if beside else [])],
        "not_compared": list(beside.reasons) if beside else [],
    }


def in_words(found: Comparison) -> list[str]:
    """Return what the comparison comes to, a text for each group, for a reader who stops there."""
    return [_sentences(each, found) for each in found.beside] or [
        f"Runs of one recipe with {counted(len(found.reference.runs), 'seed')}: there is nothing to compare them with."
    ]


def _sentences(beside: Beside, found: Comparison) -> str:
    name, other, metric = beside.group.name, found.reference.name, found.metric.replace("_", " ")
    if beside.difference is None:
        return f"{name} cannot be compared with {other}."
    counts, clients = beside.counts, counted(len(beside.clients), "client")
    if counts["same"] == len(beside.clients):
        return f"{name} and {other} have the same {metric} on test at each of {clients}."
    unit = " percentage points" if found.metric in FRACTIONS else ""
    ends = (beside.difference.low, beside.difference.mean, beside.difference.high)
    low, middle, high = (shown(value, found.metric, "+").replace("-", "−") for value in ends)
    clear = "" if beside.difference.is_clear else "; it contains zero, so there may be no difference"
    return (
        f"{name} less {other}: {middle}{unit} of {metric} on test, mean over {clients} (95\u00a0% interval {low} to "
        f"{high}{clear}). It is better for {counts['better']:,}, worse for {counts['worse']:,} and the same for "
        f"{counts['same']:,} of them."
    )
