"""The curves of a report, as SVG whose colours the page's style sheet sets."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsa.runs.report.drawing import CYCLE, INK, MEAN, colour, drawing, name_lines, svg
from fedsa.types import FRACTIONS

__all__ = ["MOST_LABELS", "Table", "draw_figures"]

Table: TypeAlias = dict[str, Any]
Points: TypeAlias = list[tuple[int, float]]

MOST_LABELS = 7
"""Labels with a colour of their own; the rest are together."""
_MOST_LINES = 12  # clients drawn one by one; more are drawn as bands


def draw_figures(records: Sequence[Table], metric: str, chosen: int | None) -> dict[str, Markup]:
    """Return the figures that the data suffice for, by name."""
    scale, unit = (100, " (%)") if metric in FRACTIONS else (1, "")
    key = "validation" if any("validation" in record for record in records) else "validation_after_training"
    validation = _series(records, key, metric, scale)
    loss = _series(records, "train", "loss", 1)
    weights = {r["client"]: float(r[key].get("examples", 1)) for r in records if r.get(key)}
    figures = {}
    with drawing():
        if validation:
            mean = _mean(validation, weights)
            title = f"{metric.replace('_', ' ')} on validation{unit}"
            figures["validation"] = svg(_curves(validation, mean, title, chosen), "validation")
        if loss:
            mean = _mean(loss, dict.fromkeys(loss, 1.0))
            figures["loss"] = svg(_curves(loss, mean, "training loss", None), "loss")
    return figures


def _series(records: Iterable[Table], part: str, name: str, scale: float) -> dict[str, Points]:
    series: dict[str, Points] = defaultdict(list)
    for record in records:
        value = (record.get(part) or {}).get(name)
        if value is not None and math.isfinite(value):
            series[record["client"]].append((record["round"], scale * value))
    return {client: sorted(points) for client, points in series.items()}


def _by_round(series: Mapping[str, Points]) -> dict[int, list[tuple[str, float]]]:
    rounds: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for client, points in series.items():
        for number, value in points:
            rounds[number].append((client, value))
    return dict(sorted(rounds.items()))


def _mean(series: Mapping[str, Points], weights: Mapping[str, float]) -> Points:
    return [
        (number, sum(weights[c] * v for c, v in values) / max(sum(weights[c] for c, _ in values), 1e-9))
        for number, values in _by_round(series).items()
    ]


def _curves(series: Mapping[str, Points], mean: Points, title: str, chosen: int | None) -> Figure:
    many = len(series) > _MOST_LINES
    figure = Figure(figsize=(5.6, 3.5))  # so small that its texts can be read on a telephone
    axes = figure.add_axes((0.1, 0.14, 0.88 if many else 0.6, 0.73))
    few_points = "o" if len(mean) <= 20 else ""
    if many:
        rounds = _by_round(series)
        for cut, alpha in ((0.0, 0.15), (0.1, 0.2), (0.25, 0.3)):
            low, high = ([_quantile(values, q) for values in rounds.values()] for q in (cut, 1 - cut))
            axes.fill_between(list(rounds), low, high, color=CYCLE[0], alpha=alpha, linewidth=0)
    else:
        for number, points in enumerate(series.values()):
            dash = "-" if number < len(CYCLE) else "--"
            axes.plot(*zip(*points, strict=True), dash, color=colour(number), lw=0.9, marker=few_points, markersize=2)
    axes.plot(*zip(*mean, strict=True), color=MEAN, linewidth=2.6, marker=few_points, markersize=4)
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_title(title, loc="left", fontsize=10, pad=17)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chosen in dict(mean):
        axes.axvline(chosen, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot([chosen], [dict(mean)[chosen]], color=MEAN, marker="o", markersize=8)
        side = "right" if chosen > mean[-1][0] / 2 else "left"
        axes.text(chosen, 1.02, f"round {chosen}: chosen", transform=axes.get_xaxis_transform(), ha=side)
    if not many:
        name_lines(axes, series)
    return figure


def _quantile(values: Sequence[tuple[str, float]], fraction: float) -> float:
    ordered = sorted(value for _, value in values)
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
