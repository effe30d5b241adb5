"""The figures of a report, as SVG whose colours the page's style sheet sets."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsa.runs.pages.drawing import CYCLE, INK, MEAN, colour, drawing, name_lines, svg
from fedsa.runs.pages.engine import duration, score, size
from fedsa.runs.report.rounds import Round, moment_of
from fedsa.texts.words import counted, sized
from fedsa.types import FRACTIONS

__all__ = ["MOST_LABELS", "Drawn", "Table", "draw_figures"]

Table: TypeAlias = Mapping[str, Any]
Points: TypeAlias = list[tuple[int, float]]

MOST_LABELS = 7
"""Labels with a colour of their own; the rest are together."""
_MOST_LINES = 12  # clients drawn one by one; more are drawn as bands
_MOST_BARS = 120  # rounds drawn as bars of their own


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        svg: the drawing.
        alt: what it shows, in words.
    """

    svg: Markup
    alt: str


def draw_figures(
    records: Sequence[Table], rounds: Sequence[Round], metric: str, chosen: int | None, named: str = "chosen"
) -> dict[str, Drawn]:
    """Return the figures that the data suffice for, by name.

    Args:
        records: lines of ``metrics.jsonl``.
        rounds: what they come to.
        metric: by which rounds are chosen.
        chosen: the round.
        named: what it is called.
    """
    scale, unit = (100, " (%)") if metric in FRACTIONS else (1, "")
    validation, loss = _series(records, moment_of(records), metric, scale), _series(records, "train", "loss", 1)
    figures = {}
    with drawing():
        if validation:
            points = [(each.number, scale * each.validation) for each in rounds if each.validation is not None]
            title = f"{metric.replace('_', ' ')} on validation{unit}"
            alt = _course(points, lambda value: score(value / scale, metric), chosen, named)
            figures["validation"] = Drawn(svg(_curves(validation, points, title, chosen, named), "validation"), alt)
        if loss:
            points = [(each.number, each.loss) for each in rounds if each.loss is not None]
            alt = _course(points, lambda value: f"{value:.3g}")
            figures["loss"] = Drawn(svg(_curves(loss, points, "training loss"), "loss"), alt)
        trained = [each for each in rounds if each.trained]
        if any(each.upload_bytes or each.download_bytes for each in trained):
            up, down = (
                [(r.number, float(n)) for r, n in zip(trained, counts, strict=True)] for counts in _bytes(trained)
            )
            alt = f"Sent to the server: {_reach(up, size)}. Received from it: {_reach(down, size)}."
            figures["bytes"] = Drawn(svg(_bars([up, down], "bytes of all clients", sized), "bytes"), alt)
        if any(each.seconds for each in trained):
            spent = [(each.number, each.seconds) for each in trained]
            drawn = _bars([spent], "seconds of local training, all clients", lambda value: f"{value:g}")
            figures["seconds"] = Drawn(svg(drawn, "seconds"), f"{_reach(spent, duration)}.")
    return figures


def _bytes(rounds: Sequence[Round]) -> tuple[list[int], list[int]]:
    return [each.upload_bytes for each in rounds], [each.download_bytes for each in rounds]


def _course(points: Sequence[tuple[int, float]], told: Any, chosen: int | None = None, named: str = "") -> str:
    """Say in words how a mean went."""
    if not points:
        return ""
    (first, begin), (last, end) = points[0], points[-1]
    text = f"The mean is {told(begin)} in round {first}"
    if last != first:
        text += f" and {told(end)} in round {last}"
    if chosen in dict(points):
        text += f"; in round {chosen} ({named}) it is {told(dict(points)[chosen])}"
    return f"{text}."


def _reach(points: Sequence[tuple[int, float]], told: Any) -> str:
    """Say in words between which values bars are."""
    values = [value for _, value in points]
    if len(values) == 1:
        return f"{told(values[0])} in round {points[0][0]}"
    if min(values) == max(values):
        return f"{told(values[0])} in each of {counted(len(values), 'round')}"
    return f"between {told(min(values))} and {told(max(values))} in {counted(len(values), 'round')}"


def _series(records: Iterable[Table], part: str, name: str, scale: float) -> dict[str, Points]:
    series: dict[str, Points] = defaultdict(list)
    for record in records:
        value = (record.get(part) or {}).get(name)
        if value is not None and math.isfinite(value):
            series[record["client"]].append((record["round"], scale * value))
    return {client: sorted(points) for client, points in series.items()}


def _by_round(series: Mapping[str, Points]) -> dict[int, list[float]]:
    rounds: dict[int, list[float]] = defaultdict(list)
    for points in series.values():
        for number, value in points:
            rounds[number].append(value)
    return {number: sorted(values) for number, values in sorted(rounds.items())}


def _curves(
    series: Mapping[str, Points],
    mean: Sequence[tuple[int, float]],
    title: str,
    chosen: int | None = None,
    named: str = "",
) -> Figure:
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
    axes.plot(*zip(*mean, strict=True), color=MEAN, linewidth=2.6, marker=few_points, markersize=4, gid="mean")
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_title(title, loc="left", fontsize=11, pad=17)
    _count_rounds(axes, {number for points in series.values() for number, _ in points})
    value = dict(mean).get(chosen) if chosen is not None else None
    if chosen is not None and value is not None:
        axes.axvline(chosen, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot([chosen], [value], color=MEAN, marker="o", markersize=8)
        side = "right" if chosen > mean[-1][0] / 2 else "left"
        axes.text(chosen, 1.02, f"round {chosen}: {named}", transform=axes.get_xaxis_transform(), ha=side)
    if not many:
        name_lines(axes, series)
    return figure


def _bars(series: Sequence[Sequence[tuple[int, float]]], title: str, told: Any) -> Figure:
    """Draw for each round a bar of each series beside each other; of many rounds, lines."""
    figure = Figure(figsize=(5.6, 2.4))
    axes = figure.add_axes((0.13, 0.2, 0.85, 0.65))
    width = 0.8 / len(series)
    for number, points in enumerate(series):
        rounds, values = zip(*points, strict=True)
        if len(points) <= _MOST_BARS:
            places = [each + (number - (len(series) - 1) / 2) * width for each in rounds]
            axes.bar(places, values, width * 0.92, color=colour(number), linewidth=0)
        else:
            axes.plot(rounds, values, color=colour(number), linewidth=1.2, linestyle=["-", "--"][number % 2])
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11, pad=8)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value).replace(".0 ", " ")))
    _count_rounds(axes, {number for points in series for number, _ in points})
    return figure


def _count_rounds(axes: Axes, rounds: Set[int]) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(rounds) == 1:
        axes.set_xlim(min(rounds) - 1, min(rounds) + 1)
        axes.set_xticks([*rounds])


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
