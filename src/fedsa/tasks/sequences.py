"""Token sequences that end in an answer, for decoders: what is trained and asked is the answer alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray
from fedsa.tasks.padding import filled, width_of

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "SequenceRows",
    "Writer",
    "answer_losses",
    "parts_of",
    "sequence_example",
    "tokens_with_places",
]

IGNORED = -100
"""The label of a position whose token is not predicted."""

_TOKENIZE_ROWS = 1000  # rows tokenised at once: bounds memory, costs no speed


@final
@dataclass(frozen=True)
class SequenceRows:
    """Token sequences, end to end in one array.

    Attributes:
        tokens: shape (sum of lengths,), int32.
        offsets: shape (items + 1,): item i is ``tokens[offsets[i]:offsets[i + 1]]``; an unused row is empty.
        answers: shape (items,): the number of tokens at an item's end that are to be predicted.
        labels: shape (rows,): class numbers.
        first: shape (rows + 1,): the items that are asked of row i are ``first[i]`` to ``first[i + 1]``.
        pad: the padding token.
        widest: the most tokens that the model takes.
        end: the token that ends an answer.
        tokenizer: to read what a model writes.
        right: shape (rows,): which of a row's asked items is the right one.
        weights: shape (items,): bytes of an asked item's text.
        references: of each row the texts that what a model writes is compared with; empty where none are needed.
    """

    tokens: npt.NDArray[np.int32]
    offsets: IntArray
    answers: IntArray
    labels: IntArray
    first: IntArray
    pad: int
    widest: int | None
    end: int
    tokenizer: PreTrainedTokenizerBase
    right: IntArray
    weights: IntArray
    references: tuple[tuple[str, ...], ...] = ()

    @property
    def lengths(self) -> IntArray:
        """Tokens of each item."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """Return a hash of tokens, lengths, answers and labels."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.offsets, self.answers, self.labels, self.first, self.right):
            digest.update(array.astype("<i8").tobytes())
        if self.references:
            digest.update(json.dumps(self.references).encode())
        return digest.hexdigest()

    def asked(self, rows: IntArray) -> IntArray:
        """Return the items that are asked of rows, row by row."""
        counts = self.first[rows + 1] - self.first[rows]
        starts = np.repeat(self.first[rows] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        items: IntArray = starts + np.arange(counts.sum())
        return items

    def batch(self, items: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``position_ids`` and ``labels``, padded on the left.

        ``labels`` has the width of the longest answer, and stands for the last positions: the token of each, and
        `IGNORED` in front of a shorter answer. Without any answer its width is zero.
        """
        items = np.asarray(items)
        starts, ends, answers = self.offsets[items], self.offsets[items + 1], self.answers[items]
        laid = partial(filled, ends=ends, left=True)
        width = width_of(int((ends - starts).max()), self.widest)
        mask = laid(np.broadcast_to(np.int64(1), self.tokens.shape), starts, width=width, fill=0)
        batch = {
            "input_ids": laid(self.tokens, starts, width=width, fill=self.pad),
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
            "labels": laid(self.tokens, ends - answers, width=int(answers.max()), fill=IGNORED),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@final
class Writer:
    """Makes `SequenceRows` of prompts and answers.

    Args:
        tokenizer: the base model's.
        longest: tokens kept of an item: a prompt is cut at its beginning, an answer at its end.
        chat: prompt and answer are a turn each in the tokenizer's chat template.

    Raises:
        DataError: the tokenizer has no end token, or no chat template where one is wanted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int, *, chat: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end token (eos_token), which ends an answer: set one")
        if chat and not tokenizer.chat_template:
            raise DataError("task.chat = true: the tokenizer has no chat template; set it to false")
        self._tokenizer, self._longest, self._chat = tokenizer, longest, chat
        self._parts: list[npt.NDArray[np.int32]] = []
        self._items: list[IntArray] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, items: IntArray, prompts: Sequence[str], answers: Sequence[str] | None) -> None:
        """Add items, behind all that were added before.

        Args:
            items: their numbers, ascending.
            prompts: of each item.
            answers: what is to be predicted; None: nothing is, the model is to write on.
        """
        given = self._prompts(prompts)
        said: list[list[int]] = [[] for _ in given]
        if answers is not None:
            ids = self._tokenizer(list(answers), add_special_tokens=False)["input_ids"]
            said = [[*each, self._tokenizer.eos_token_id] for each in ids]
        for prompt, answer in zip(given, said, strict=True):
            kept = answer[: self._longest - 1]  # something must stand in front of it
            front = prompt[max(0, len(prompt) + len(kept) - self._longest) :]
            self._parts.append(np.asarray([*front, *kept], dtype=np.int32))
            self._sizes.append((len(front) + len(kept), len(kept)))
        self._items.append(items)

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._tokenizer
        if self._chat:
            texts = [
                str(
                    tokenizer.apply_chat_template(
                        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                    )
                )
                for text in texts
            ]
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=not self._chat)["input_ids"]
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [each or [first] for each in ids]  # the first token of an answer is predicted from something

    def rows(
        self,
        labels: IntArray,
        items: int,
        *,
        limit: int | None,
        first: IntArray | None = None,
        right: IntArray | None = None,
    ) -> SequenceRows:
        """Return all that was added.

        Args:
            labels: class numbers, shape (rows,).
            items: how many there are, with the empty ones: rows that are not used.
            first: as `SequenceRows` has it; None: a row itself is asked.
            limit: the most tokens that the model takes.
            right: as `SequenceRows` has it; None: the first.
        """
        sizes = np.zeros((items, 2), dtype=np.int64)
        sizes[np.concatenate(self._items)] = self._sizes
        return SequenceRows(
            tokens=np.concatenate(self._parts),
            offsets=np.concatenate([[0], np.cumsum(sizes[:, 0])]),
            answers=sizes[:, 1].copy(),
            labels=labels,
            first=np.arange(len(labels) + 1) if first is None else first,
            pad=int(self._tokenizer.pad_token_id),  # fit_padding has set it
            widest=limit,
            end=int(self._tokenizer.eos_token_id),
            tokenizer=self._tokenizer,
            right=np.zeros(len(labels), dtype=np.int64) if right is None else right,
            weights=np.ones(items, dtype=np.int64),
        )


