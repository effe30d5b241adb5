"""Extractive question answering: the answer to a question is a span of a context, as in SQuAD v1.1."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fedsa.errors import DataError
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.tasks.classification import TokenRows
from fedsa.tasks.lengths import Reading, raise_length, told
from fedsa.tasks.padding import filled, of_tokens
from fedsa.tasks.sequences import parts_of, tokens_with_places
from fedsa.tasks.text_metrics import METRICS, best_of
from fedsa.tasks.values import shown, text_of, texts_of
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import OwnTaskSettings, QuestionAnsweringSettings

__all__ = ["ContextRows", "QuestionAnswering", "best_spans"]

Ints = npt.NDArray[np.int32]


@final
@dataclass(frozen=True)
class ContextRows:
    """Questions with their contexts; a context that is too long is in several windows.

    Item i is the first window of row i. Its further windows are the items ``first[i]`` to ``first[i + 1]``, which stand
    behind the rows.

    Attributes:
        windows: the items' tokens; their ``labels`` are the places of the answer's first and last token, shape
            (items, 2): in a window without the answer twice that of [CLS].
        labels: shape (rows,): by what rows are shared out.
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

    def windows_of(self, rows: IntArray) -> IntArray:
        """Return the items of all windows of rows, row by row."""
        counts = self.first[rows + 1] - self.first[rows] + 1
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # in its row
        items: IntArray = np.where(place == 0, np.repeat(rows, counts), np.repeat(self.first[rows], counts) + place - 1)
        return items


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
        self, table: Dataset, rows: IntArray, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
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
            answers = [_answers_of(row, cell, *columns) for row, cell in zip(part.tolist(), cells, strict=True)]
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
            notes=self._notes(firsts, further, extra[rows], reading, cut_questions, limit),
        )

    def _notes(
        self,
        firsts: Sequence[_Window],
        further: Sequence[_Window],
        extra: IntArray,
        reading: Reading,
        cut_questions: int,
        limit: int | None,
    ) -> tuple[str, ...]:
        """Return sentences on the rows.

        Args:
            firsts: each row's first window.
            further: the others, row by row.
            extra: how many of them each row has, shape (rows,).
            reading: counts the first windows.
            cut_questions: how many questions lost their end.
            limit: the most tokens that the model takes.
        """
        longest, stride = _sizes(self.max_length, self.doc_stride, limit)
        own = [window.spans[:, 1] > window.spans[:, 0] for window in further]
        more = np.array([int(inside.sum()) - stride for inside in own], dtype=np.int64)
        owner = np.repeat(np.arange(len(extra)), extra)
        whole = np.array([len(window.tokens) for window in firsts]) + np.bincount(owner, more, len(extra)).astype(int)
        reading.add([window.tokens.tolist() for window in firsts], whole)
        notes = reading.unread([self.question_column, self.context_column])
        if cut_questions:
            many = counted(cut_questions, "question is", "questions are")
            notes.insert(0, f"{many} too long for task.max_length = {longest} and cut at the end.")
        if cut := told(whole, longest):
            notes.insert(0, f"{cut}: they are read in several windows; {raise_length(longest, limit)}.")
        found = np.array([window.holds for window in firsts], dtype=np.int64)
        found += np.bincount(owner, [window.holds for window in further], len(extra)).astype(int)
        if lost := int((found == 0).sum()):
            notes.append(
                f"{lost:,} of {counted(len(found), 'row')} have an answer that no window holds whole: their windows "
                "are trained to point at [CLS]."
            )
        return tuple(notes)

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
            answer = _place_of(spans, *answers[owner])
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
        of_context = own.spans[:, 1] > own.spans[:, 0]
        inside = torch.from_numpy(filled(of_context, starts, ends, outputs.shape[1], fill=0, left=False)).bool()
        scores, firsts, lasts = (
            each.numpy() for each in best_spans(outputs.double(), inside, longest=self.max_answer_length)
        )
        edges = np.concatenate([[0], np.cumsum(own.first[rows + 1] - own.first[rows] + 1)])
        texts = []
        for number, context in enumerate(own.contexts[rows][self.context_column]):
            best = edges[number] + int(scores[edges[number] : edges[number + 1]].argmax())
            begin, end = own.spans[starts[best] + firsts[best], 0], own.spans[starts[best] + lasts[best], 1]
            texts.append(str(context)[begin:end])
        right = [own.references[row] for row in rows]
        return {name: best_of(of, texts, right) for name, of in METRICS.items()} | {"loss": float(losses.mean())}


