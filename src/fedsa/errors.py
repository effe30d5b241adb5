"""The errors that fedsa raises on purpose.

FedsaError                  exit 1: something failed that the user could not have written differently
├── TrainingError           a client's training or evaluation went wrong (loss not finite, out of memory)
├── FetchError              a packaged part could not be fetched
├── ProtocolError           an update that does not fit the round or the sharing plan
└── UserError               exit 2: the user can correct it; the message says what, where and how
    ├── ConfigError         one or more mistakes in a recipe, all listed
    ├── DataError           rows, columns, labels or partitions that do not fit
    ├── ModelError          a model or adapter config that cannot be used
    ├── RunFolderError      a run folder that is missing, in use, damaged or not ours
    └── MissingExtraError   an optional dependency is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedsa.texts.words import counted, cut

__all__ = [
    "ConfigError",
    "DataError",
    "DisagreementError",
    "FedsaError",
    "FetchError",
    "MissingExtraError",
    "Mistake",
    "ModelError",
    "ProtocolError",
    "RunFolderError",
    "TrainingError",
    "UserError",
    "near",
]


class FedsaError(Exception):
    """Base of every error that fedsa raises on purpose. Its text is the whole message."""

    exit_code = 1


class TrainingError(FedsaError):
    """A client's local training or evaluation failed."""


class FetchError(FedsaError):
    """A packaged part could not be fetched from the package index."""


class ProtocolError(FedsaError):
    """An update that does not fit the round or the sharing plan."""


class UserError(FedsaError):
    """A mistake that the user can mend; shown without a traceback."""

    exit_code = 2


_SHOWN = 20
"""Mistakes that one message lists; the others are counted."""


@dataclass(frozen=True)
class Mistake:
    """One mistake in a recipe: where it is (dotted key) and what is wrong, with the mend."""

    where: str
    what: str

    def __str__(self) -> str:
        what = cut(self.what, 600)
        return f"{cut(self.where, 200)}: {what}" if self.where else what


class ConfigError(UserError):
    """One or more mistakes in a recipe. The message shows the first twenty.

    Args:
        mistakes: every mistake found, in the order they are shown.
        source: the recipe they are in (a path or a name).
    """

    def __init__(self, mistakes: Sequence[Mistake], source: str = "recipe") -> None:
        self.mistakes = tuple(mistakes)
        self.source = source
        lines = "".join(f"\n  {mistake}" for mistake in self.mistakes[:_SHOWN])
        more = f"\n  and {len(self.mistakes) - _SHOWN:,} more" if len(self.mistakes) > _SHOWN else ""
        super().__init__(f"{counted(len(self.mistakes), 'mistake')} in {source}:{lines}{more}")


class DataError(UserError):
    """Rows, columns, labels or a partition that do not fit."""


class ModelError(UserError):
    """A model or an adapter config that cannot be used."""


class DisagreementError(ModelError):
    """A site that does not hold what was agreed upon; the text names nothing but parts of the agreement."""


class RunFolderError(UserError):
    """A run folder that is missing, in use, damaged or not a run folder."""


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        what: what was asked for, e.g. ``tracker 'tensorboard'``.
        extra: the extra of fedsa that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'fedsa[{extra}]'")


def near(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt ``name``: the nearest known name, or all of them.

    >>> near("fedsaa", ["fedsa", "ffa", "local"])
    "did you mean 'fedsa'?"
    >>> near("xyz", ["a", "b"])
    'known: a, b'
    """
    known = sorted(known)
    if len(name) > 100:  # not a misspelling, and comparing it takes long
        return "known: " + ", ".join(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known)
