"""The figures of a comparison: learning curves, and differences of the same clients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import mean
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsa.runs.compare.comparison import Beside, Comparison
from fedsa.runs.compare.groups import Group, Point
from fedsa.runs.pages.drawing import CYCLE, INK, MUTED, clipped, colour, drawing, name_lines, svg
from fedsa.texts.escapes import for_terminal
from fedsa.texts.words import sized
from fedsa.types import FRACTIONS

__all__ = ["CURVES", "MOST_GROUPS", "draw_curves", "draw_differences"]

MOST_GROUPS = len(CYCLE)
"""Groups with a colour of their own: more are not drawn."""

_MOST_NAMES = 40  # clients whose names stand beside their differences
_MARKED = 20  # points of a line that are marked one by one

_ABOUT = {
    "rounds": "round",
    "bytes": "sent, by and to all clients",
    "seconds": "seconds of local training, all clients",
}

CURVES: dict[str, Callable[[Point], float]] = {
    "rounds": lambda point: point.round,
    "bytes": lambda point: point.upload_bytes + point.download_bytes,
    "seconds": lambda point: point.train_seconds,
}
"""What the learning curves are drawn over."""


def draw_curves(found: Comparison) -> dict[str, Markup]:
    """Return the learning curves by what they are drawn over; none where no client was evaluated on validation."""
    groups = [
        group
        for group in found.groups[:MOST_GROUPS]
        if group.runs[0].metric == found.metric and any(run.curve for run in group.runs)
    ]
    if not groups:
        return {}
    with drawing():
        return {name: svg(_curves(found, groups, name, place), f"curve-{name}") for name, place in CURVES.items()}


def _curves(found: Comparison, groups: list[Group], over: str, place: Callable[[Point], float]) -> Figure:
    scale, unit = (100, " (%)") if found.metric in FRACTIONS else (1, "")
    figure = Figure(figsize=(5.6, 3.5))
    axes = figure.add_axes((0.1, 0.14, 0.6, 0.73))
    lines = {}
    for group in groups:
        shade = colour(found.groups.index(group))
        for run in group.runs if len(group.runs) > 1 else ():
            points = [(place(point), scale * point.value) for point in run.curve]
            axes.plot(*zip(*points, strict=True), color=shade, linewidth=0.7, alpha=0.45)
        points = [(x, scale * y) for x, y in _mean_curve(group, place)]
        few = "o" if len(points) <= _MARKED else ""
        axes.plot(*zip(*points, strict=True), color=shade, linewidth=2.2, marker=few, markersize=3.5)
        lines[group.name] = points
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_title(f"{found.metric.replace('_', ' ')} on validation{unit}", loc="left", fontsize=11, pad=10)
    axes.set_xlabel(_ABOUT[over])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=over == "rounds"))
    if over == "bytes":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: sized(value).replace(".0 ", " ")))
    name_lines(axes, lines, [found.groups.index(group) for group in groups])
    return figure


def _mean_curve(group: Group, place: Callable[[Point], float]) -> list[tuple[float, float]]:
    """Return the mean over a group's runs at the rounds that all of them have."""
    by_round: dict[int, list[Point]] = defaultdict(list)
    for run in group.runs:
        for point in run.curve:
            by_round[point.round].append(point)
    whole = [points for _, points in sorted(by_round.items()) if len(points) == len(group.runs)]
    return [(mean(map(place, points)), mean(point.value for point in points)) for points in whole]


def draw_differences(found: Comparison) -> dict[str, Markup]:
    """Return for each group, by its name, the differences of its clients from the reference, as far as they are."""
    figures = {}
    with drawing():
        for number, beside in enumerate(found.beside[:MOST_GROUPS]):
            if beside.clients:
                shade = colour(found.groups.index(beside.group))
                figures[beside.group.name] = svg(_differences(found, beside, shade), f"difference-{number}")
    return figures


def _differences(found: Comparison, beside: Beside, shade: str) -> Figure:
    scale, unit = (100, ", percentage points") if found.metric in FRACTIONS else (1, "")
    pairs = sorted(beside.clients, key=lambda pair: (pair.difference, pair.client))
    named = len(pairs) <= _MOST_NAMES
    height = 1.1 + 0.23 * len(pairs) if named else 4.2
    figure = Figure(figsize=(5.6, height))
    bottom, top = 0.55 / height, 0.35 / height
    axes = figure.add_axes((0.3 if named else 0.08, bottom, 0.67 if named else 0.88, 1 - bottom - top))
    values, places = [scale * pair.difference for pair in pairs], list(range(len(pairs)))
    axes.axvline(0, color=INK, linewidth=0.9)
    difference = beside.difference
    if difference is not None:
        axes.axvspan(scale * difference.low, scale * difference.high, color=MUTED, alpha=0.18, linewidth=0)
        axes.axvline(scale * difference.mean, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    if named:
        axes.hlines(places, 0, values, color=shade, linewidth=1.2)
    axes.plot(values, places, "o", color=shade, markersize=5 if named else 2.5)
    axes.set_yticks(places if named else [], [clipped(for_terminal(pair.client)) for pair in pairs] if named else None)
    axes.set_ylim(-0.8, len(pairs) - 0.2)
    _wide_enough(axes, values)
    axes.grid(axis="x")
    title = f"{clipped(beside.group.name)} less {clipped(found.reference.name)}"
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(f"difference of {found.metric.replace('_', ' ')} on test{unit}")
    return figure


def _wide_enough(axes: Axes, values: list[Any]) -> None:
    """Leave room beside the outermost dots, also where all differences are zero."""
    if any(values):
        axes.margins(x=0.06)
    else:
        axes.set_xlim(-1, 1)
