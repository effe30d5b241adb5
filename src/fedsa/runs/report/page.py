"""The page of a run: one HTML file, made from the run folder alone.

It opens offline, is complete without scripts and fetches nothing, so it can be mailed and archived. The same files
give the same bytes. The curves are SVG; their colours are named in the style sheet, hence light and dark.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsa.errors import RunFolderError
from fedsa.runs.pages.engine import OF_OTHER_FORM, page_engine, score, short
from fedsa.runs.report.against import against as compare_with
from fedsa.runs.report.asymmetry import asymmetry_of
from fedsa.runs.report.figures import MOST_LABELS, Table, draw_figures
from fedsa.runs.report.rounds import rounds_of
from fedsa.runs.report.scored import scored_clients
from fedsa.runs.report.words import in_words, left_later
from fedsa.server import kept_in_words, leaves, plan_of_the_run, sent_in_words
from fedsa.statistics import interval
from fedsa.store import FinishedRun, write_atomically

__all__ = ["MOMENTS", "REPORT", "about_recipe", "report_html", "write_report"]

REPORT = "report.html"
"""The name of the file in a run's folder."""

_COLUMNS = [
    ("before", "Before training"),
    ("test", "Chosen round"),
    ("test_final", "Final round"),
    ("test_after_training", "Chosen, after local training"),
    ("test_final_after_training", "Final, after local training"),
    ("test_after_aggregate", "Chosen, after the aggregate"),
    ("test_final_after_aggregate", "Final, after the aggregate"),
]
MOMENTS = {
    "aggregate": "after it received the aggregate: with the model it would use next",
    "training": "right after its local training",
}
"""In words: when clients were evaluated."""


def write_report(run: Path, *, against: Path | None = None, to: Path | None = None) -> Path:
    """Return the path of the report, newly written from the files of a finished run.

    Args:
        run: a finished run's folder.
        against: another finished run, which each client's result is compared with.
        to: the file; None: ``report.html`` in the run's folder.

    Raises:
        RunFolderError: one of its files is missing, damaged or of another run.
        UserError: the report cannot be written, or the other run is no other.
    """
    html = report_html(run, against=against)
    report = run / REPORT if to is None else to
    write_atomically(report, html.encode(errors="replace"))
    return report


def report_html(run: Path, *, against: Path | None = None, version: str | None = None) -> str:
    """Return the page of a finished run. The same files give the same text.

    Args:
        run: its folder.
        against: another finished run, which each client's result is compared with.
        version: of a page that is served, which one it is.

    Raises:
        RunFolderError: one of its files is missing, damaged or of another run.
        UserError: the other run is no other.
    """
    finished = FinishedRun.open(run)
    beside = None if against is None else compare_with(run, against)
    asymmetry = asymmetry_of(run)
    recipe_text = finished.folder.recipe_text()
    try:
        return _render(
            run.resolve().name,
            tomllib.loads(recipe_text),
            recipe_text,
            finished.environment(),
            finished.summary,
            list(finished.lines()),
            samples=finished.samples(),
            against=beside,
            asymmetry=asymmetry,
            version=version,
        )
    except OF_OTHER_FORM as error:
        raise RunFolderError(
            f"the files in {run} do not have the form that this version of fedsa writes ({error}); "
            "make the report with the version that is named in environment.json, or repeat the run with `fedsa run`"
        ) from error


def _render(
    name: str,
    recipe: Table,
    recipe_text: str,
    environment: Table,
    summary: Table,
    records: Sequence[Table],
    **given: Any,
) -> str:
    metric = str(summary.get("metric", "accuracy"))
    has_classes = any("majority" in entry for entry in summary["per_client"].values())
    labels = _labels(summary["per_client"]) if has_classes else []
    plan = summary.get("sharing_plan", [])
    titles = _titles(summary)
    uploads = sum(record.get("train") is not None for record in records)
    bytes_each = 2 if summary.get("wire_dtype") == "bf16" else 4
    trained_bytes = bytes_each * sum(row.get("parameters", 0) for row in plan if row.get("trained"))
    engine = page_engine(metric)
    engine.filters |= {
        "range": lambda figures: _range(figures, metric),
        "perplexity": lambda figures: _perplexity(figures, metric),
        "percent": lambda value: score(value, "accuracy"),
        "spread": lambda value: score(value, metric).replace("\u00a0%", " points"),
    }
    clients = list(summary["per_client"].values())
    rounds = rounds_of(records, metric)
    return engine.get_template("report/report.html.jinja").render(
        **given,
        **about_recipe(name, recipe, recipe_text),
        done=True,
        environment=environment,
        s=summary,
        metric=metric.replace("_", " "),
        labels=labels,
        mixes={client: _mix(entry.get("labels", {}), labels) for client, entry in summary["per_client"].items()},
        rows={split: sum(c.get(f"{split}_examples", 0) for c in clients) for split in ("train", "validation", "test")},
        headlines=[(key, title) for key, title in titles if key in summary and key != "before"],
        has_untrained=any(summary.get(key, {}).get("untrained_clients") for key, _ in titles),
        columns=[(key, title) for key, title in titles if any(key in client for client in clients)],
        rows_range=_range({metric: summary["test"].get("weighted_mean"), "examples": _test_rows(summary)}, metric),
        kinds=summary.get("sharing_by_round") or ([{**summary, "rounds": None}] if plan else []),
        continues=recipe.get("task", {}).get("kind") == "language_modeling",
        has_ranges=any(_range(client.get("test"), metric) for client in clients),
        has_perplexity=any(_perplexity(client.get("test"), metric) for client in clients),
        in_words=in_words(summary, metric),
        moment=MOMENTS.get(summary.get("evaluated_after", ""), MOMENTS["aggregate"]),
        plan=plan,
        sent=", ".join(sent_in_words(plan_of_the_run(summary))),
        kept=", ".join(kept_in_words(plan_of_the_run(summary))),
        later=left_later(summary),
        leaves=leaves,
        bytes_each=bytes_each,
        trained_bytes=trained_bytes,
        uploads=uploads,
        rounds=rounds,
        scores=scored_clients(records),
        chosen=summary.get("chosen_round"),
        count=len(clients),
        figures=draw_figures(records, rounds, metric, summary.get("chosen_round")),
    )


