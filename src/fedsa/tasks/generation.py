"""Decoders: instruction tuning on prompts and answers, and language modelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
import torch

from fedsa.errors import DataError
from fedsa.recipe import fields_of
from fedsa.tasks.base import IntArray, Task
from fedsa.tasks.sequences import SequenceRows, Writer, answer_losses, parts_of, sequence_example
from fedsa.tasks.written import METRICS, best_of, extract
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import TaskSettings
    from fedsa.tasks.base import Encoded

__all__ = ["Generation", "LanguageModeling"]


class _Decoding(Task):
    """What tasks of decoders have in common: the loss is of the answers' tokens."""

    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    has_head: ClassVar[bool] = False

    def model_options(self) -> dict[str, Any]:
        """Return nothing: the model is as it is."""
        return {}

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of each answer, and the number of its tokens."""
        return answer_losses(model, batch)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the summed cross-entropy of each answer in nats, shape (rows,)."""
        return answer_losses(model, batch)[0]

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of a size, to count with."""
        return sequence_example(rows, size)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``log_likelihood`` (mean over the answers' tokens, nats), ``loss`` (minus it) and ``perplexity``."""
        counts = cast("SequenceRows", encoded).answers[rows]
        loss = float(outputs.double().sum()) / float(counts.sum())
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"log_likelihood": -loss, "loss": loss, "perplexity": perplexity}


@final
@dataclass(frozen=True)
class Generation(_Decoding):
    """A prompt is answered: trained on the answer's tokens, measured by their likelihood or by what the model writes.

    Prompt and answer are tokenised apart, and the answer ends with the tokenizer's end token. A row that is too long
    loses the beginning of its prompt, and then the end of its answer.

    Attributes:
        prompt: a template: ``{column}`` stands for a row's value.
        answer: likewise. Where a column has several values, a list or SQuAD's ``text`` in a dict, there is an answer
            with each: trained is the first, and what is written is compared with the one that it is most like.
        metric: ``log_likelihood``, ``exact_match`` or ``f1``; the latter two of what the model writes, greedily.
        extract: what of a text is compared; see `fedsa.tasks.written.extract`.
        chat: prompt and answer are turns in the tokenizer's chat template.
        max_length: tokens kept of a row.
        max_new_tokens: written at most.
    """

    prompt: str
    answer: str
    metric: str = "log_likelihood"
    extract: str = "none"
    chat: bool = False
    max_length: int = 128
    max_new_tokens: int = 64
    generates: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generates", self.metric in METRICS)

    @classmethod
    def from_settings(cls, settings: TaskSettings, label_names: Sequence[str]) -> Generation:
        """Return the task of a recipe's ``[task]``."""
        named = ("metric", "extract", "chat", "max_length", "max_new_tokens")
        return cls(settings.prompt or "", settings.answer or "", **{name: getattr(settings, name) for name in named})

    def encode(
        self, table: Dataset, rows: IntArray, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens: prompts with their answers, then the prompts alone if needed."""
        rows, count = np.unique(rows), len(table)
        references: list[tuple[str, ...]] = [()] * count
        writer = Writer(tokenizer, min(self.max_length, limit or self.max_length), chat=self.chat)
        for part, cells in parts_of(table, rows):
            own = [self._answers(row, cell) for row, cell in zip(part.tolist(), cells, strict=True)]
            writer.add(part, [self.prompt.format_map(cell) for cell in cells], [first for first, *_ in own])
            for row, answers in zip(part.tolist(), own, strict=True):
                references[row] = answers
        if self.generates:
            for part, cells in parts_of(table, rows):
                writer.add(part + count, [self.prompt.format_map(cell) for cell in cells], None)
        labels = np.asarray(table[CLASS_NUMBER][:], dtype=np.int64)
        encoded = writer.rows(labels, count * (1 + self.generates), limit=limit)
        return replace(encoded, references=tuple(references)) if self.generates else encoded

    def _answers(self, row: int, cell: Mapping[str, Any]) -> tuple[str, ...]:
        """Return a row's answers: one, or one for each value of a column that has several.

        Raises:
            DataError: that column has none.
        """
        for name in fields_of(self.answer):
            values = cell[name].get("text") if isinstance(cell[name], Mapping) else cell[name]
            if isinstance(values, list):
                if not values:
                    raise DataError(
                        f"row {row}: column {name!r} has no answer (got {cell[name]!r}): leave such rows out"
                    )
                return tuple(self.answer.format_map({**cell, name: value}) for value in values)
        return (self.answer.format_map(cell),)

    def prompts(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return the items of the prompts alone, which stand behind the rows."""
        return rows + len(encoded.labels)

    def generate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the model writes, greedily, shape (rows, ``max_new_tokens``), padded."""
        base = cast(Any, model).get_base_model()
        prompt = batch["input_ids"]
        pad = base.config.pad_token_id
        written: Tensor = base.generate(
            input_ids=prompt,
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=pad,
        )[:, prompt.shape[1] :]
        return torch.nn.functional.pad(written, (0, self.max_new_tokens - written.shape[1]), value=pad)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return the figures of the likelihood and, where it writes, ``exact_match`` and ``f1``."""
        figures = super().score(encoded, rows, outputs)
        if generated is None:
            return figures
        own = cast("SequenceRows", encoded)
        ids = [_until(each, own.end) for each in generated.tolist()]
        texts = own.tokenizer.batch_decode(ids, skip_special_tokens=True)
        written = [extract(text.strip(), self.extract) for text in texts]
        wanted = [[extract(text.strip(), self.extract) for text in own.references[row]] for row in rows]
        return figures | {name: best_of(of, written, wanted) for name, of in METRICS.items()}


def _until(ids: Sequence[int], end: int) -> list[int]:
    """Return what stands before the end token."""
    found = list(ids)
    return found[: found.index(end)] if end in found else found


@final
@dataclass(frozen=True)
class LanguageModeling(_Decoding):
    """A text is continued: trained on all its tokens, measured by their likelihood.

    A row is one text; what is longer than ``max_length`` is cut off.

    Attributes:
        text_column: where the text is.
        max_length: tokens kept of a row.
    """

    text_column: str
    max_length: int = 128

    metric: str = field(init=False, default="log_likelihood")

    @classmethod
    def from_settings(cls, settings: TaskSettings, label_names: Sequence[str]) -> LanguageModeling:
        """Return the task of a recipe's ``[task]``."""
        return cls(settings.text_columns[0], settings.max_length)

    def encode(
        self, table: Dataset, rows: IntArray, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens."""
        writer = Writer(tokenizer, min(self.max_length, limit or self.max_length))
        for part, cells in parts_of(table, np.unique(rows)):
            writer.add(part, [""] * len(cells), [str(cell[self.text_column]) for cell in cells])
        return writer.rows(np.asarray(table[CLASS_NUMBER][:], dtype=np.int64), len(table), limit=limit)
