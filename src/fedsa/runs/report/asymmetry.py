"""What clients have in common, A and B apart: of a run that `fedsa analyze` has looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter

from fedsa.errors import RunFolderError
from fedsa.runs.pages.drawing import INK, MUTED, colour, drawing, svg
from fedsa.system.sums import changed_file

__all__ = ["Asymmetry", "Mean", "asymmetry_of"]

_FILE = Path("analysis") / "means.json"

_MEASURES = {
    "moved": "Movement since the start of the run",
    "within": "Movement within the round",
    "span": "Space that they span",
    "update": "Update, B·A",
}
"""Measures that are shown, and what of the tensors they compare."""


class Mean(BaseModel):
    """The similarity of clients' tensors: mean over pairs of clients, and the pairs that are least and most alike."""

    model_config = ConfigDict(strict=True, extra="ignore")
    round: NonNegativeInt
    measure: str
    factor: str
    mean: float
    lowest: float
    highest: float

    @property
    def compared(self) -> str:
        """What of the tensors is compared."""
        return _MEASURES[self.measure]


_FORM = TypeAdapter(list[Mean])


@dataclass(frozen=True)
class Asymmetry:
    """What a run's analysis came to, at its last round.

    Attributes:
        round: the round.
        means: by measure and factor.
        drawn: them as a figure.
        in_words: the same in a sentence.
    """

    round: int
    means: Sequence[Mean]
    drawn: Markup
    in_words: str


def asymmetry_of(run: Path) -> Asymmetry | None:
    """Return what `fedsa analyze` has found in a run; None: it has not been asked.

    Args:
        run: the run folder.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        if changed_file(path.parent, [path.name]) is not None:
            raise ValueError("it was changed after it was written")
        found = _FORM.validate_json(path.read_bytes())
    except (OSError, ValueError):  # a ValidationError is one
        raise RunFolderError(
            f"{path} is not what `fedsa analyze` wrote: run `fedsa analyze {run}` again, or move the folder away"
        ) from None
    last = max((each.round for each in found), default=0)
    order = list(_MEASURES)
    means = [each for each in found if each.round == last and each.measure in _MEASURES]
    means.sort(key=lambda each: order.index(each.measure))
    if not means:
        return None
    with drawing():
        return Asymmetry(last, means, svg(_draw(means), "asymmetry"), _in_words(means))


def _in_words(means: Sequence[Mean]) -> str:
    """Compare A and B by the first measure that both have."""
    found = {(each.measure, each.factor): each.mean for each in means}
    for measure in _MEASURES:
        a, b = found.get((measure, "A")), found.get((measure, "B"))
        if a is None or b is None:
            continue
        more = "more alike than" if a > b else "less alike than" if a < b else "as alike as"
        return (
            f"A’s of different clients are {more} their B’s: the mean similarity over pairs of clients is {a:.2f} for "
            f"A and {b:.2f} for B ({_MEASURES[measure][0].lower()}{_MEASURES[measure][1:]})."
        )
    return ""


def _draw(means: Sequence[Mean]) -> Figure:
    height = 0.9 + 0.27 * len(means)
    figure = Figure(figsize=(5.6, height))
    axes = figure.add_axes((0.42, 0.5 / height, 0.55, 1 - 0.75 / height))
    factors = list(dict.fromkeys(each.factor for each in means))
    places = range(len(means))[::-1]
    for place, each in zip(places, means, strict=True):
        shade = colour(factors.index(each.factor))
        axes.plot([each.lowest, each.highest], [place, place], color=shade, linewidth=1.4, alpha=0.7)
        axes.plot([each.mean], [place], "o", color=shade, markersize=6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [f"{each.factor}: {_SHORT[each.measure]}" for each in means])
    axes.set_ylim(-0.7, len(means) - 0.3)
    axes.set_xlabel("similarity of two clients’ tensors", color=MUTED)
    axes.grid(axis="x")
    return figure


_SHORT = {"moved": "moved in the run", "within": "moved in the round", "span": "space", "update": "update"}
