"""A run beside another one, client by client, as its report tells it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fedsa.errors import UserError
from fedsa.runs.compare import Beside, ClientPair, Comparison, compare
from fedsa.runs.compare.figures import draw_differences
from fedsa.runs.pages.engine import signed
from fedsa.texts.words import counted
from fedsa.types import FRACTIONS

__all__ = ["Against", "against"]


@dataclass(frozen=True)
class Against:
    """What a run is compared with.

    Attributes:
        name: what the other run is called.
        folder: the name of its folder.
        in_words: what the comparison comes to.
        pairs: by client, those that can be compared.
        drawn: the differences as a figure; None: there are none.
        notes: sentences: what was left out, and what an interval rests on.
    """

    name: str
    folder: str
    in_words: str
    pairs: dict[str, ClientPair]
    drawn: Markup | None
    notes: list[str]


def against(run: Path, other: Path) -> Against:
    """Put a run beside another one.

    Args:
        run: its folder.
        other: the other's.

    Raises:
        RunFolderError: one of the two is not finished, or damaged.
        UserError: they are one run, or two of one recipe with other seeds.
    """
    found = compare([other, run], other)
    if not found.beside:
        raise UserError(
            f"{other} has the recipe of {run} with another seed, so there is nothing to compare client "
            f"by client; for the spread over seeds: fedsa compare {shlex.join([str(run), str(other)])}"
        )
    (beside,) = found.beside
    figures = draw_differences(found)
    is_local = found.reference.recipe.algorithm == "local" and beside.group.recipe.algorithm != "local"
    name, folder = "local training" if is_local else found.reference.name, other.resolve().name
    return Against(
        name=name,
        folder=folder,
        in_words=_in_words(beside, found, f"{name} (run {folder})"),
        pairs={pair.client: pair for pair in beside.clients},
        drawn=figures.get(beside.group.name),
        notes=[*found.notes, *beside.reasons],
    )


def _in_words(beside: Beside, found: Comparison, other: str) -> str:
    """Say what a comparison comes to."""
    difference, counts, metric = beside.difference, beside.counts, found.metric
    if difference is None:
        return f"This run cannot be compared with {other}."
    low, middle, high = (signed(value, metric) for value in (difference.low, difference.mean, difference.high))
    unit = " percentage points" if metric in FRACTIONS else ""
    clear = "" if difference.is_clear else "; it contains zero, so there may be no difference"
    return (
        f"Against {other}: {middle}{unit} of {metric.replace('_', ' ')} on test, mean over "
        f"{counted(len(beside.clients), 'client')} (95\u00a0% interval {low} to {high}{clear}). Of them "
        f"{counts['better']:,} are better here, {counts['worse']:,} are worse, and {counts['same']:,} the same."
    )
