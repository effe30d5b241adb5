"""Multiple choice by likelihood: of some answers, the one that the model finds most likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np

from fedsa.errors import DataError
from fedsa.tasks.base import IntArray, Task
from fedsa.tasks.sequences import SequenceRows, Writer, answer_losses, parts_of, sequence_example
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import TaskSettings
    from fedsa.tasks.base import Encoded

__all__ = ["MultipleChoice"]


@final
@dataclass(frozen=True)
class MultipleChoice(Task):
    """A decoder is trained to say the right choice, and measured by which choice it finds most likely.

    ``accuracy`` is of the choice with the highest summed log-likelihood, ``accuracy_norm`` of the highest per byte of
    its text, as the language model evaluation harness has ``acc`` and ``acc_norm``; ``loss`` is of the right choice's
    tokens. There each choice ends with the end token, as it is trained.

    Attributes:
        prompt: a template: ``{column}`` stands for a row's value.
        answer: the column that tells the right choice: its number from ``first_choice`` on, true or false as 1 and 0,
            its letter from A on, its label or its text.
        choices: columns with a choice each; or one column with a list of choices, or with ``text`` and ``label`` lists.
        labels: the choices, where every row has the same; then there are no ``choices``.
        choice_template: a choice as the model would say it.
        first_choice: the number of the first.
        chat: prompt and choice are turns in the tokenizer's chat template.
        max_length: tokens kept of a row.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    choice_template: str = " {choice}"
    first_choice: int = 0
    chat: bool = False
    max_length: int = 128

    metric: str = field(init=False, default="accuracy")
    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    has_head: ClassVar[bool] = False

    @classmethod
    def from_settings(cls, settings: TaskSettings, label_names: Sequence[str]) -> MultipleChoice:
        """Return the task of a recipe's ``[task]``."""
        named = ("choice_template", "first_choice", "chat", "max_length")
        return cls(
            settings.prompt or "",
            settings.answer or "",
            tuple(settings.choices or ()),
            tuple(settings.labels or ()),
            **{name: getattr(settings, name) for name in named},
        )

    def model_options(self) -> dict[str, Any]:
        """Return nothing: the model is as it is."""
        return {}

    def encode(
        self, table: Dataset, rows: IntArray, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens: each with its right choice, then each with every choice."""
        rows, count = np.unique(rows), len(table)
        writer = Writer(tokenizer, min(self.max_length, limit or self.max_length), chat=self.chat)
        sizes, right = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        read: list[tuple[str, list[str]]] = []
        bytes_of: list[int] = []
        for part, cells in parts_of(table, rows):
            for row, cell in zip(part.tolist(), cells, strict=True):
                choices, labels = self._choices(cell)
                sizes[row], right[row] = len(choices), self._right(cell[self.answer], choices, labels, row)
                said = [self.choice_template.format_map({**cell, "choice": choice}) for choice in choices]
                read.append((self.prompt.format_map(cell), said))
                bytes_of += [max(1, len(choice.encode())) for choice in choices]
            chosen = zip(read[-len(part) :], part.tolist(), strict=True)
            prompts, answers = zip(*((prompt, said[right[row]]) for (prompt, said), row in chosen), strict=True)
            writer.add(part, prompts, answers)
        first = count + np.concatenate([[0], np.cumsum(sizes)])
        for row, (prompt, said) in zip(rows.tolist(), read, strict=True):
            writer.add(first[row] + np.arange(len(said)), [prompt] * len(said), said)
        encoded = writer.rows(
            np.asarray(table[CLASS_NUMBER][:], dtype=np.int64),
            int(first[-1]),
            limit=limit,
            first=first,
            right=right,
        )
        encoded.weights[count:] = bytes_of
        return encoded

    def _choices(self, cell: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Return a row's choices, and what they are called where they have names."""
        if self.labels:
            return list(self.labels), []
        if len(self.choices) > 1:
            return [str(cell[column]) for column in self.choices], []
        found = cell[self.choices[0]]
        if isinstance(found, Mapping):
            return [str(text) for text in found["text"]], [str(label) for label in found["label"]]
        return [str(text) for text in found], []

    def _right(self, answer: Any, choices: Sequence[str], labels: Sequence[str], row: int) -> int:
        """Return the place of the right choice.

        Raises:
            DataError: the answer is none of the choices.
        """
        text = str(answer).strip()
        for names in (labels, choices):
            if text in names:
                return list(names).index(text)
        number = -1
        if isinstance(answer, bool):
            number = int(answer)
        elif text.lstrip("-").isdecimal():
            number = int(text) - self.first_choice
        elif len(text) == 1 and text.isalpha():
            number = ord(text.upper()) - ord("A")
        if 0 <= number < len(choices):
            return number
        raise DataError(
            f"row {row}: column {self.answer!r} says {answer!r}, which is none of its {len(choices)} choices "
            f"({', '.join(map(repr, choices))}): mend the row, task.answer, or task.first_choice"
        )

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of each right choice, and the number of its tokens."""
        return answer_losses(model, batch)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the summed cross-entropy of each choice in nats, shape (items,)."""
        return answer_losses(model, batch)[0]

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of a size, to count with."""
        return sequence_example(rows, size)

    def questions(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return every choice of every row."""
        return cast("SequenceRows", encoded).asked(rows)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``accuracy``, ``accuracy_norm`` and ``loss``."""
        own = cast("SequenceRows", encoded)
        items = own.asked(rows)
        scores = -outputs.double().numpy()
        edges = np.cumsum(own.first[rows + 1] - own.first[rows])[:-1]
        by_row = [np.split(values, edges) for values in (scores, scores / own.weights[items])]
        right = own.right[rows]
        hits = [np.mean([each.argmax() == want for each, want in zip(rows_, right, strict=True)]) for rows_ in by_row]
        chosen = own.first[rows] + right
        of_right = np.array([each[want] for each, want in zip(by_row[0], right, strict=True)])
        loss = -of_right.sum() / own.answers[chosen].sum()
        return {"accuracy": float(hits[0]), "accuracy_norm": float(hits[1]), "loss": float(loss)}
