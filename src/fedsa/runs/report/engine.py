"""What makes a page of a template and values, and how values are written in it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from fedsa.texts.escapes import for_html
from fedsa.texts.words import counted, sized, some
from fedsa.types import FRACTIONS

__all__ = ["duration", "page_engine", "score", "short", "size"]


def page_engine(metric: str) -> Environment:
    """Return what renders the templates of pages: all that is put in is escaped.

    Args:
        metric: what the filter ``score`` writes values of.
    """
    engine = Environment(
        autoescape=True,
        finalize=_safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(
            lambda name: resources.files("fedsa.runs.report").joinpath(name).read_text(encoding="utf-8")
        ),
    )
    engine.filters |= {
        "score": lambda value: score(value, metric),
        "some": some,
        "counted": counted,
        "count": lambda value: "–" if value is None else f"{value:,}",
        "size": size,
        "duration": duration,
        "quoted": shlex.quote,
    }
    return engine


def _safe(value: Any) -> Any:
    """A value for the page: texts without control characters, drawings unchanged."""
    return for_html(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def score(value: Any, metric: str) -> str:
    r"""Return a metric's value as text; of a table of metrics, the value of ``metric``.

    >>> score(0.8613, "accuracy"), score({"perplexity": 4.5678}, "perplexity"), score(None, "f1")
    ('86.1\xa0%', '4.568', '–')
    """
    if isinstance(value, Mapping):
        value = value.get(metric)
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}\u00a0%" if metric in FRACTIONS else f"{value:.4g}"


def size(value: float | None) -> str:
    r"""Return bytes as text, in decimal units.

    >>> size(999), size(147_456), size(1.5e9)
    ('999\xa0bytes', '147.5\xa0kB', '1.5\xa0GB')
    """
    if value is None:
        return "–"
    return sized(value).replace(" ", "\u00a0")


def duration(seconds: float | None) -> str:
    r"""Return a duration as text.

    >>> duration(8.04), duration(200), duration(7500)
    ('8.0\xa0s', '3\xa0min\xa020\xa0s', '2\xa0h\xa005\xa0min')
    """
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min\u00a0{rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h\u00a0{minutes % 60:02d}\u00a0min"


def short(path: Any) -> str:
    """Return a path without the folders of the machine it was on; a hub's name stays as it is."""
    text = str(path)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute() and kind(text).name:
            return f"…/{kind(text).name}"
    return text
