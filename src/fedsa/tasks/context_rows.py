"""Rows of questions with their contexts, as windows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from fedsa.tasks.base import IntArray
from fedsa.tasks.classification import TokenRows
from fedsa.tasks.spans import Ints

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

__all__ = ["ContextRows"]


@final
@dataclass(frozen=True)
class ContextRows:
    """Questions with their contexts; a context that is too long is in several windows.

    Item i is the first window of row i. Its further windows are the items ``first[i]`` to ``first[i + 1]``, which stand
    behind the rows.

    Attributes:
        windows: the items' tokens; their ``labels`` are the places of the answer's first and last token, shape
            (items, 2): in a window without the answer twice that of [CLS].
        labels: shape (rows,): the classes by which rows are dealt to clients.
        spans: shape (sum of lengths, 2), int32: the characters of the context, from and to, that a token stands for;
            0 and 0 where it is none of the context's.
        first: shape (rows + 1,).
        contexts: shape (rows,): a column of texts.
        references: of each row the answers that count as right; none of a row that is not used.
        notes: sentences on the rows.
    """

    windows: TokenRows
    labels: IntArray
    spans: Ints
    first: IntArray
    contexts: Dataset
    references: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def lengths(self) -> IntArray:
        """Tokens of each window."""
        return self.windows.lengths

    def fingerprint(self) -> str:
        """Return a hash of tokens, answers and classes."""
        digest = hashlib.sha256(self.windows.fingerprint().encode())
        for array in (self.labels, self.spans, self.first):
            digest.update(array.astype("<i8").tobytes())
        digest.update(json.dumps(self.references).encode())
        return digest.hexdigest()

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """The inputs of some windows, as from `TokenRows`; ``labels`` has shape (windows, 2)."""
        return self.windows.batch(rows)

    def texts(self, rows: IntArray, spans: Sequence[tuple[int, int]]) -> list[str]:
        """Return a part of each row's context: its characters from and to."""
        (column,) = self.contexts.column_names
        return [str(text)[slice(*span)] for text, span in zip(self.contexts[rows][column], spans, strict=True)]

    def windows_of(self, rows: IntArray) -> IntArray:
        """Return the items of all windows of rows, row by row."""
        counts = self.first[rows + 1] - self.first[rows] + 1
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # in its row
        items: IntArray = np.where(place == 0, np.repeat(rows, counts), np.repeat(self.first[rows], counts) + place - 1)
        return items
