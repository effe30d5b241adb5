"""Decoders: instruction tuning on prompts and answers, and language modelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast, final

import numpy as np

from fedsa.errors import DataError
from fedsa.recipe import fields_of
from fedsa.tasks.base import IntArray, Prediction, Sample
from fedsa.tasks.beginnings import Beginnings
from fedsa.tasks.decoding import Decoding, said_of
from fedsa.tasks.lengths import kept_length
from fedsa.tasks.sequences import SequenceRows
from fedsa.tasks.text_metrics import METRICS, best_of, extract
from fedsa.tasks.tokenizing import parts_of
from fedsa.tasks.values import check_template, shown, text_of, texts_of
from fedsa.tasks.writer import Writer
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import GenerationSettings, LanguageModelingSettings, OwnTaskSettings
    from fedsa.tasks.base import Encoded

__all__ = ["Generation", "LanguageModeling"]


@final
@dataclass(frozen=True)
class Generation(Decoding):
    """A prompt is answered: trained on the answer's tokens, measured by their likelihood or by what the model writes.

    Prompt and answer are tokenised apart, and the answer ends with the tokenizer's end token; with ``chat`` the answer
    is what the chat template adds for it. A row that is too long loses the middle of its prompt, but nothing of what
    the template has at its beginning and end, and then the end of its answer.

    Attributes:
        prompt: a template: ``{column}`` stands for a row's value.
        answer: likewise. Where a column has several texts, a list or SQuAD's ``text`` in a dict, there is an answer
            with each: trained is the first, and what is written is compared with the one that it is most like.
        metric: ``log_likelihood``, ``exact_match`` or ``f1``; the latter two of what the model writes, greedily.
        extract: what of a text is compared; see `fedsa.tasks.text_metrics.extract`.
        chat: prompt and answer are turns in the tokenizer's chat template.
        max_length: tokens kept of a row.
        max_new_tokens: written at most.
        stops: the tokens at which the model stops to write; empty: those of its own settings.
        limit: the most tokens that the model takes, prompt and what it writes together; None: as many as there are.
        writes: the model can write.
    """

    prompt: str
    answer: str
    metric: str = "log_likelihood"
    extract: str = "none"
    chat: bool = False
    max_length: int = 128
    max_new_tokens: int = 64
    stops: tuple[int, ...] = ()
    limit: int | None = None
    writes: bool = False
    generates: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generates", self.metric in METRICS)

    @classmethod
    def from_settings(cls, settings: GenerationSettings | OwnTaskSettings, label_names: Sequence[str]) -> Generation:
        """Return the task of a recipe's ``[task]``."""
        named = ("metric", "extract", "chat", "max_length", "max_new_tokens")
        return cls(settings.prompt or "", settings.answer or "", **{name: getattr(settings, name) for name in named})

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens: prompts with their answers, then the prompts alone if needed.

        Raises:
            DataError: a column that a template names holds no text, a row has no answer, nothing of it is left where it
                is cut, or the chat template does not go.
        """
        rows, count = np.unique(rows), len(table)
        references: list[tuple[str, ...]] = [()] * count
        longest = kept_length(self.max_length, limit)
        writer = Writer(tokenizer, longest, limit=limit, template=self.prompt, chat=self.chat)
        for part, cells in parts_of(table, rows) if answered else ():
            own = [self._answers(row, cell) for row, cell in zip(part.tolist(), cells, strict=True)]
            prompts = [self._prompt(row, cell) for row, cell in zip(part.tolist(), cells, strict=True)]
            fitted = writer.fit(part, prompts, [each[:1] for each in own])
            writer.put(part, chain.from_iterable(fitted))
            for row, answers in zip(part.tolist(), own, strict=True):
                references[row] = answers
        writes = self.generates or not answered
        for part, cells in parts_of(table, rows) if writes else ():
            prompts = [self._prompt(row, cell) for row, cell in zip(part.tolist(), cells, strict=True)]
            writer.put_prompts(part, part + count, prompts, self.max_new_tokens, read=not answered)
        labels = np.asarray(table[CLASS_NUMBER][:], dtype=np.int64)
        columns = fields_of(self.prompt, *([self.answer] if answered else []))
        encoded = writer.rows(labels, count * (1 + writes), columns)
        return replace(encoded, references=tuple(references)) if self.generates else encoded

    def _prompt(self, row: int, cell: Mapping[str, Any]) -> str:
        check_template(cell, fields_of(self.prompt), row)
        return self.prompt.format_map(cell)

    def _answers(self, row: int, cell: Mapping[str, Any]) -> tuple[str, ...]:
        """Return a row's answers: one, or one for each text of a column that has several.

        Raises:
            DataError: that column has none, or what is in it is no text.
        """
        named = fields_of(self.answer)
        for name in named:
            values = cell[name].get("text") if isinstance(cell[name], Mapping) else cell[name]
            if isinstance(values, list):
                check_template(cell, (other for other in named if other != name), row)
                if not values:
                    raise DataError(
                        f"row {row}: column {name!r} has no answer (got {shown(cell[name])}): leave such rows out"
                    )
                texts = texts_of(values, row, name, "right answers")
                return tuple(self.answer.format_map({**cell, name: text}) for text in texts)
        check_template(cell, named, row)
        return (self.answer.format_map(cell),)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return the figures of the likelihood and, where it writes, ``exact_match`` and ``f1``."""
        figures = super().score(encoded, rows, outputs)
        if generated is None:
            return figures
        own = cast("SequenceRows", encoded)
        written = [extract(text, self.extract) for text in said_of(own, generated)]
        wanted = [[extract(text.strip(), self.extract) for text in own.references[row]] for row in rows]
        return figures | {name: best_of(of, written, wanted) for name, of in METRICS.items()}

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return what the model writes on each row's prompt; with ``extracted``, where a part of it is compared."""
        texts = [] if generated is None else said_of(cast("SequenceRows", encoded), generated)
        if self.extract == "none":
            return [Prediction(text) for text in texts]
        return [Prediction(text, about={"extracted": extract(text, self.extract)}) for text in texts]

    def beginnings(self, encoded: SequenceRows) -> IntArray:
        """Return the tokens of each row's prompt: all but its answer."""
        return encoded.lengths - encoded.answers

    def samples(self, encoded: Encoded, rows: IntArray, generated: Tensor) -> list[Sample]:
        """Return prompts as the model got them, in their template and cut; what it wrote; the right answers.

        Where the figures are not of what it writes, the right answer is the one that is trained, as it is kept.
        """
        if isinstance(encoded, Beginnings):
            return encoded.samples(rows, generated)
        own = cast("SequenceRows", encoded)
        items = self.prompts(encoded, rows)
        given = [own.tokens[own.offsets[item] : own.offsets[item + 1]].tolist() for item in items]
        prompts = own.tokenizer.batch_decode(given, skip_special_tokens=True)
        rights = [own.references[row] for row in rows]
        return [Sample(*each) for each in zip(prompts, own.texts(generated.tolist()), rights, strict=True)]


