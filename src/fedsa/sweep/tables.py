"""A sweep's tables, as Markdown and as LaTeX, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fedsa.runs.scores import shown, spread
from fedsa.statistics import RESAMPLES, paired_difference
from fedsa.store import write_atomically
from fedsa.sweep.figures import cell_rows, client_rows
from fedsa.sweep.grid import Cell, Grid, Group
from fedsa.sweep.running import Result, chosen_rate, scores
from fedsa.texts.escapes import for_csv
from fedsa.texts.tables import Table, as_latex, as_markdown
from fedsa.texts.words import counted
from fedsa.types import FRACTIONS

__all__ = ["tables_of", "write_results"]

Results = Mapping[Cell, Result]


_NEVER_TRAINED = "never trained"


def tables_of(grid: Grid, results: Results, command: str) -> list[Table]:
    """Return a table per setting and variant, then those of other people's numbers.

    Args:
        grid: the runs.
        results: what they came to.
        command: what makes them.
    """
    places = dict.fromkeys((group.setting, group.variant) for group in (*grid.groups, *grid.refused))
    tables = [_table(setting, variant, grid, results, command) for setting, variant in places]
    return tables + _printed(grid, results, command)


# -- one setting and variant -------------------------------------------------------------------------------------------


def _table(setting: str, variant: str, grid: Grid, results: Results, command: str) -> Table:
    groups = [group for group in grid.groups if (group.setting, group.variant) == (setting, variant)]
    done = {group: runs for group in groups if (runs := _chosen_runs(group, grid, results))}
    reference = next((group for group in done if group.method == grid.file.reference), None)
    optional = {
        _NEVER_TRAINED: ("test", "untrained_mean"),
        "before aggregation": ("test_after_training", "weighted_mean"),
        "unseen, before": ("unseen", "before"),
        "unseen, after": ("unseen", "after"),
    }
    optional = {
        name: where
        for name, where in optional.items()
        if any(_figure(run, *where) is not None for runs in done.values() for run in runs.values())
    }
    header = ["method", "rate", "test", "clients alike", *optional, "worst client", "final round", "chosen rounds"]
    header += ["upload, B", "cpu s"]
    header += [f"less {reference.method}"] if reference else []
    rows = [
        _row(group, runs, grid, results, list(optional.values()), done.get(reference) if reference else None)
        for group, runs in done.items()
    ]
    notes = [_scale(runs) for runs in done.values()]
    metrics = list(dict.fromkeys(_metric(runs) for runs in done.values()))
    return Table(
        ", ".join(name for name in (setting, variant) if name),
        header,
        rows,
        [
            *dict.fromkeys(notes),
            *(_how(grid, groups[0], bool(reference), optional, metrics) if groups else ()),
            *_tried(groups, grid, results),
            *_missing(setting, variant, groups, grid, results),
            f"Made by: {command}",
        ],
    )


def _chosen_runs(group: Group, grid: Grid, results: Results) -> dict[int, Result]:
    """Return a row's finished runs at its rate, by seed."""
    rate = chosen_rate(group, grid, results)
    if rate is None:
        return {}
    cells = {seed: results.get(Cell(group, rate, seed)) for seed in grid.seeds(group)}
    return {seed: run for seed, run in cells.items() if run is not None and run.summary is not None}


def _figure(run: Result, which: str, name: str) -> float | None:
    """Return a figure of a finished run, or None where it has none."""
    value: Any = (run.summary or {}).get(which, {}).get(name)
    figure: float | None = value["weighted_mean"] if isinstance(value, Mapping) else value
    return figure


def _spread(runs: Mapping[int, Result], which: str, name: str) -> str:
    values = [value for run in runs.values() if (value := _figure(run, which, name)) is not None]
    return spread(values, _metric(runs)) if values else "–"


def _metric(runs: Mapping[int, Result]) -> str:
    return str(next((run.summary["metric"] for run in runs.values() if run.summary is not None), ""))


