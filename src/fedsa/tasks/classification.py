"""Classification of one text or a pair of texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
import numpy.typing as npt
import torch

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray
from fedsa.tasks.cache import cached_arrays
from fedsa.tasks.classes import ClassTask
from fedsa.tasks.lengths import Reading, kept_length, raise_length, told, unread_rows, whole_lengths
from fedsa.tasks.padding import filled, width_of
from fedsa.tasks.values import text_of
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import ClassificationSettings, OwnTaskSettings

__all__ = ["BesideTokens", "Classification", "TokenRows"]

_TOKENIZE_ROWS = 1000  # rows tokenised at once: bounds memory, costs no speed
_CACHED_ROWS = 20_000  # fewer are tokenised in a second or two


@final
@dataclass(frozen=True)
class TokenRows:
    """Token ids of many rows, end to end in one array.

    Attributes:
        tokens: shape (sum of lengths,), int32.
        segments: the same shape, uint8: 0 for the first text and 1 for the second; None where the model has none.
        offsets: shape (rows + 1,): row i is ``tokens[offsets[i]:offsets[i + 1]]``; an unused row is empty.
        labels: what a batch has as ``labels``: class numbers, shape (rows,).
        pad: the padding token.
        widest: the most tokens that the model takes; None: no limit.
        left: pad on the left.
        notes: sentences on the rows.
    """

    tokens: npt.NDArray[np.int32]
    segments: npt.NDArray[np.uint8] | None
    offsets: IntArray
    labels: IntArray
    pad: int
    widest: int | None = None
    left: bool = False
    notes: tuple[str, ...] = ()

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """Return a hash of tokens, lengths and labels."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.segments, self.offsets, self.labels):
            digest.update(b"-" if array is None else array.astype("<i8").tobytes())
        return digest.hexdigest()

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels`` and, where the model has them, ``token_type_ids``."""
        starts, ends = self.offsets[rows], self.offsets[np.asarray(rows) + 1]
        laid = partial(
            filled, starts=starts, ends=ends, width=width_of(int((ends - starts).max()), self.widest), left=self.left
        )
        batch = {
            "input_ids": laid(self.tokens, fill=self.pad),
            "attention_mask": laid(np.broadcast_to(np.int64(1), self.tokens.shape), fill=0),
            "labels": self.labels[rows],
        }
        if self.segments is not None:
            batch["token_type_ids"] = laid(self.segments, fill=0)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


@dataclass(frozen=True)
class BesideTokens:
    """Rows of tokens for a task that has more than class numbers beside them; a subclass adds that.

    Attributes:
        texts: the rows' tokens.
    """

    texts: TokenRows

    @property
    def labels(self) -> IntArray:
        """By what rows are dealt out."""
        return self.texts.labels

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row."""
        return self.texts.lengths

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the rows."""
        return self.texts.notes


@final
@dataclass(frozen=True)
class Classification(ClassTask):
    """Cross-entropy on class logits; the metric is accuracy.

    Attributes:
        text_columns: one column, or two for a pair of texts.
        label_names: class names in order of their number.
        max_length: tokens kept of a row; a pair is shortened from its longer text.
        finds_end: the head finds a row by its end token, as those of encoder-decoders do: one inside a text, where
            somebody wrote ``</s>``, is read as a blank.
    """

    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    max_length: int = 128
    finds_end: bool = False

    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"

    @classmethod
    def from_settings(
        cls, settings: ClassificationSettings | OwnTaskSettings, label_names: Sequence[str]
    ) -> Classification:
        """Return the task of a recipe's ``[task]``."""
        return cls(tuple(settings.text_columns), tuple(label_names), settings.max_length)

    def fitted(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Classification:
        """Return the task as it is with a base model."""
        return replace(self, finds_end=bool(getattr(cast(Any, model).config, "is_encoder_decoder", False)))

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> TokenRows:
        """Return ``rows`` of ``table`` as tokens. ``table`` has the class numbers in its column ``CLASS_NUMBER``.

        Rows without answers are not kept on disk.

        Raises:
            DataError: a cell is no text, a row has no token at all, or the tokenizer knows nothing of most rows.
        """
        longest = kept_length(self.max_length, limit)
        rows = np.unique(rows)  # ascending: the order of offsets
        ended = tokenizer.eos_token if self.finds_end else None
        make = partial(self._tokenize, table, rows, tokenizer, longest, ended)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or len(rows) < _CACHED_ROWS or not answered:
            arrays = make()
        else:
            told_by = f"counted\0{backend.to_str()}\0{longest}\0{len(table)}\0{ended}"
            digest = hashlib.sha256(told_by.encode() + rows.tobytes())
            for _, columns in self._texts(table, rows):
                digest.update(json.dumps(columns).encode())
            arrays = cached_arrays(digest.hexdigest(), make)
        empty = rows[np.diff(arrays["offsets"])[rows] == 0]
        if len(empty):
            raise DataError(
                f"row {empty[0]}: the tokenizer makes no token of column {self.text_columns[0]!r} (and so in "
                f"{len(empty):,} of {counted(len(rows), 'row')}): fill it in or leave such rows out"
            )
        return TokenRows(
            tokens=arrays["tokens"],
            segments=arrays.get("segments"),
            offsets=arrays["offsets"],
            labels=np.asarray(table[CLASS_NUMBER][:], dtype=np.int64),
            pad=tokenizer.pad_token_id,
            widest=limit,
            left=tokenizer.padding_side == "left",
            notes=self._notes(arrays, tokenizer, longest, limit),
        )

    def _notes(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        limit: int | None,
    ) -> tuple[str, ...]:
        notes = unread_rows(arrays["content"], arrays["unknown"], tokenizer, self.text_columns)
        if cut := told(arrays["whole"], longest):
            notes.insert(0, f"{cut}: what is beyond is not read; {raise_length(longest, limit)}.")
        if count := int(arrays["ended"][0]):
            notes.append(
                f"{counted(count, 'text holds', 'texts hold')} {tokenizer.eos_token!r}, by which the model's head "
                "finds the end of a row: that is read as a blank."
            )
        return tuple(notes)

    def _texts(self, table: Dataset, rows: IntArray) -> Iterator[tuple[IntArray, list[list[str]]]]:
        """Yield some row numbers at a time, and the texts of each column."""
        for start in range(0, len(rows), _TOKENIZE_ROWS):
            part = rows[start : start + _TOKENIZE_ROWS]
            texts = table[part]
            yield (
                part,
                [
                    [text_of(text, row, column) for row, text in zip(part.tolist(), texts[column], strict=True)]
                    for column in self.text_columns
                ],
            )

    def _tokenize(
        self, table: Dataset, rows: IntArray, tokenizer: PreTrainedTokenizerBase, longest: int, ended: str | None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the rows as arrays.

        Args:
            table: all rows.
            rows: those that are used.
            tokenizer: the base model's.
            longest: tokens kept of a row.
            ended: the token that must not stand inside a text, or None.

        Returns:
            ``tokens``, ``offsets`` and, where the model has them, ``segments``, as `TokenRows` has them; ``whole``,
            ``content`` and ``unknown`` of the used rows as `Reading` has them; ``ended``, shape (1,): how many texts
            held that token.
        """
        tokens, segments = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.uint8)]
        lengths, reading, blanked = np.zeros(len(table), dtype=np.int64), Reading(tokenizer), 0
        has_segments = "token_type_ids" in tokenizer.model_input_names
        for part, columns in self._texts(table, rows):
            if ended is not None:
                blanked += sum(ended in text for column in columns for text in column)
                columns = [[text.replace(ended, " ") for text in column] for column in columns]
            encoded = tokenizer(*columns, truncation=True, max_length=longest)
            ids = encoded["input_ids"]
            lengths[part] = [len(row) for row in ids]
            tokens.append(np.fromiter(chain.from_iterable(ids), dtype=np.int32))
            reading.add(ids, whole_lengths(tokenizer, ids, columns, longest))
            if has_segments:
                segments.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.uint8))
        arrays = {"tokens": np.concatenate(tokens), "offsets": np.concatenate([[0], np.cumsum(lengths)])}
        arrays |= reading.arrays() | {"ended": np.array([blanked])}
        return arrays | ({"segments": np.concatenate(segments)} if has_segments else {})

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits in fp32 at least, shape (rows, classes)."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
