"""The packaged part ``sentiment``: four domains of short English text with human ratings.

Source: Hutto & Gilbert, VADER, ICWSM 2014 (the data that comes with the package vaderSentiment, MIT licence).
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["read_sentiment"]

_FILES = {
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
_CLEAR = 0.5
"""Ratings run from -4 to 4; sentences nearer to 0 than this have no clear mood and are left out."""


def read_sentiment(folder: Path) -> datasets.Dataset:
    """Return 19,459 sentences with columns ``text``, ``label``, ``domain`` and ``document``.

    A sentence is "positive" or "negative" where its mean human rating is at least 0.5 away from 0; others are left out.
    Sentences of one product review or editorial share a ``document``; film snippets and tweets stand alone.
    Positive rates: tweets .68, movie .50, amazon .59, nyt .40.

    Args:
        folder: the fetched part, with the four ``*_GroundTruth.txt`` files.

    Raises:
        DataError: a file is missing or a line is not what it should be.
    """
    import datasets

    columns: dict[str, list[str]] = {"text": [], "label": [], "domain": [], "document": []}
    for domain, name in _FILES.items():
        for number, line in enumerate(_lines(folder / name), start=1):
            try:
                row, rating_text, text = line.split("\t")
                rating = float(rating_text)
            except ValueError:
                raise DataError(
                    f"{folder / name}, line {number}: expected id, rating and text between tabs, got {line[:60]!r}; "
                    "the part is damaged: delete the folder, it will be fetched again"
                ) from None
            if abs(rating) < _CLEAR:
                continue
            columns["text"].append(html.unescape(text).strip())
            columns["label"].append("positive" if rating > 0 else "negative")
            columns["domain"].append(domain)
            columns["document"].append(f"{domain}-{row.partition('_')[0]}")
    return datasets.Dataset.from_dict(columns)


def _lines(path: Path) -> list[str]:
    """Return a file's lines; not str.splitlines, which also cuts at characters inside a text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path}: {error}; the part is damaged: delete the folder, it will be fetched again"
        ) from None
    return [line for line in text.split("\n") if line]
