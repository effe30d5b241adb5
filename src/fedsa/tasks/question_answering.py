"""Extractive question answering: the answer to a question is a span of a context, as in SQuAD v1.1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedsa.errors import DataError
from fedsa.tasks.base import Encoded, IntArray, Prediction, Task
from fedsa.tasks.classification import TokenRows
from fedsa.tasks.context_rows import ContextRows
from fedsa.tasks.lengths import Reading, raise_length, told
from fedsa.tasks.padding import filled, of_tokens
from fedsa.tasks.spans import Ints, answers_of, best_spans, place_of
from fedsa.tasks.text_metrics import METRICS, best_of
from fedsa.tasks.tokenizing import parts_of, tokens_with_places
from fedsa.tasks.values import text_of
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import OwnTaskSettings, QuestionAnsweringSettings

__all__ = ["QuestionAnswering"]

_NO_ANSWER: tuple[tuple[str, ...], tuple[int, int]] = ((), (-1, -1))
"""Of a row whose answer is not known: no text, and characters that no window holds."""


class _Window(NamedTuple):
    tokens: Ints
    segments: npt.NDArray[np.uint8]
    spans: Ints
    answer: tuple[int, int]
    holds: bool
    """The answer is in it."""


@final
@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Cross-entropy of the answer's first and last token; the metric is F1 of words, as SQuAD v1.1's own script has it.

    A window that does not hold the whole answer is trained to point at [CLS]. The prediction is the span with the
    highest sum of both logits over all windows of the row, inside the context and of at most ``max_answer_length``
    tokens; its text is cut out of the context. All spans are compared (the usual scripts compare those of the 20 best
    beginnings and ends). Padding has no part in the softmax.

    Attributes:
        question_column: where the question is.
        context_column: where the context is.
        answer_column: with SQuAD's ``text`` and ``answer_start``, a list each. Trained is the first answer; what is
            predicted is compared with all of them, and the best counts.
        max_length: tokens of a window.
        doc_stride: tokens of the context that neighbouring windows share; at most a third of a window's.
        max_answer_length: tokens of a predicted answer at most.
    """

    question_column: str
    context_column: str
    answer_column: str
    max_length: int = 384
    doc_stride: int = 128
    max_answer_length: int = 30

    metric: str = field(init=False, default="f1")
    auto_model: ClassVar[str] = "AutoModelForQuestionAnswering"
    # PEFT has QUESTION_ANS, but the model of that type drops token_type_ids on their way to the base.
    peft_task_type: ClassVar[str | None] = None
    pipeline_tag: ClassVar[str] = "question-answering"

    @classmethod
    def from_settings(
        cls, settings: QuestionAnsweringSettings | OwnTaskSettings, label_names: Sequence[str]
    ) -> QuestionAnswering:
        """Return the task of a recipe's ``[task]``."""
        named = ("max_length", "doc_stride", "max_answer_length")
        question, context = settings.text_columns
        return cls(question, context, settings.answer or "", **{name: getattr(settings, name) for name in named})

    def model_options(self) -> dict[str, Any]:
        """The model has two outputs for each token."""
        return {"num_labels": 2}

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> ContextRows:
        """Return ``rows`` of ``table`` as windows of tokens.

        Raises:
            DataError: a row's answers are not as SQuAD has them, or it has none; or the tokenizer does not tell where
                in the text its tokens are.
        """
        rows, count = np.unique(rows), len(table)
        references: list[tuple[str, ...]] = [()] * count
        firsts: list[_Window] = []
        further: list[_Window] = []
        extra, reading, cut_questions = np.zeros(count, dtype=np.int64), Reading(tokenizer), 0
        for part, cells in parts_of(table, rows):
            columns = self.answer_column, self.context_column
            answers = [
                answers_of(row, cell, *columns) if answered else _NO_ANSWER
                for row, cell in zip(part.tolist(), cells, strict=True)
            ]
            for row, (texts, _) in zip(part.tolist(), answers, strict=True):
                references[row] = texts
            last = -1
            questions, cut = self._questions(part, cells, tokenizer, limit)
            cut_questions += cut
            for owner, window in self._windows(part, cells, questions, [span for _, span in answers], tokenizer, limit):
                (firsts if owner != last else further).append(window)
                extra[part[owner]] += owner == last
                last = owner
        windows, sizes = [*firsts, *further], np.zeros(count + len(further), dtype=np.int64)
        sizes[np.concatenate([rows, np.arange(count, len(sizes))])] = [len(window.tokens) for window in windows]
        places = np.zeros((len(sizes), 2), dtype=np.int64)
        places[sizes > 0] = [window.answer for window in windows]
        has_segments = "token_type_ids" in tokenizer.model_input_names
        tokens = TokenRows(
            tokens=np.concatenate([window.tokens for window in windows]),
            segments=np.concatenate([window.segments for window in windows]) if has_segments else None,
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            labels=places,
            pad=cast(int, tokenizer.pad_token_id),
            widest=limit,
        )
        return ContextRows(
            windows=tokens,
            labels=np.asarray(table[CLASS_NUMBER][:], dtype=np.int64),
            spans=np.concatenate([window.spans for window in windows]),
            first=count + np.concatenate([[0], np.cumsum(extra)]),
            contexts=table.select_columns([self.context_column]),
            references=tuple(references),
            notes=_notes(self, firsts, further, extra[rows], reading, cut_questions, limit, answered=answered),
        )

    def _questions(
        self, rows: IntArray, cells: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int | None
    ) -> tuple[list[str], int]:
        """Return some rows' questions, cut where a context would have no room beside them, and how many were cut.

        Raises:
            DataError: a window has no room for a context, or a question is no text.
        """
        longest, stride = _sizes(self.max_length, self.doc_stride, limit)
        # What is left of a window for its question: then it has twice the stride for the context.
        most = longest - tokenizer.num_special_tokens_to_add(pair=True) - 2 * stride
        if most < 1 or stride < 1:
            raise DataError(
                f"windows of {counted(longest, 'token')} have no room for question and context: raise task.max_length"
            )
        column = self.question_column
        texts = [text_of(cell[column], row, column).strip() for row, cell in zip(rows.tolist(), cells, strict=True)]
        places = tokens_with_places(tokenizer, texts, add_special_tokens=False)["offset_mapping"]
        kept = [text if len(own) <= most else text[: own[most - 1][1]] for text, own in zip(texts, places, strict=True)]
        return kept, sum(len(own) > most for own in places)

    def _windows(
        self,
        rows: IntArray,
        cells: Sequence[Mapping[str, Any]],
        questions: list[str],
        answers: Sequence[tuple[int, int]],
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None,
    ) -> Iterable[tuple[int, _Window]]:
        """Yield the windows of some rows, row by row, each with the place of its row among them.

        Args:
            rows: their numbers, for messages.
            cells: the rows' columns.
            questions: the rows' questions, as they are asked.
            answers: from and to which character each answer goes.
            tokenizer: the base model's.
            limit: the most tokens that the model takes.
        """
        longest, stride = _sizes(self.max_length, self.doc_stride, limit)
        encoded = tokens_with_places(
            tokenizer,
            questions,
            [
                text_of(cell[self.context_column], row, self.context_column)
                for row, cell in zip(rows.tolist(), cells, strict=True)
            ],
            truncation="only_second",
            max_length=longest,
            stride=stride,
            return_overflowing_tokens=True,
            return_token_type_ids=True,
        )
        for number, owner in enumerate(encoded["overflow_to_sample_mapping"]):
            ids = encoded["input_ids"][number]
            of_context = np.array([part == 1 for part in encoded.sequence_ids(number)])
            spans = np.where(of_context[:, None], np.asarray(encoded["offset_mapping"][number], dtype=np.int32), 0)
            start = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            segments = np.asarray(encoded["token_type_ids"][number], dtype=np.uint8)
            answer = place_of(spans, *answers[owner])
            yield (
                owner,
                _Window(np.asarray(ids, dtype=np.int32), segments, spans, answer or (start, start), answer is not None),
            )

    def training_items(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return every window of every row."""
        return cast("ContextRows", encoded).windows_of(rows)

    def questions(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return every window of every row."""
        return self.training_items(encoded, rows)

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each window's summed cross-entropy of first and last token, and twos."""
        logits = self._logits(model, batch).masked_fill(batch["attention_mask"][..., None] == 0, -math.inf)
        each = F.cross_entropy(logits, batch["labels"], reduction="none").sum(dim=1)
        return each, torch.full_like(each, 2)

    def _logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        said: Any = model(**{name: value for name, value in batch.items() if name != "labels"})
        logits = torch.stack([said.start_logits, said.end_logits], dim=-1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits of first and last token, fp32 at least, shape (windows, tokens at most, 2); zeros behind."""
        return of_tokens(self._logits(model, batch), batch["attention_mask"], self.max_length)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``f1`` and ``exact_match``, from 0 to 1, and the ``loss`` of a window's token, mean over windows."""
        own = cast("ContextRows", encoded)
        items = own.windows_of(rows)
        starts, ends = own.windows.offsets[items], own.windows.offsets[items + 1]
        real = torch.arange(outputs.shape[1]) < torch.from_numpy(ends - starts)[:, None]
        labels = torch.from_numpy(own.windows.labels[items])
        losses = F.cross_entropy(outputs.masked_fill(~real[..., None], -math.inf), labels, reduction="none")
        texts = own.texts(rows, self._spans(own, rows, outputs))
        right = [own.references[row] for row in rows]
        return {name: best_of(of, texts, right) for name, of in METRICS.items()} | {"loss": float(losses.mean())}

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return each row's answer, and where in the context it ``start``s and ``end``s, in characters."""
        own = cast("ContextRows", encoded)
        spans = self._spans(own, rows, outputs)
        return [
            Prediction(text, about={"start": start, "end": end})
            for text, (start, end) in zip(own.texts(rows, spans), spans, strict=True)
        ]

    def _spans(self, own: ContextRows, rows: IntArray, outputs: Tensor) -> list[tuple[int, int]]:
        """Return the characters of its context, from and to, that the model answers each row with."""
        items = own.windows_of(rows)
        starts, ends = own.windows.offsets[items], own.windows.offsets[items + 1]
        of_context = own.spans[:, 1] > own.spans[:, 0]
        inside = torch.from_numpy(filled(of_context, starts, ends, outputs.shape[1], fill=0, left=False)).bool()
        scores, firsts, lasts = (
            each.numpy() for each in best_spans(outputs.double(), inside, longest=self.max_answer_length)
        )
        edges = np.concatenate([[0], np.cumsum(own.first[rows + 1] - own.first[rows] + 1)])
        best = [low + int(scores[low:high].argmax()) for low, high in pairwise(edges.tolist())]
        begins, behind = own.spans[starts[best] + firsts[best], 0], own.spans[starts[best] + lasts[best], 1]
        return list(zip(begins.tolist(), behind.tolist(), strict=True))


def _notes(
    task: QuestionAnswering,
    firsts: Sequence[_Window],
    further: Sequence[_Window],
    extra: IntArray,
    reading: Reading,
    cut_questions: int,
    limit: int | None,
    *,
    answered: bool,
) -> tuple[str, ...]:
    """Return sentences on the rows.

    Args:
        task: the task.
        firsts: each row's first window.
        further: the others, row by row.
        extra: how many of them each row has, shape (rows,).
        reading: counts the first windows.
        cut_questions: how many questions lost their end.
        limit: the most tokens that the model takes.
        answered: the rows have answers.
    """
    longest, stride = _sizes(task.max_length, task.doc_stride, limit)
    own = [window.spans[:, 1] > window.spans[:, 0] for window in further]
    more = np.array([int(inside.sum()) - stride for inside in own], dtype=np.int64)
    owner = np.repeat(np.arange(len(extra)), extra)
    whole = np.array([len(window.tokens) for window in firsts]) + np.bincount(owner, more, len(extra)).astype(int)
    reading.add([window.tokens.tolist() for window in firsts], whole)
    notes = reading.unread([task.question_column, task.context_column])
    if cut_questions:
        many = counted(cut_questions, "question is", "questions are")
        notes.insert(0, f"{many} too long for task.max_length = {longest} and cut at the end.")
    if cut := told(whole, longest):
        notes.insert(0, f"{cut}: they are read in several windows; {raise_length(longest, limit)}.")
    found = np.array([window.holds for window in firsts], dtype=np.int64)
    found += np.bincount(owner, [window.holds for window in further], len(extra)).astype(int)
    if answered and (lost := int((found == 0).sum())):
        notes.append(
            f"{lost:,} of {counted(len(found), 'row')} have an answer that no window holds whole: their windows "
            "are trained to point at [CLS]."
        )
    return tuple(notes)


def _sizes(max_length: int, doc_stride: int, limit: int | None) -> tuple[int, int]:
    """The tokens of a window, and those that neighbouring windows share."""
    longest = min(max_length, limit or max_length)
    return longest, min(doc_stride, longest // 3)