def _row(
    group: Group,
    runs: Mapping[int, Result],
    grid: Grid,
    results: Results,
    optional: Sequence[tuple[str, str]],
    reference: Mapping[int, Result] | None,
) -> list[str]:
    rate = chosen_rate(group, grid, results)
    summaries = [run.summary or {} for run in runs.values()]
    seconds = [run.processor_seconds for run in runs.values() if run.processor_seconds is not None]
    name = group.method if len(runs) == len(grid.seeds(group)) else f"{group.method} ({len(runs)} of the seeds)"
    row = [
        name,
        f"{rate:g}",
        _spread(runs, "test", "weighted_mean"),
        _spread(runs, "test", "mean"),
        *(_spread(runs, *where) for where in optional),
        _spread(runs, "test", "worst"),
        _spread(runs, "test_final", "weighted_mean"),
        ", ".join(str(summary["chosen_round"]) for summary in summaries),
        ", ".join(dict.fromkeys(_uploaded(summary) for summary in summaries)),
        f"{mean(seconds):.0f}" if seconds else "–",
    ]
    return row if reference is None else [*row, "" if runs is reference else _difference(runs, reference)]


def _uploaded(summary: Mapping[str, Any]) -> str:
    """The mean bytes of an update; where rows were put together, it was the rows that left clients."""
    if summary.get("pools_rows"):
        return "all rows"
    updates = sum(entry.get("rounds_trained", 0) for entry in summary["per_client"].values())
    return f"{summary['total_upload_bytes'] / updates if updates else summary['upload_bytes']:,.0f}"


def _difference(runs: Mapping[int, Result], reference: Mapping[int, Result]) -> str:
    found = paired_difference(_per_client(runs), _per_client(reference))
    if found is None:
        return "–"
    mean_, low, high = (shown(value, _metric(runs), "+") for value in (found.mean, found.low, found.high))
    text = f"{mean_} [{low}, {high}]"
    return text if found.is_clear else f"{text} ○"


def _per_client(runs: Mapping[int, Result]) -> dict[int, dict[str, float]]:
    return {
        seed: {client: entry["test"][run.summary["metric"]] for client, entry in run.summary["per_client"].items()}
        for seed, run in runs.items()
        if run.summary is not None
    }


# -- what stands below -------------------------------------------------------------------------------------------------


def _scale(runs: Mapping[int, Result]) -> str:
    """A sentence on a row's runs: model, clients, rounds, rows, arithmetic."""
    run = next(iter(runs.values()))
    summary, recipe = run.summary, run.recipe
    if summary is None or recipe is None:
        return ""
    training, compute = recipe.training, recipe.compute
    length, unit = (training.local_epochs, "epoch") if training.local_epochs else (training.local_steps or 0, "step")
    everyone = [entry for each in runs.values() for entry in (each.summary or {})["per_client"].values()]
    trained, tested = ([entry[f"{split}_examples"] for entry in everyone] for split in ("train", "test"))
    return (
        f"Measured on {recipe.model.path}, {counted(summary['clients'], 'client')}, {counted(recipe.rounds, 'round')} "
        f"× {counted(length, unit)} × batch {training.batch_size * training.gradient_accumulation_steps}, "
        f"{training.optimizer}; {_range(trained)} training rows and {_range(tested)} test rows a client "
        f"({recipe.data.path}); {compute.device}, {compute.precision}, threads: {compute.threads}."
    )


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _how(
    grid: Grid, group: Group, has_reference: bool, optional: Mapping[str, Any], metrics: Sequence[str]
) -> list[str]:
    file = grid.file
    seeds, tuning = (", ".join(map(str, own)) for own in (grid.seeds(group), grid.tuning_seeds(group)))
    choice = (
        f"every row's rate is chosen by the weighted validation mean at seed {tuning}"
        if len(grid.rates(group)) > 1
        else ""
    )
    named = ", ".join(f"{metric} in %" if metric in FRACTIONS else metric for metric in metrics)
    notes = [
        f"Test: {named}, each client on its own rows, weighted mean at the round chosen on validation: mean ± "
        f"sample standard deviation over seeds {seeds}" + (f"; {choice}." if choice else ".") + " "
        "Clients alike: the same, each client with the same weight. Worst client: of each seed. Upload: bytes of an "
        "update, mean over clients and rounds. cpu s: processor seconds of a run, mean over seeds."
    ]
    if _NEVER_TRAINED in optional:
        notes.append(
            "Never trained: mean over the clients that had not trained by the chosen round, each client alike; of the "
            "seeds that had such clients."
        )
    if "before aggregation" in optional:
        notes.append("Before aggregation: each client's own model after its local training, at the same round.")
    if "unseen, before" in optional:
        notes.append("Unseen: clients that were never in the federation, before and after they are taken in.")
    if has_reference:
        notes.append(
            f"Less {file.reference}: mean difference over pairs of the same client and seed, all clients alike, with a "
            f"95 % bootstrap interval ({RESAMPLES:,} resamples of seeds, and of clients within each); ○: it contains "
            "zero. Each seed is one unit, so with few seeds the interval is rough; with one it is over clients alone."
        )
    return notes


