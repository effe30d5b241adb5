"""What makes a page of a template and values, and how values are written in it."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from jinja2 import BytecodeCache, Environment, FunctionLoader, StrictUndefined, TemplateError
from jinja2.bccache import Bucket
from markupsafe import Markup

from fedsa.texts.escapes import for_html
from fedsa.texts.words import counted, sized, some
from fedsa.types import FRACTIONS

__all__ = ["OF_OTHER_FORM", "duration", "page_engine", "score", "short", "signed", "size", "sortable"]

OF_OTHER_FORM = (AttributeError, KeyError, TypeError, ValueError, TemplateError)
"""What making a page raises where a file does not have the form that this version of fedsa writes."""


class _Memory(BytecodeCache):
    """Keeps compiled templates as long as the process lives: a run's page is made anew after every round."""

    def __init__(self) -> None:
        self._codes: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take what was kept, if it is of the same text."""
        if bucket.key in self._codes:
            bucket.bytecode_from_string(self._codes[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a template."""
        self._codes[bucket.key] = bucket.bytecode_to_string()


@functools.cache
def _compiled(metric: str) -> _Memory:
    """Return the compiled templates of a metric: what a filter makes of a constant is in them."""
    return _Memory()


def page_engine(metric: str) -> Environment:
    """Return what renders the templates of pages: all that is put in is escaped.

    A page runs no script but ours: its policy names their hashes. Beside the values that its template asks for, each
    page is given ``version`` and ``done``: for a page that is served, which one it is, and whether it is the last.

    Args:
        metric: what the filters ``score`` and ``signed`` write values of.
    """
    engine = Environment(
        autoescape=True,
        finalize=_safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_text),
        bytecode_cache=_compiled(metric),
    )
    engine.globals |= {"version": None, "done": False}
    engine.filters |= {
        "score": lambda value: score(value, metric),
        "signed": lambda value: signed(value, metric),
        "sortable": lambda value: sortable(value, metric),
        "script": lambda name: Markup(_script(name)),  # noqa: S704  our own files
        "hashes": lambda names: Markup(" ".join(map(_hash_of, names))),  # noqa: S704
        "some": some,
        "counted": counted,
        "count": lambda value: "–" if value is None else f"{value:,}",
        "size": size,
        "duration": duration,
        "quoted": shlex.quote,
        "capitalize_first": lambda text: f"{text[:1].upper()}{text[1:]}",
    }
    return engine


def _text(name: str) -> str:
    return resources.files("fedsa.runs").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _script(name: str) -> str:
    """Return the text of a script, without the comments above it."""
    lines = _text(f"pages/{name}").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//"))


def _hash_of(name: str) -> str:
    """Return how a page's policy names a script that may run."""
    digest = base64.b64encode(hashlib.sha256(_script(name).encode()).digest()).decode()
    return f"'sha256-{digest}'"


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


def signed(value: float | None, metric: str) -> str:
    r"""Return a difference as text, in percentage points where the metric is a part of one.

    >>> signed(-0.0213, "accuracy"), signed(0.5, "log_likelihood"), signed(0.0, "f1"), signed(None, "f1")
    ('−2.1', '+0.5', '0.0', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    shown = f"{100 * value:+.1f}" if metric in FRACTIONS else f"{value:+.4g}"
    return shown.replace("-", "−") if float(shown) else "0.0"


def sortable(value: Any, metric: str = "") -> str:
    """Return a number as scripts read it, of a table of metrics that of ``metric``; empty where there is none.

    >>> sortable(0.25), sortable({"f1": 1}, "f1"), sortable(None)
    ('0.25', '1', '')
    """
    if isinstance(value, Mapping):
        value = value.get(metric)
    return "" if value is None or not math.isfinite(value) else repr(value)


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