def parts_of(table: Dataset, rows: IntArray) -> Iterator[tuple[IntArray, list[dict[str, Any]]]]:
    """Yield some row numbers at a time, and these rows."""
    for start in range(0, len(rows), _TOKENIZE_ROWS):
        part = rows[start : start + _TOKENIZE_ROWS]
        columns = table[part]
        yield part, [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def tokens_with_places(tokenizer: PreTrainedTokenizerBase, *texts: list[str], **options: Any) -> BatchEncoding:
    """Return what a tokenizer makes of texts, with ``offset_mapping``: where in its text each token is.

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


def answer_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of each row's answer, and the number of its tokens, both of shape (rows,).

    Logits are computed for the positions of the answers alone: that is most of a small model's memory.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    # The token at a position is predicted at the one before it.
    logits: Tensor = model(**inputs, logits_to_keep=labels.shape[1] + 1).logits[:, -labels.shape[1] - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return each.sum(dim=1), (labels != IGNORED).sum(dim=1).to(each.dtype)


def sequence_example(rows: int, tokens: int) -> dict[str, Tensor]:
    """Return a batch that means nothing: every token but the first is to be predicted, the most there can be."""
    ids = torch.ones(rows, tokens, dtype=torch.int64)
    positions = torch.arange(tokens).expand(rows, -1)
    return {"input_ids": ids, "attention_mask": ids.clone(), "position_ids": positions, "labels": ids[:, 1:].clone()}