def _tried(groups: Sequence[Group], grid: Grid, results: Results) -> list[str]:
    if not groups or len(grid.rates(groups[0])) == 1:
        return []
    metrics = {cell.group: run.summary["metric"] for cell, run in results.items() if run.summary is not None}
    lines = [
        f"{group.method}: "
        + ", ".join(
            f"{rate:g} ({'failed' if score == float('-inf') else shown(score, metrics[group])})"
            for rate, score in tried.items()
        )
        for group in groups
        if (tried := scores(group, grid, results))
    ]
    return [f"Rates tried, with their validation figure: {'; '.join(lines)}."] if lines else []


def _missing(setting: str, variant: str, groups: Sequence[Group], grid: Grid, results: Results) -> list[str]:
    refused = [
        f"Not run: {group.method}: {reason}."
        for group, reason in grid.refused.items()
        if (group.setting, group.variant) == (setting, variant)
    ]
    failed = [
        f"Failed: {cell}: {run.failure}"
        for cell, run in sorted(results.items())
        if cell.group in groups and run.summary is None
    ]
    unfinished = [
        f"Not finished: {group.method}."
        for group in groups
        if not _chosen_runs(group, grid, results)
        and not any(cell.group == group for cell in results if results[cell].failure)
    ]
    return refused + failed + unfinished


# -- other people's numbers --------------------------------------------------------------------------------------------


def _printed(grid: Grid, results: Results, command: str) -> list[Table]:
    """Return, for each source, its numbers with ours beside them."""
    tables = []
    for printed in grid.file.printed:
        settings = list(dict.fromkeys(setting for values in printed.values.values() for setting in values))
        rows = []
        for method, values in printed.values.items():
            rows.append([method, "printed", *(_two_digits(values.get(setting)) for setting in settings)])
            ours = {
                group.setting: _chosen_runs(group, grid, results) for group in grid.groups if group.method == method
            }
            if any(ours.values()):
                ours_ = [
                    _spread(runs, "test", "weighted_mean") if (runs := ours.get(name)) else "–" for name in settings
                ]
                rows.append([method, "ours", *ours_])
        notes = [
            f"Printed: {printed.source}. {printed.scale}",
            "Ours: at the scale that stands below the tables above.",
        ]
        tables.append(
            Table(f"Beside {printed.source}", ["method", "", *settings], rows, [*notes, f"Made by: {command}"])
        )
    return tables


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# -- files -------------------------------------------------------------------------------------------------------------


def write_results(grid: Grid, results: Results, out: Path, command: str) -> list[Path]:
    """Write ``results`` and ``clients`` as CSV and Parquet, ``table.md`` and ``table.tex``; return the files."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, rows in (("results", cell_rows(grid, results)), ("clients", client_rows(grid, results))):
        if rows:
            safe = [
                {key: for_csv(each) if isinstance(each, str) else each for key, each in row.items()} for row in rows
            ]
            Dataset.from_list(safe).to_csv(out / f"{name}.csv", index=False)
            Dataset.from_list(rows).to_parquet(out / f"{name}.parquet")
            files += [out / f"{name}.csv", out / f"{name}.parquet"]
    tables = tables_of(grid, results, command)
    for name, text in (("table.md", as_markdown(tables)), ("table.tex", as_latex(tables))):
        write_atomically(out / name, text.encode())
        files.append(out / name)
    return files
