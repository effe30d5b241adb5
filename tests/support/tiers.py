"""Which of many like cases run when: some in the quick tier, one of each kind by default, the others in the matrix."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest

from fedsa.adapters.factors import VARIANTS

__all__ = ["factors_of", "first_is_quick", "one_of_each"]


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


def first_is_quick(values: Iterable[Any]) -> list[Any]:
    """Return values for `pytest.mark.parametrize`: all but the first are marked ``run``, so the quick tier has one.

    Args:
        values: each a test's argument, or a tuple of its arguments.
    """
    first, *rest = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*first), *(pytest.param(*value, marks=pytest.mark.run) for value in rest)]


def factors_of(variant: str) -> Hashable:
    """Return what server, plan and trainers see of a variant: lora, rslora, pissa and olora are alike to them."""
    return VARIANTS[variant].factors, VARIANTS[variant].is_product
