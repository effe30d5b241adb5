"""Multiple choice by likelihood: of some answers, the one that the model finds most likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
import numpy.typing as npt

from fedsa.errors import DataError
from fedsa.recipe import fields_of
from fedsa.tasks.answers import Question, right_places
from fedsa.tasks.base import IntArray, Prediction, Task
from fedsa.tasks.lengths import kept_length
from fedsa.tasks.sequences import SequenceRows, answer_losses, sequence_example
from fedsa.tasks.tokenizing import parts_of
from fedsa.tasks.values import check_template, shown, text_of, texts_of
from fedsa.tasks.writer import Fitted, Writer
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import MultipleChoiceSettings, OwnTaskSettings
    from fedsa.tasks.base import Encoded

__all__ = ["MultipleChoice"]


@final
@dataclass(frozen=True)
class MultipleChoice(Task):
    """A decoder is trained to say the right choice, and measured by which choice it finds most likely.

    ``accuracy`` is of the choice with the highest summed log-likelihood, ``accuracy_norm`` of the highest per byte of
    its text, as the language model evaluation harness has ``acc`` and ``acc_bytes``; ``loss`` is of the right choice's
    tokens. Here each choice ends with the end token, as it is trained.

    Attributes:
        prompt: a template: ``{column}`` stands for a row's value.
        answer: the column that tells the right choice, in one way for all rows (`fedsa.tasks.answers`): its number from
            ``first_choice`` on, true or false as 1 and 0, its letter from A on, its label or its text.
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
    def from_settings(
        cls, settings: MultipleChoiceSettings | OwnTaskSettings, label_names: Sequence[str]
    ) -> MultipleChoice:
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
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens: each with its right choice, then each with every choice.

        Raises:
            DataError: a column that a template names holds no text, a row's choices or its answer cannot be read, or
                nothing of a choice is left where a row is cut.
        """
        rows, count = np.unique(rows), len(table)
        questions = [
            self._question(row, cell)
            for part, cells in parts_of(table, rows)
            for row, cell in zip(part.tolist(), cells, strict=True)
        ]
        places, note = np.zeros(len(rows), dtype=np.int64), None
        if answered:
            places, note = right_places(questions, rows, self.answer, self.first_choice)
        longest = kept_length(self.max_length, limit)
        writer = Writer(tokenizer, longest, limit=limit, template=self.prompt, chat=self.chat)
        items: list[list[Fitted]] = []
        for part, cells in parts_of(table, rows):
            own = questions[len(items) : len(items) + len(part)]
            chosen = places[len(items) : len(items) + len(part)].tolist()
            said = [
                [self.choice_template.format_map({**cell, "choice": choice}) for choice in question.choices]
                for cell, question in zip(cells, own, strict=True)
            ]
            items += writer.fit(part, [self.prompt.format_map(cell) for cell in cells], said, chosen)
            writer.put(part, [each[place] for each, place in zip(items[-len(part) :], chosen, strict=True)])
        sizes, right = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        sizes[rows], right[rows] = [len(each) for each in items], places
        first = count + np.concatenate([[0], np.cumsum(sizes)])
        writer.put(np.concatenate([first[row] + np.arange(sizes[row]) for row in rows]), chain.from_iterable(items))
        labels = np.asarray(table[CLASS_NUMBER][:], dtype=np.int64)
        columns = [*fields_of(self.prompt), *self.choices]
        encoded = writer.rows(labels, int(first[-1]), columns, first=first, right=right)
        encoded.weights[count:] = [max(1, len(each.encode())) for question in questions for each in question.choices]
        if not answered:  # they are shown
            shown_choices: list[tuple[str, ...]] = [()] * count
            for row, question in zip(rows.tolist(), questions, strict=True):
                shown_choices[row] = tuple(question.choices)
            encoded = replace(encoded, choices=tuple(shown_choices))
        return replace(encoded, notes=(*([note] if note else []), *encoded.notes))

    def _question(self, row: int, cell: Mapping[str, Any]) -> Question:
        """Return a row's choices, what they are called where they have names, and its answer.

        Raises:
            DataError: they are no texts, there are fewer than two, or a column of the templates holds no text.
        """
        named = [*fields_of(self.prompt), *(name for name in fields_of(self.choice_template) if name != "choice")]
        check_template(cell, named, row)
        answer = cell.get(self.answer)
        if self.labels:
            return Question(list(self.labels), [], answer)
        if len(self.choices) > 1:
            return Question([text_of(cell[name], row, name) for name in self.choices], [], answer)
        column, found, names = self.choices[0], cell[self.choices[0]], []
        if isinstance(found, Mapping):
            if not {"text", "label"} <= set(found):
                raise DataError(
                    f"row {row}: column {column!r} must hold a list of choices, or the lists text and label "
                    f"(got {shown(found)})"
                )
            found, names = found["text"], texts_of(found["label"], row, column, "labels of choices")
        choices = texts_of(found, row, column, "choices")
        if len(choices) < 2 or (names and len(names) != len(choices)):
            raise DataError(
                f"row {row}: column {column!r} has {counted(len(choices), 'choice')}"
                + (f" and {counted(len(names), 'label')}" if names else ", and two at least are needed")
                + ": correct the row or leave it out"
            )
        return Question(choices, names, answer)

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
        by_row = _by_row(own, rows, outputs)
        right = own.right[rows]
        hits = [np.mean([each.argmax() == want for each, want in zip(rows_, right, strict=True)]) for rows_ in by_row]
        chosen = own.first[rows] + right
        of_right = np.array([each[want] for each, want in zip(by_row[0], right, strict=True)])
        loss = -of_right.sum() / own.answers[chosen].sum()
        return {"accuracy": float(hits[0]), "accuracy_norm": float(hits[1]), "loss": float(loss)}

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return each row's most likely choice, its number as ``choice``, and every choice's ``log_likelihoods``.

        The probabilities are of the choices among themselves; there are none where two choices are the same text.
        """
        own, made = cast("SequenceRows", encoded), []
        for row, scores in zip(rows, _by_row(own, rows, outputs)[0], strict=True):
            choices, best = own.choices[row], int(scores.argmax())
            chances = np.exp(scores - scores.max())
            by_name = dict(zip(choices, (chances / chances.sum()).tolist(), strict=True))
            about = {"choice": best + self.first_choice, "log_likelihoods": scores.tolist()}
            made.append(Prediction(choices[best], by_name if len(by_name) == len(choices) else None, about))
        return made


def _by_row(encoded: SequenceRows, rows: IntArray, outputs: Tensor) -> list[list[npt.NDArray[np.float64]]]:
    """Return the log-likelihoods of each row's choices, as they are and per byte: the highest is what is said."""
    scores = -outputs.double().numpy()
    edges = np.cumsum(encoded.first[rows + 1] - encoded.first[rows])[:-1]
    return [np.split(values, edges) for values in (scores, scores / encoded.weights[encoded.asked(rows)])]
