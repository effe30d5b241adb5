"""Token sequences that end in an answer, for decoders: what is trained and asked is the answer alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedsa.tasks.base import IntArray
from fedsa.tasks.padding import filled, width_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "SequenceRows", "answer_losses", "sequence_example"]

IGNORED = -100
"""The label of a position whose token is not predicted."""


@final
@dataclass(frozen=True)
class SequenceRows:
    """Token sequences, end to end in one array.

    Attributes:
        tokens: shape (sum of lengths,), int32.
        offsets: shape (items + 1,): item i is ``tokens[offsets[i]:offsets[i + 1]]``; an unused row is empty.
        answers: shape (items,): the number of tokens at an item's end that are to be predicted; with ``asked_tokens``,
            from the first that is.
        labels: shape (rows,): class numbers.
        first: shape (rows + 1,): the items that are asked of row i are ``first[i]`` to ``first[i + 1]``.
        pad: the padding token.
        widest: the most tokens that the model takes.
        ends: the tokens that end an answer.
        tokenizer: to read what a model writes.
        right: shape (rows,): which of a row's asked items is the right one.
        weights: shape (items,): bytes of an asked item's text.
        references: of each row the texts that what a model writes is compared with; empty where none are needed.
        notes: sentences on the rows.
        around: what a chat template puts in front of an answer and behind it, as a reader sees it.
        choices: of each row the texts that it is asked to choose from, where they are to be shown; else empty.
        asked_tokens: of each of ``tokens`` whether it is to be predicted, where an item's answers have other text
            between them; None: all at an item's end are.
    """

    tokens: npt.NDArray[np.int32]
    offsets: IntArray
    answers: IntArray
    labels: IntArray
    first: IntArray
    pad: int
    widest: int | None
    ends: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase
    right: IntArray
    weights: IntArray
    references: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    around: tuple[str, ...] = ("", "")
    choices: tuple[tuple[str, ...], ...] = ()
    asked_tokens: npt.NDArray[np.bool_] | None = None

    @property
    def lengths(self) -> IntArray:
        """Tokens of each item."""
        return np.diff(self.offsets)

    @cached_property
    def terms(self) -> IntArray:
        """Tokens of each item that are to be predicted."""
        if self.asked_tokens is None:
            return self.answers
        before = np.concatenate([[0], np.cumsum(self.asked_tokens, dtype=np.int64)])
        counts: IntArray = before[self.offsets[1:]] - before[self.offsets[:-1]]
        return counts

    def fingerprint(self) -> str:
        """Return a hash of tokens, lengths, answers and labels."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.offsets, self.answers, self.labels, self.first, self.right):
            digest.update(array.astype("<i8").tobytes())
        if self.asked_tokens is not None:
            digest.update(np.packbits(self.asked_tokens).tobytes())
        if self.references:
            digest.update(json.dumps(self.references).encode())
        return digest.hexdigest()

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of tokens that a model wrote, or should have written: each up to its first end token.

        What a chat template puts around an answer (an empty thought, say) is not part of it.
        """
        kept = [list(takewhile(lambda token: token not in self.ends, each)) for each in ids]
        texts = self.tokenizer.batch_decode(kept, skip_special_tokens=True)
        before, behind = self.around
        return [text.strip().removeprefix(before).removesuffix(behind).strip() for text in texts]

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
        return self.laid(self.offsets[items], self.offsets[items + 1], self.answers[items])

    def laid(self, starts: IntArray, ends: IntArray, answers: IntArray) -> dict[str, Tensor]:
        """Return a batch, as ``batch`` does, of stretches of ``tokens``.

        Args:
            starts: shape (rows,).
            ends: shape (rows,).
            answers: shape (rows,): tokens at the end of each that are to be predicted.
        """
        laid = partial(filled, ends=ends, left=True)
        width = width_of(int((ends - starts).max()), self.widest)
        mask = laid(np.broadcast_to(np.int64(1), self.tokens.shape), starts, width=width, fill=0)
        batch = {
            "input_ids": laid(self.tokens, starts, width=width, fill=self.pad),
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
            "labels": laid(self.tokens, ends - answers, width=int(answers.max()), fill=IGNORED),
        }
        if self.asked_tokens is not None and batch["labels"].shape[1]:
            asked = laid(self.asked_tokens, ends - answers, width=batch["labels"].shape[1], fill=0)
            batch["labels"][asked == 0] = IGNORED
        return {name: torch.from_numpy(array) for name, array in batch.items()}


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
