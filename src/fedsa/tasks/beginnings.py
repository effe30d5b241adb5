"""Rows of tokens, and the beginning of each by itself: a model goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from fedsa.tasks.base import IntArray, Sample
from fedsa.tasks.sequences import SequenceRows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Beginnings"]


@final
@dataclass(frozen=True)
class Beginnings:
    """Rows as they are, and behind them as many beginnings. No token is copied.

    Attributes:
        whole: the rows; each is one item.
        kept: shape (rows,): tokens of each row's beginning.
    """

    whole: SequenceRows
    kept: IntArray

    @property
    def labels(self) -> IntArray:
        """The class number of each row."""
        return self.whole.labels

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row, then of each beginning."""
        return np.concatenate([self.whole.lengths, self.kept])

    def fingerprint(self) -> str:
        """Return a hash of the rows."""
        return self.whole.fingerprint()

    def batch(self, items: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return a batch as `SequenceRows` does; of a beginning nothing is to be predicted."""
        rows, alone = np.asarray(items) % len(self.kept), np.asarray(items) >= len(self.kept)
        starts = self.whole.offsets[rows]
        ends = np.where(alone, starts + self.kept[rows], self.whole.offsets[rows + 1])
        return self.whole.laid(starts, ends, np.where(alone, 0, self.whole.answers[rows]))

    def samples(self, rows: IntArray, written: Tensor) -> list[Sample]:
        """Return rows as a reader sees them: the beginning, what was written, and what stands there in the row.

        Args:
            rows: some of them.
            written: on their beginnings, shape (rows, tokens); of what stands there no more tokens are shown.
        """
        starts, places, ends = (
            self.whole.offsets[rows],
            self.whole.offsets[rows] + self.kept[rows],
            self.whole.offsets[rows + 1],
        )
        tokens, most = self.whole.tokens, written.shape[1]
        prompts = self.whole.tokenizer.batch_decode(
            [tokens[start:place].tolist() for start, place in zip(starts, places, strict=True)],
            skip_special_tokens=True,
        )
        rests = [tokens[place : min(place + most, end)].tolist() for place, end in zip(places, ends, strict=True)]
        texts = zip(prompts, self.whole.texts(written.tolist()), self.whole.texts(rests), strict=True)
        return [Sample(prompt, own, (right,)) for prompt, own, right in texts]
