"""Token classification: a tag for each word, as in named entity recognition."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedsa.errors import DataError
from fedsa.tasks.base import Encoded, IntArray, Prediction, Task
from fedsa.tasks.classification import BesideTokens, TokenRows
from fedsa.tasks.lengths import Reading, kept_length, raise_length, told, whole_lengths
from fedsa.tasks.padding import filled, of_tokens
from fedsa.tasks.sequences import IGNORED
from fedsa.tasks.tokenizing import parts_of, tokens_with_places
from fedsa.tasks.values import shown, texts_of
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import OwnTaskSettings, TokenClassificationSettings

__all__ = ["TaggedRows", "TokenClassification", "entities"]


@final
@dataclass(frozen=True)
class TaggedRows(BesideTokens):
    """Token ids with a tag where a word begins.

    Attributes:
        texts: the rows' tokens.
        tags: shape of ``texts.tokens``: the tag's number at the first token of a word, `IGNORED` elsewhere.
        words: the same shape: the word's place in its row at its first token, `IGNORED` elsewhere.
        counts: shape (rows,): words of each row.
    """

    tags: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    counts: IntArray

    def fingerprint(self) -> str:
        """Return a hash of tokens and tags."""
        return hashlib.sha256(self.texts.fingerprint().encode() + self.tags.astype("<i8").tobytes()).hexdigest()

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """The inputs of some rows, as from `TokenRows`, with each token's tag as ``labels``, shape (rows, tokens)."""
        batch, rows = self.texts.batch(rows), np.asarray(rows)
        starts, ends = self.texts.offsets[rows], self.texts.offsets[rows + 1]
        width = batch["input_ids"].shape[1]
        return {**batch, "labels": torch.from_numpy(filled(self.tags, starts, ends, width, fill=IGNORED, left=False))}


