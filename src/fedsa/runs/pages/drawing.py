"""How figures of a page are drawn: as SVG whose colours the page's style sheet sets."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeAlias

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsa.texts.escapes import for_terminal

__all__ = ["CYCLE", "INK", "MEAN", "MUTED", "Points", "apart", "clipped", "colour", "drawing", "name_lines", "svg"]

Points: TypeAlias = Sequence[tuple[float, float]]
"""Places of a line, from left to right."""

# What matplotlib draws with, and the style sheet's names that take its place.
INK, MUTED, MEAN = "#010101", "#010102", "#010103"
CYCLE = [f"#0102{number:02x}" for number in range(8)]
_NAMES = {INK: "--ink", MUTED: "--muted", MEAN: "--accent"} | {c: f"--c{n}" for n, c in enumerate(CYCLE)}
_DRAWING: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedsa",
    "text.parse_math": False,  # a client may be called $\x$
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in fedsa's style, whatever the user's own settings of matplotlib are."""
    with style.context(["default", _DRAWING]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser's fonts show the text
        yield


def name_lines(axes: Axes, series: Mapping[str, Points], colours: Sequence[int] | None = None) -> None:
    """Write each series' name beside the end of its line, moved apart where names would touch.

    Args:
        axes: with the lines in it.
        series: name to the points of its line.
        colours: the number of each line's colour; None: their places.
    """
    numbers = range(len(series)) if colours is None else colours
    bottom, top = axes.get_ylim()
    right = axes.get_xlim()[1]
    axes.set_xlim(right=right)
    ends = sorted((points[-1][1], number, name) for number, (name, points) in zip(numbers, series.items(), strict=True))
    for place, (value, number, name) in zip(
        apart([(value - bottom) / (top - bottom) for value, _, _ in ends], 0.068), ends, strict=True
    ):
        axes.annotate(
            clipped(for_terminal(name)),
            xy=(series[name][-1][0], value),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour(number), "lw": 1.2, "relpos": (0, 0.5)},
        )


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return ascending places in 0 … 1, moved as little as it takes to lie ``gap`` apart.

    >>> [round(place, 2) for place in apart([0.0, 0.5, 0.5, 0.9], 0.1)]
    [0.0, 0.45, 0.55, 0.9]
    """
    up = list(accumulate(places, lambda below, place: max(place, below + gap)))
    down = list(accumulate(reversed(places), lambda above, place: min(place, above - gap)))[::-1]
    middles = [(high + low) / 2 for high, low in zip(up, down, strict=True)]
    last = len(places) - 1
    return [min(max(middle, gap * index), 1 - gap * (last - index)) for index, middle in enumerate(middles)]


def colour(number: int) -> str:
    """The colour of a line, by its number."""
    return CYCLE[number % len(CYCLE)]


def clipped(text: str) -> str:
    """Return a name on one line, and no longer than fits beside a figure."""
    text = " ".join(text.split())
    return text if len(text) <= 20 else f"{text[:18]}…"


def svg(figure: Figure, name: str) -> Markup:
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
