"""Figures of what a model writes, against what it should have written."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

__all__ = ["METRICS", "best_of", "extract", "squad_exact_match", "squad_f1"]

_INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = [re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$")]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def extract(text: str, how: str) -> str:
    r"""Return the part of a text that is compared.

    Args:
        text: what the model wrote, or the reference.
        how: ``none``: all of it. ``gsm8k_strict``: the number behind ``####``; ``gsm8k_flexible``: the last number;
            both without commas, $ and a closing full stop, as the language model evaluation harness has its tasks'
            filters of these names (there ``strict-match`` and ``flexible-extract`` of ``gsm8k``).

    >>> extract("so 3 + 4 = 7.\n#### 1,007", "gsm8k_strict"), extract("it is $1,007.", "gsm8k_flexible")
    ('1007', '1007')
    >>> extract("seven", "gsm8k_strict")
    '[invalid]'
    """
    if how == "none":
        return text
    if how == "gsm8k_strict":
        first = _STRICT.search(text)
        found = first.group(1) if first else _INVALID
    else:
        numbers = _FLEXIBLE.findall(text)
        found = next(part for part in numbers[-1] if part) if numbers else _INVALID
    for pattern in _IGNORED:
        found = pattern.sub("", found)
    return found.strip()


def _normalized(text: str) -> list[str]:
    """Return a text's words as the official SQuAD v1.1 script compares them: no case, punctuation, articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def squad_exact_match(written: str, wanted: str) -> float:
    """Return 1 if both are the same words, else 0.

    >>> squad_exact_match("The Denver Broncos.", "denver broncos"), squad_exact_match("Denver", "denver broncos")
    (1.0, 0.0)
    """
    return float(_normalized(written) == _normalized(wanted))


def squad_f1(written: str, wanted: str) -> float:
    """Return the harmonic mean of precision and recall of words, each counted as often as it stands there.

    >>> squad_f1("the Denver Broncos won", "Denver Broncos")
    0.8
    """
    mine, right = _normalized(written), _normalized(wanted)
    common = sum((Counter(mine) & Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(mine), common / len(right)
    return 2 * precision * recall / (precision + recall)


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": squad_exact_match, "f1": squad_f1}
"""The metrics of written text, by name: each of what was written and what was wanted."""


def best_of(metric: Callable[[str, str], float], written: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    """Return the mean of a metric over texts, each compared with the reference that it is most like.

    Args:
        metric: of what was written and what was wanted.
        written: a text for each row.
        wanted: the references of each row, at least one.

    >>> best_of(squad_f1, ["Denver Broncos", "Carolina"], [["Broncos", "the Denver Broncos"], ["Denver"]])
    0.5
    """
    return fmean(max(metric(text, each) for each in own) for text, own in zip(written, wanted, strict=True))
