"""The curves of a report, as SVG whose colours the page's style sheet sets."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeAlias

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsa.texts.escapes import for_terminal
from fedsa.types import FRACTIONS

__all__ = ["MOST_LABELS", "Table", "draw_figures"]

Table: TypeAlias = dict[str, Any]
Points: TypeAlias = list[tuple[int, float]]

MOST_LABELS = 7
"""Labels with a colour of their own; the rest are together."""
_MOST_LINES = 12  # clients drawn one by one; more are drawn as bands

# What matplotlib draws with, and the style sheet's names that take its place.
_INK, _MUTED, _MEAN = "#010101", "#010102", "#010103"
_CYCLE = [f"#0102{number:02x}" for number in range(MOST_LABELS + 1)]
_NAMES = {_INK: "--ink", _MUTED: "--muted", _MEAN: "--accent"} | {c: f"--c{n}" for n, c in enumerate(_CYCLE)}
_DRAWING: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedsa",
    "text.parse_math": False,  # a client may be called $\x$
    "font.size": 10.0,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


def draw_figures(records: Sequence[Table], metric: str, chosen: int | None) -> dict[str, Markup]:
    """Return the figures that the data suffice for, by name."""
    scale, unit = (100, " (%)") if metric in FRACTIONS else (1, "")
    key = "validation" if any("validation" in record for record in records) else "validation_after_training"
    validation = _series(records, key, metric, scale)
    loss = _series(records, "train", "loss", 1)
    weights = {r["client"]: float(r[key].get("examples", 1)) for r in records if r.get(key)}
    figures = {}
    with _drawing():
        if validation:
            mean = _mean(validation, weights)
            title = f"{metric.replace('_', ' ')} on validation{unit}"
            figures["validation"] = _svg(_curves(validation, mean, title, chosen), "validation")
        if loss:
            mean = _mean(loss, dict.fromkeys(loss, 1.0))
            figures["loss"] = _svg(_curves(loss, mean, "training loss", None), "loss")
    return figures


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw in fedsa's style, whatever the user's own settings of matplotlib are."""
    with style.context(["default", _DRAWING]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser's fonts show the text
        yield


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
            axes.fill_between(list(rounds), low, high, color=_CYCLE[0], alpha=alpha, linewidth=0)
    else:
        for number, points in enumerate(series.values()):
            dash = "-" if number < len(_CYCLE) else "--"
            axes.plot(*zip(*points, strict=True), dash, color=_colour(number), lw=0.9, marker=few_points, markersize=2)
    axes.plot(*zip(*mean, strict=True), color=_MEAN, linewidth=2.6, marker=few_points, markersize=4)
    axes.margins(x=0.02)
    axes.grid(axis="y")
    axes.set_title(title, loc="left", fontsize=10, pad=17)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chosen in dict(mean):
        axes.axvline(chosen, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot([chosen], [dict(mean)[chosen]], color=_MEAN, marker="o", markersize=8)
        side = "right" if chosen > mean[-1][0] / 2 else "left"
        axes.text(chosen, 1.02, f"round {chosen}: chosen", transform=axes.get_xaxis_transform(), ha=side)
    if not many:
        _name_lines(axes, series)
    return figure


def _name_lines(axes: Axes, series: Mapping[str, Points]) -> None:
    """Write each client's name beside the end of its line, moved apart where names would touch."""
    bottom, top = axes.get_ylim()
    right = axes.get_xlim()[1]
    axes.set_xlim(right=right)
    ends = sorted((points[-1][1], number, client) for number, (client, points) in enumerate(series.items()))
    for place, (value, number, client) in zip(
        _apart([(value - bottom) / (top - bottom) for value, _, _ in ends], 0.062), ends, strict=True
    ):
        axes.annotate(
            _clipped(for_terminal(client)),
            xy=(series[client][-1][0], value),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            color=_colour(number),
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _colour(number), "lw": 0.5, "alpha": 0.6, "relpos": (0, 0.5)},
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Return ascending places in 0 … 1, moved as little as it takes to lie ``gap`` apart.

    >>> [round(place, 2) for place in _apart([0.0, 0.5, 0.5, 0.9], 0.1)]
    [0.0, 0.45, 0.55, 0.9]
    """
    up = list(accumulate(places, lambda below, place: max(place, below + gap)))
    down = list(accumulate(reversed(places), lambda above, place: min(place, above - gap)))[::-1]
    middles = [(high + low) / 2 for high, low in zip(up, down, strict=True)]
    last = len(places) - 1
    return [min(max(middle, gap * index), 1 - gap * (last - index)) for index, middle in enumerate(middles)]


def _colour(number: int) -> str:
    return _CYCLE[number % len(_CYCLE)]


def _clipped(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 20 else f"{text[:18]}…"


def _quantile(values: Sequence[tuple[str, float]], fraction: float) -> float:
    ordered = sorted(value for _, value in values)
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def _svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an SVG element whose ids are its own and whose colours the style sheet sets."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text.replace("xlink:href", "href"))
    return Markup(re.sub(r"(fill|stroke): (#\w{6})", _named, text))  # noqa: S704  matplotlib escapes what it writes


def _named(match: re.Match[str]) -> str:
    return f"{match[1]}: var({_NAMES[match[2]]})" if match[2] in _NAMES else match[0]