@final
@dataclass(frozen=True)
class TokenClassification(Task):
    """Cross-entropy of the tag at each word's first token; the metric is F1 of whole entities.

    Words that are cut off, because a row is longer than ``max_length``, are neither trained nor counted.

    Attributes:
        word_column: the column with a row's list of words.
        tag_column: the column with as many tags: numbers, or names.
        tag_names: in order of their number: ``O``, and ``B-KIND`` and ``I-KIND`` of each kind of entity.
        max_length: tokens kept of a row.
    """

    word_column: str
    tag_column: str
    tag_names: tuple[str, ...]
    max_length: int = 128

    metric: str = field(init=False, default="f1")
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"
    peft_task_type: ClassVar[str | None] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str] = "token-classification"

    @classmethod
    def from_settings(
        cls, settings: TokenClassificationSettings | OwnTaskSettings, label_names: Sequence[str]
    ) -> TokenClassification:
        """Return the task of a recipe's ``[task]``."""
        return cls(settings.text_columns[0], settings.answer or "", tuple(settings.labels or ()), settings.max_length)

    def model_options(self) -> dict[str, Any]:
        """Return number and names of the tags."""
        return {
            "num_labels": len(self.tag_names),
            "id2label": dict(enumerate(self.tag_names)),
            "label2id": {name: number for number, name in enumerate(self.tag_names)},
        }

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> TaggedRows:
        """Return ``rows`` of ``table`` as tokens and tags.

        Raises:
            DataError: a row has no words, not as many tags as words, or one that is unknown; or the tokenizer knows
                nothing of most rows, or does not tell where in the text its tokens are.
        """
        longest = kept_length(self.max_length, limit)
        rows, reading, words_cut = np.unique(rows), Reading(tokenizer), 0
        tokens = [np.empty(0, dtype=np.int32)]
        tags, places_of_words = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        lengths, counts = np.zeros(len(table), dtype=np.int64), np.zeros(len(table), dtype=np.int64)
        for part, cells in parts_of(table, rows):
            words = [self._words(row, cell) for row, cell in zip(part.tolist(), cells, strict=True)]
            known = [
                self._numbers(row, cell) if answered else [0] * len(own)
                for row, cell, own in zip(part.tolist(), cells, words, strict=True)
            ]
            texts = [" ".join(each) for each in words]
            encoded = tokens_with_places(tokenizer, texts, truncation=True, max_length=longest)
            whole = whole_lengths(tokenizer, encoded["input_ids"], [texts], longest)
            reading.add(encoded["input_ids"], whole)
            for row, own, numbers, ids, places, length in zip(
                part.tolist(), words, known, encoded["input_ids"], encoded["offset_mapping"], whole, strict=True
            ):
                made = _words(own, places)
                if (made == IGNORED).all():
                    raise DataError(
                        f"row {row}: the tokenizer makes no token of the words in column {self.word_column!r} "
                        f"(task.max_length = {longest}): correct the row or leave it out"
                    )
                tokens.append(np.asarray(ids, dtype=np.int32))
                places_of_words.append(made)
                tags.append(np.where(made == IGNORED, IGNORED, np.asarray(numbers)[made.clip(0)]))
                lengths[row], counts[row] = len(ids), len(own)
                words_cut += len(own) - int((made != IGNORED).sum()) if length > longest else 0
        notes = reading.unread([self.word_column])
        if cut := told(reading.arrays()["whole"], longest):
            fate = "neither trained nor counted" if answered else "not tagged"
            lost = f"the {words_cut:,} words that are cut off are {fate}"
            notes.insert(0, f"{cut}: {lost}; {raise_length(longest, limit)}.")
        texts_rows = TokenRows(
            tokens=np.concatenate(tokens),
            segments=None,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            labels=np.asarray(table[CLASS_NUMBER][:], dtype=np.int64),
            pad=cast(int, tokenizer.pad_token_id),
            widest=limit,
            notes=tuple(notes),
        )
        return TaggedRows(texts_rows, np.concatenate(tags), np.concatenate(places_of_words), counts)

    def _words(self, row: int, cell: Mapping[str, Any]) -> list[str]:
        """Return a row's words.

        Raises:
            DataError: there are none, or they are no list of texts.
        """
        words = texts_of(cell[self.word_column], row, self.word_column, "words")
        if not words:
            raise DataError(f"row {row}: column {self.word_column!r} has no words: leave such rows out")
        return words

    def _numbers(self, row: int, cell: Mapping[str, Any]) -> list[int]:
        """Return the numbers of a row's tags.

        Raises:
            DataError: there are not as many as words, or one is no tag.
        """
        words, given = cell[self.word_column], cell[self.tag_column]
        if not isinstance(given, list) or len(given) != len(words):
            raise DataError(
                f"row {row}: columns {self.word_column!r} and {self.tag_column!r} must be lists, as many words as tags"
                f" (got {shown(words)} and {shown(given)})"
            )
        known = [self._number.get(tag, -1) if isinstance(tag, str) else _whole(tag) for tag in given]
        for tag, index in zip(given, known, strict=True):
            if not 0 <= index < len(self.tag_names):
                raise DataError(
                    f"row {row}: column {self.tag_column!r} has the tag {shown(tag)}; task.labels names "
                    f"{', '.join(self.tag_names)} (as numbers from 0 to {len(self.tag_names) - 1})"
                )
        return known

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.tag_names)}

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of each row's words, and their number."""
        each = F.cross_entropy(
            self._logits(model, batch).transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none"
        )
        return each.sum(dim=1), (batch["labels"] != IGNORED).sum(dim=1).to(each.dtype)

    def _logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits in fp32 at least, shape (rows, tokens at most, tags); zeros behind a row's last token."""
        return of_tokens(self._logits(model, batch), batch["attention_mask"], self.max_length)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``f1``, ``precision`` and ``recall`` of entities, ``accuracy`` of tags and the words' mean ``loss``.

        An entity is right if its kind, its first and its last word are. Of rows without any, in truth and prediction,
        the first three are 0.
        """
        own = cast("TaggedRows", encoded)
        wanted, found, losses = [], [], []
        for row, logits in zip(rows, outputs, strict=True):
            kept, said = self._said(own, row, logits)
            tags = own.tags[own.texts.offsets[row] : own.texts.offsets[row + 1]]
            tags = tags[tags != IGNORED]
            losses.append(F.cross_entropy(kept, torch.from_numpy(tags), reduction="none"))
            wanted.append([self.tag_names[tag] for tag in tags.tolist()])
            found.append(said)
        pairs = [(entities(right), entities(own)) for right, own in zip(wanted, found, strict=True)]
        right, given, common = (
            sum(map(len, part))
            for part in zip(*((first, second, first & second) for first, second in pairs), strict=True)
        )
        same = [a == b for right_, own_ in zip(wanted, found, strict=True) for a, b in zip(right_, own_, strict=True)]
        return {
            "f1": 2 * common / (right + given) if right + given else 0.0,
            "precision": common / given if given else 0.0,
            "recall": common / right if right else 0.0,
            "accuracy": float(np.mean(same)),
            "loss": float(torch.cat(losses).mean()),
        }

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return a tag for each word (None: it was cut off), and the ``entities``: kind, first word, word behind it."""
        own, made = cast("TaggedRows", encoded), []
        for row, logits in zip(rows, outputs, strict=True):
            words = own.words[own.texts.offsets[row] : own.texts.offsets[row + 1]]
            tags: list[str | None] = [None] * int(own.counts[row])
            for word, tag in zip(words[words != IGNORED].tolist(), self._said(own, row, logits)[1], strict=True):
                tags[word] = tag
            found = sorted(entities([tag or "O" for tag in tags]), key=lambda entity: entity[1:])
            named = [{"kind": kind, "start": start, "end": end} for kind, start, end in found]
            made.append(Prediction(tags, about={"entities": named}))
        return made

    def _said(self, encoded: TaggedRows, row: int, logits: Tensor) -> tuple[Tensor, list[str]]:
        """Return the logits at the words of a row that are read, shape (words, tags), and the tag of each."""
        words = torch.from_numpy(encoded.words[encoded.texts.offsets[row] : encoded.texts.offsets[row + 1]])
        kept = logits[: len(words)][words != IGNORED]
        return kept, [self.tag_names[tag] for tag in kept.argmax(dim=1).tolist()]


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a row as kind, first word, and the word behind the last.

    As in CoNLL's own script: an entity begins at a ``B-``, and at an ``I-`` that goes on with no entity of its kind.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found: set[tuple[str, int, int]] = set()
    kind, start = "", -1
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if start >= 0 and not (prefix == "I" and own == kind):
            found.add((kind, start, place))
            start = -1
        if prefix != "O" and start < 0:
            kind, start = own, place
    return found


def _whole(tag: Any) -> int:
    """Return a tag's number; -1 where it is no whole number."""
    if isinstance(tag, bool) or not isinstance(tag, int | float) or tag != tag or tag not in range(10**6):
        return -1
    return int(tag)


def _words(words: Sequence[str], places: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Return the word's place at the first token of each word, `IGNORED` at the other tokens.

    Args:
        words: of a row.
        places: where each token begins and ends in the words, which are joined by spaces.
    """
    ends = np.cumsum([len(word) + 1 for word in words])
    made, seen = np.full(len(places), IGNORED, dtype=np.int64), set()
    for place, (start, end) in enumerate(places):
        word = int(np.searchsorted(ends, end - 1, side="right"))  # a token may begin with the space before its word
        if end > start and word not in seen:
            made[place] = word
            seen.add(word)
    return made
