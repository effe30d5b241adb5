"""Tokenise rows: some at a time, and with the place of each token in its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["parts_of", "tokens_with_places"]

_TOKENIZE_ROWS = 1000  # rows tokenised at once: bounds memory, costs no speed


def parts_of(table: Dataset, rows: IntArray) -> Iterator[tuple[IntArray, list[dict[str, Any]]]]:
    """Yield some row numbers at a time, and these rows."""
    for start in range(0, len(rows), _TOKENIZE_ROWS):
        part = rows[start : start + _TOKENIZE_ROWS]
        columns = table[part]
        yield part, [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def tokens_with_places(tokenizer: PreTrainedTokenizerBase, *texts: list[str], **options: Any) -> BatchEncoding:
    """The encoding of texts, with ``offset_mapping``: the place of each token in its text.

    Args:
        tokenizer: the base model's.
        texts: one list, or two for pairs.
        options: of the tokenizer.

    Raises:
        DataError: it does not tell.
    """
    try:
        encoded: BatchEncoding = tokenizer(*texts, return_offsets_mapping=True, **options)
    except NotImplementedError as error:
        raise DataError(
            f"{type(tokenizer).__name__} does not tell where its tokens are in a text, which this kind of task needs: "
            "take a model with a fast tokenizer"
        ) from error
    return encoded
