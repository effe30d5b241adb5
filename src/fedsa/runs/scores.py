"""A metric's values as tables have them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from fedsa.types import FRACTIONS

__all__ = ["shown", "spread"]


def shown(value: float, metric: str, sign: str = "") -> str:
    """Return a figure as tables have it: fractions in percent; ``sign="+"`` writes a plus too.

    >>> shown(0.8349, "accuracy"), shown(-1.2, "log_likelihood"), shown(0.01, "f1", "+")
    ('83.5', '-1.200', '+1.0')
    """
    return f"{100 * value:{sign}.1f}" if metric in FRACTIONS else f"{value:{sign}.3f}"


def spread(values: Sequence[float], metric: str) -> str:
    """Return mean ± sample standard deviation; of one value, that.

    >>> spread([0.8, 0.9, 1.0], "accuracy")
    '90.0 ± 10.0'
    """
    middle = shown(mean(values), metric)
    return f"{middle} ± {shown(stdev(values), metric)}" if len(values) > 1 else middle