@final
@dataclass(frozen=True)
class LanguageModeling(Decoding):
    """A text is continued: trained on all its tokens, measured by their likelihood.

    A row is one text; what is longer than ``max_length`` is cut off.

    Attributes:
        text_column: where the text is.
        max_length: tokens kept of a row.
        max_new_tokens: written at most where a row is shown with what the model makes of its beginning.
        stops: as for `Generation`, like ``limit`` and ``writes``.
    """

    text_column: str
    max_length: int = 128
    max_new_tokens: int = 32
    stops: tuple[int, ...] = ()
    limit: int | None = None
    writes: bool = False
    chat: bool = field(init=False, default=False)
    metric: str = field(init=False, default="log_likelihood")

    @classmethod
    def from_settings(
        cls, settings: LanguageModelingSettings | OwnTaskSettings, label_names: Sequence[str]
    ) -> LanguageModeling:
        """Return the task of a recipe's ``[task]``."""
        return cls(settings.text_columns[0], settings.max_length)

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens.

        Raises:
            DataError: a cell is no text, or the tokenizer knows nothing of most rows.
        """
        column = self.text_column
        writer = Writer(tokenizer, kept_length(self.max_length, limit), limit=limit, template=None)
        for part, cells in parts_of(table, np.unique(rows)):
            texts = [[text_of(cell[column], row, column)] for row, cell in zip(part.tolist(), cells, strict=True)]
            writer.put(part, chain.from_iterable(writer.fit(part, [""] * len(cells), texts)))
        count = len(table)
        for part, cells in () if answered else parts_of(table, np.unique(rows)):
            writer.put_prompts(part, part + count, [str(cell[column]) for cell in cells], self.max_new_tokens)
        items = count if answered else 2 * count
        return writer.rows(np.asarray(table[CLASS_NUMBER][:], dtype=np.int64), items, [column])

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return how each row's text goes on, the text's own ``log_likelihood`` per token, its ``tokens``."""
        own = cast("SequenceRows", encoded)
        texts = [] if generated is None else said_of(own, generated)
        return [
            Prediction(text, about={"log_likelihood": -nats / tokens, "tokens": tokens})
            for text, nats, tokens in zip(texts, outputs.tolist(), own.answers[rows].tolist(), strict=True)
        ]

    def beginnings(self, encoded: SequenceRows) -> IntArray:
        """Return half of each row's tokens, or as many as are written if that is less."""
        return np.clip(encoded.lengths // 2, 1, self.max_new_tokens)

    def samples(self, encoded: Encoded, rows: IntArray, generated: Tensor) -> list[Sample]:
        """Return the rows' beginnings; what the model wrote; what stands there, as many tokens of it."""
        return cast("Beginnings", encoded).samples(rows, generated)
