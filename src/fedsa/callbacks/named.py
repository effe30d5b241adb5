"""The listeners that a recipe names: trackers by their names, classes of the user's own by where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsa.callbacks.base import Callback
from fedsa.callbacks.trackers import TRACKERS
from fedsa.errors import Mistake, UserError, near
from fedsa.plugins import load_class

__all__ = ["check_callbacks", "make_callbacks"]

_SETTINGS = ("callbacks", "report_to")


def make_callbacks(names: Sequence[str]) -> list[Callback]:
    """The listeners of a recipe.

    Args:
        names: names of `TRACKERS`, or ``package.module:Class``.

    Raises:
        UserError: there is none of a name.
        MissingExtraError: a tracker needs an extra that is not installed.
    """
    return [_find(name)() for name in names]


def check_callbacks(data: Mapping[str, Any]) -> list[Mistake]:
    """The mistakes in a recipe's raw data about its listeners."""
    mistakes = []
    for setting in _SETTINGS:
        names = data.get(setting, [])
        for name in names if isinstance(names, list) else []:
            try:
                if isinstance(name, str):  # a wrong type is the recipe's own mistake to report
                    _find(name)
            except UserError as error:
                mistakes.append(Mistake(setting, str(error)))
    return mistakes


def _find(name: str) -> type[Callback]:
    if ":" in name:
        return load_class("callback", name, Callback)
    if name not in TRACKERS:
        raise UserError(f"unknown tracker {name!r}; {near(name, TRACKERS)}")
    TRACKERS[name].require()
    return TRACKERS[name]
