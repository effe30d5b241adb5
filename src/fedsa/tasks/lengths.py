"""What a model does not see of its rows: what is cut off, and what its tokenizer does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Reading", "kept_length", "raise_length", "told", "unread_rows", "whole_lengths"]

_KNOWN = 0.1  # of a row's tokens: with fewer that the tokenizer knows, nothing is left to learn from


@final
@dataclass
class Reading:
    """Counts of rows as they are read, for the notes on them.

    Attributes:
        tokenizer: the base model's.
        whole: tokens of each row before it is cut, those that the tokenizer adds included.
        content: tokens of each row that stand for something in its texts.
        unknown: those of them that the tokenizer does not know.
    """

    tokenizer: PreTrainedTokenizerBase
    whole: list[IntArray] = field(default_factory=list)
    content: list[IntArray] = field(default_factory=list)
    unknown: list[IntArray] = field(default_factory=list)

    def add(self, ids: Sequence[Sequence[int]], whole: Sequence[int] | IntArray) -> None:
        """Count some rows.

        Args:
            ids: the tokens of each row, as the model gets them.
            whole: how many tokens each had before it was cut.
        """
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
        owner = np.repeat(np.arange(len(ids)), lengths)
        added, unknown = self._special
        self.whole.append(np.asarray(whole, dtype=np.int64))
        self.content.append(np.bincount(owner[~np.isin(flat, added)], minlength=len(ids)))
        self.unknown.append(np.bincount(owner[flat == unknown], minlength=len(ids)))

    @property
    def _special(self) -> tuple[list[int], int]:
        """The tokens that stand for nothing in a text, and the one for what is not known (-1: there is none)."""
        tokenizer: Any = self.tokenizer
        names = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id")
        ends = {getattr(tokenizer, name, None) for name in names}
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown in ends:  # GPT-2's is its end token; all bytes are known to it
            unknown = -1
        return [token for token in tokenizer.all_special_ids if token != unknown], unknown

    def arrays(self) -> dict[str, npt.NDArray[np.int32]]:
        """Return the counts, an array each, shape (rows,)."""
        return {
            name: np.concatenate([np.empty(0, np.int64), *getattr(self, name)]).astype(np.int32)
            for name in ("whole", "content", "unknown")
        }

    def unread(self, columns: Sequence[str]) -> list[str]:
        """Return sentences on rows of which the tokenizer knows nothing or nearly nothing.

        Args:
            columns: where the texts are.

        Raises:
            DataError: most rows are such.
        """
        counts = self.arrays()
        return unread_rows(counts["content"], counts["unknown"], self.tokenizer, columns)


def unread_rows(
    content: npt.NDArray[Any], unknown: npt.NDArray[Any], tokenizer: PreTrainedTokenizerBase, columns: Sequence[str]
) -> list[str]:
    """Return sentences on rows of which a tokenizer knows nothing or nearly nothing.

    Args:
        content: tokens of each row that stand for something in its texts, shape (rows,).
        unknown: those of them that the tokenizer does not know, shape (rows,).
        tokenizer: the base model's.
        columns: where the texts are.

    Raises:
        DataError: most rows are such.
    """
    where = " and ".join(map(repr, columns))
    foreign = int(((unknown > 0) & (content - unknown <= _KNOWN * content)).sum())
    empty = int((content == 0).sum())
    notes = []
    for count, what in (
        (foreign, f"hold (nearly) nothing but tokens that the model's tokenizer does not know ({tokenizer.unk_token})"),
        (empty, "have no token that the model could read"),
    ):
        told = f"{count:,} of {counted(len(content), 'row')} {what}"
        if 2 * count > len(content):
            raise DataError(
                f"{told}: there is nothing to learn from them; look at column {where}, and take a model for texts of "
                "that kind, with its own tokenizer"
            )
        if count:
            notes.append(f"{told}: look at column {where}.")
    return notes


def whole_lengths(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]], columns: Sequence[Sequence[str]], longest: int
) -> IntArray:
    """The number of tokens of each row before it is cut. Rows that were cut are tokenised once more.

    Args:
        tokenizer: the base model's.
        ids: the rows as they were cut.
        columns: the rows' texts: a list of the first texts, and one of the second for pairs.
        longest: to so many tokens they were cut.
    """
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    full = np.flatnonzero(lengths >= longest).tolist()
    if full:
        texts = [[column[place] for place in full] for column in columns]
        whole = tokenizer(*texts, verbose=False, return_attention_mask=False, return_token_type_ids=False)["input_ids"]
        lengths[full] = [len(row) for row in whole]
    return lengths


def kept_length(max_length: int, limit: int | None) -> int:
    """The most tokens that are kept of a row.

    Args:
        max_length: the task's.
        limit: the most that the model takes; None: any number.

    >>> kept_length(512, None), kept_length(512, 128)
    (512, 128)
    """
    return max_length if limit is None else min(max_length, limit)


def raise_length(longest: int, limit: int | None) -> str:
    """Advice for rows longer than ``longest``, with a model that accepts ``limit`` tokens."""
    if limit is not None and longest >= limit:
        return "the model takes no more"
    most = f" (the model takes {limit:,})" if limit is not None and limit < 10**6 else ""
    return f"raise task.max_length{most} to keep more"


def told(whole: npt.NDArray[Any], longest: int) -> str:
    """A sentence that counts the rows longer than ``longest``; empty if there are none.

    >>> told(np.array([3, 1430, 129]), 128)
    '2 of 3 rows are longer than 128 tokens (longest 1,430)'
    """
    count = int((whole > longest).sum())
    if not count:
        return ""
    are = "row is" if len(whole) == 1 else "rows are"
    return f"{count:,} of {len(whole):,} {are} longer than {counted(longest, 'token')} (longest {int(whole.max()):,})"
