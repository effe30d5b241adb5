"""Which of many like cases run by default: one of each kind; the others are in the matrix (``pytest -m matrix``)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest

from fedsa.adapters.factors import VARIANTS

__all__ = ["factors_of", "one_of_each"]


def one_of_each(cases: Iterable[tuple[Any, ...]], kind: Callable[..., Hashable]) -> list[Any]:
    """Return cases for `pytest.mark.parametrize`: all of them, those marked ``matrix`` whose kind was there before.

    Args:
        cases: each a test's arguments.
        kind: of such arguments; None: only in the matrix.
    """
    seen: set[Hashable] = {None}
    marked = []
    for case in cases:
        own = kind(*case)
        marked.append(pytest.param(*case, marks=[pytest.mark.matrix] if own in seen else []))
        seen.add(own)
    return marked


def factors_of(variant: str) -> Hashable:
    """Return what server, plan and trainers see of a variant: lora, rslora, pissa and olora are alike to them."""
    return VARIANTS[variant].factors, VARIANTS[variant].is_product