def _sizes(max_length: int, doc_stride: int, limit: int | None) -> tuple[int, int]:
    """The tokens of a window, and those that neighbouring windows share."""
    longest = min(max_length, limit or max_length)
    return longest, min(doc_stride, longest // 3)


def _answers_of(
    row: int, cell: Mapping[str, Any], answer_column: str, context_column: str
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Return a row's answers, and the characters of its context, from and to, that the first one is.

    Where it is not at ``answer_start`` (in SQuAD's own files it sometimes begins a character later, in others of
    its kind it is far away), it is where it stands nearest to that.

    Raises:
        DataError: they are not as SQuAD has them.
    """
    found, where = cell[answer_column], f"row {row}: column {answer_column!r}"
    texts, starts = (found.get(name) if isinstance(found, Mapping) else None for name in ("text", "answer_start"))
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise DataError(f"{where} must have the lists text and answer_start, of one length (got {shown(found)})")
    texts = texts_of(texts, row, answer_column, "answers")
    if not texts or not texts[0].strip():
        raise DataError(f"{where} has no answer, and every question must have one here: leave such rows out")
    if isinstance(starts[0], bool) or not isinstance(starts[0], int | float) or starts[0] not in range(1 << 40):
        raise DataError(f"{where} has answer_start {shown(starts[0])}, which must be a whole number: correct the row")
    context = text_of(cell[context_column], row, context_column)
    text, given = texts[0].strip(), int(starts[0])
    given += len(texts[0]) - len(texts[0].lstrip())
    begins = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if not begins:
        raise DataError(f"{where}: the first answer, {text!r}, is not in column {context_column!r}: correct the row")
    begin = min(begins, key=lambda place: abs(place - given))
    return tuple(texts), (begin, begin + len(text))


def _place_of(spans: Ints, begin: int, end: int) -> tuple[int, int] | None:
    """Return the places of the first and last token of an answer; None where the window does not hold all of it.

    Args:
        spans: of the window's tokens.
        begin: of the answer in its context.
        end: behind it.
    """
    own = np.flatnonzero(spans[:, 1] > spans[:, 0])
    if not len(own) or spans[own[0], 0] > begin or spans[own[-1], 1] < end:
        return None
    hit = own[(spans[own, 1] > begin) & (spans[own, 0] < end)]
    return (int(hit[0]), int(hit[-1])) if len(hit) else None


def best_spans(logits: Tensor, inside: Tensor, *, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best span of each window: its score, and the places of its first and last token.

    The score is the sum of the first token's first logit and the last token's second. Of equals the shortest counts,
    then the earliest. A window without any allowed token has the score -inf, and both places are 0.

    Args:
        logits: shape (windows, tokens, 2).
        inside: shape (windows, tokens): where a span may begin and end.
        longest: tokens of a span at most.

    >>> logits = torch.tensor([[[9.0, 9.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]]])
    >>> best_spans(logits, torch.tensor([[False, True, True, True]]), longest=2)
    (tensor([4.]), tensor([2]), tensor([3]))
    """
    starts, ends = logits.masked_fill(~inside[..., None], -math.inf).unbind(dim=2)
    width = logits.shape[1]
    scores = torch.full_like(starts[:, 0], -math.inf)
    firsts = torch.zeros(len(logits), dtype=torch.int64)
    lasts = firsts.clone()
    for more in range(min(longest, width)):
        sums, places = (starts[:, : width - more] + ends[:, more:]).max(dim=1)
        better = sums > scores
        scores = torch.where(better, sums, scores)
        firsts, lasts = torch.where(better, places, firsts), torch.where(better, places + more, lasts)
    return scores, firsts, lasts