def about_recipe(name: str, recipe: Table, text: str) -> dict[str, Any]:
    """Return what pages say of a run's recipe: folders of the machine are left out.

    Args:
        name: of the run folder.
        recipe: its recipe.
        text: the same as text.
    """
    shown = _without_folders(recipe, text)
    return {
        "name": name,
        "recipe": recipe,
        "recipe_text": shown,
        "shortened": shown != text,
        "model": short(recipe.get("model", {}).get("path", "–")).removeprefix("part:"),
        "data": short(recipe.get("data", {}).get("path", "–")).removeprefix("part:"),
    }


def _titles(summary: Table) -> list[tuple[str, str]]:
    """Return the columns of results and their titles: one for the chosen and the final round where they are one."""
    if summary.get("chosen_round") != summary["rounds"]:
        return _COLUMNS
    return [
        (key, title.replace("Chosen", "Chosen and final"))
        for key, title in _COLUMNS
        if not key.startswith("test_final")
    ]


def _test_rows(summary: Table) -> int:
    """The number of test rows of the federation's clients."""
    return sum(client.get("test_examples", 0) for client in summary["per_client"].values())


def _range(figures: Any, metric: str) -> str | None:
    r"""Return the 95 % interval of a result as text; None where the metric has none.

    >>> _range({"accuracy": 84 / 98, "examples": 98}, "accuracy")
    '77.4 to 91.3\xa0%'
    """
    value, rows = (figures.get(name) if isinstance(figures, Mapping) else None for name in (metric, "examples"))
    ends = None if value is None or not rows or not math.isfinite(value) else interval(value, rows, metric)
    return None if ends is None else f"{100 * ends[0]:.1f} to {score(ends[1], metric)}"


def _perplexity(figures: Any, metric: str) -> str | None:
    """Return the perplexity of a result as text, or that of the weighted mean; None where there is none."""
    if not isinstance(figures, Mapping):
        return None
    value = figures.get("perplexity")
    if value is None and metric == "log_likelihood" and isinstance(figures.get("weighted_mean"), int | float):
        value = math.exp(min(700.0, -figures["weighted_mean"]))
    return None if value is None else score(value, "perplexity")


def _without_folders(value: Any, text: str) -> str:
    """Return the recipe's text with every absolute path in it shortened."""
    if isinstance(value, str) and short(value) != value:
        return text.replace(json.dumps(value, ensure_ascii=False), f'"{short(value)}"').replace(
            f"'{value}'", f"'{short(value)}'"
        )
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        text = _without_folders(item, text)
    return text


def _labels(per_client: Mapping[str, Table]) -> list[str]:
    """Return the labels that get a colour of their own: the most frequent ones, in the order they were given."""
    totals: dict[str, int] = defaultdict(int)
    for client in per_client.values():
        for label, count in client.get("labels", {}).items():
            totals[label] += count
    frequent = set(sorted(totals, key=lambda label: -totals[label])[:MOST_LABELS])
    named = [label for label in totals if label in frequent]
    return [*named, "other labels"] if len(named) < len(totals) else named


def _mix(counts: Mapping[str, int], labels: Sequence[str]) -> list[int]:
    """Return a client's rows for each of ``labels``; the last takes what has no label of its own."""
    rows = [counts.get(label, 0) for label in labels]
    if labels and labels[-1] == "other labels":
        rows[-1] = sum(counts.values()) - sum(rows[:-1])
    return rows
