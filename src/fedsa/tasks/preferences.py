"""Preferences: of two answers to a prompt the model learns to find the preferred one more likely than its base does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F

from fedsa.errors import DataError
from fedsa.tasks.adapter_off import adapter_off
from fedsa.tasks.base import IntArray, Prediction, Task
from fedsa.tasks.chat import with_template
from fedsa.tasks.dialogues import Cuts, Dialogues, Kept, Spoken
from fedsa.tasks.lengths import Reading, kept_length
from fedsa.tasks.sequences import SequenceRows, answer_losses, sequence_example
from fedsa.tasks.tokenizing import parts_of
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import DpoSettings
    from fedsa.tasks.base import Encoded

__all__ = ["AnswerPairs", "Dpo"]

_COLUMNS = ("prompt", "chosen", "rejected")


@final
@dataclass(frozen=True)
class AnswerPairs:
    """Rows with two answers each.

    Attributes:
        sequences: items 2·i and 2·i + 1 are the prompt of row i with its preferred answer and with the other one.
        labels: shape (rows,): the classes by which rows are dealt to clients.
        notes: sentences on the rows.
    """

    sequences: SequenceRows
    labels: IntArray
    notes: tuple[str, ...] = ()

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row: those of both sequences."""
        lengths: IntArray = self.sequences.lengths.reshape(-1, 2).sum(axis=1)
        return lengths

    def fingerprint(self) -> str:
        """Return a hash of the sequences."""
        return self.sequences.fingerprint()

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return a batch as `SequenceRows` does: of each row both sequences, the preferred answer's first."""
        return self.sequences.batch((2 * np.asarray(rows)[:, None] + np.arange(2)).ravel())


@final
@dataclass(frozen=True)
class Dpo(Task):
    """Direct preference optimisation (Rafailov et al., 2023); its reference is the base: the model, its adapter off.

    The reward of an answer is β times by how much the model finds it more likely than the base does, in nats, summed
    over its tokens. The margin of a row is the reward of the preferred answer minus that of the other one, and its loss
    -log σ(margin). Every client has the same base as its reference, and its own rows.

    Attributes:
        beta: β.
        max_length: tokens kept of a prompt with an answer.
    """

    beta: float = 0.1
    max_length: int = 512

    metric: str = field(init=False, default="accuracy")
    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    has_head: ClassVar[bool] = False
    asks_base: ClassVar[bool] = True
    chats: ClassVar[bool] = True

    @classmethod
    def from_settings(cls, settings: DpoSettings, label_names: Sequence[str]) -> Dpo:
        """Return the task of a recipe's ``[task]``."""
        return cls(settings.beta, settings.max_length)

    def model_options(self) -> dict[str, Any]:
        """Return nothing: the model is as it is."""
        return {}

    def fitted(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Return the task; the tokenizer has a chat template from now on."""
        with_template(tokenizer)
        return self

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> AnswerPairs:
        """Return ``rows`` of ``table`` as tokens: each prompt with both of its answers.

        Raises:
            DataError: the template does not go with a row, nothing of an answer is left where it is cut, or the
                tokenizer knows nothing of most rows.
        """
        rows, count = np.unique(rows), len(table)
        dialogues, reading = Dialogues(tokenizer), Reading(tokenizer)
        cuts = Cuts(kept_length(self.max_length, limit), limit)
        made: list[Kept] = []
        alike = 0
        for part, cells in parts_of(table, rows):
            pairs = [[json.loads(cell[name]) for name in _COLUMNS] for cell in cells]
            by_answer = [
                dialogues.spoken(part, [[*map(_known, before), *pair[place]] for before, *pair in pairs])
                for place in range(2)
            ]
            for row, chosen, rejected in zip(part.tolist(), *by_answer, strict=True):
                reading.add([chosen.tokens], [len(chosen.tokens)])
                kept = cuts.fit(row, _beginning_alike(row, chosen, rejected), _longer_answer(chosen, rejected))
                alike += kept[0] == kept[1]
                made += kept
        numbers = (2 * rows[:, None] + np.arange(2)).ravel()
        sequences = dialogues.encoded(made, numbers, 2 * count, np.zeros(2 * count, dtype=np.int64), limit=limit)
        notes = [*dialogues.notes, *cuts.notes(), *reading.unread(_COLUMNS)]
        if alike:
            notes.append(
                f"In {alike:,} of {counted(len(rows), 'row')} both answers are the same as far as they are read: "
                "nothing is learned of them."
            )
        return AnswerPairs(sequences, np.asarray(table[CLASS_NUMBER][:], dtype=np.int64), tuple(notes))

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of each row, and ones: a row is one term, however long its answers are."""
        with adapter_off(model):
            base = answer_losses(model, batch)[0]
        own = answer_losses(model, batch)[0]
        losses = -F.logsigmoid(self._margins(own, base))
        return losses, torch.ones_like(losses)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the log-likelihoods of both answers by the model, and by its base: shape (rows, 4)."""
        with adapter_off(model):
            base = answer_losses(model, batch)[0]
        own = answer_losses(model, batch)[0]
        return -torch.cat([own.view(-1, 2), base.view(-1, 2)], dim=1)

    def _margins(self, own: Tensor, base: Tensor) -> Tensor:
        """Return each row's margin.

        Args:
            own: the cross-entropy of each sequence, shape (2·rows,).
            base: the same by the base model.
        """
        rewards = self.beta * (base - own).view(-1, 2)
        return rewards[:, 0] - rewards[:, 1]

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``accuracy``, the part of the rows with a positive margin; the mean ``margin``; and ``loss``."""
        rewards = self._rewards(outputs)
        margins = rewards[:, 0] - rewards[:, 1]
        return {
            "accuracy": float((margins > 0).double().mean()),
            "margin": float(margins.mean()),
            "loss": float(-F.logsigmoid(margins).mean()),
        }

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return which answer each row's model prefers, ``chosen`` or ``rejected``, with the ``margin`` of the former.

        The probability of an answer is that by which a person would prefer it if the rewards were right: σ(margin).
        """
        made = []
        for chosen, rejected in self._rewards(outputs).tolist():
            margin = chosen - rejected
            chance = float(torch.sigmoid(torch.tensor(margin, dtype=torch.float64)))
            about = {"margin": margin, "rewards": {"chosen": chosen, "rejected": rejected}}
            value = "chosen" if margin > 0 else "rejected"
            made.append(Prediction(value, {"chosen": chance, "rejected": 1 - chance}, about))
        return made

    def _rewards(self, outputs: Tensor) -> Tensor:
        """Return the rewards of both answers, shape (rows, 2)."""
        values = outputs.double()
        return self.beta * (values[:, :2] - values[:, 2:])

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of a size, to count with: two sequences of each row."""
        return sequence_example(2 * rows, size)


def _known(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn of the prompt: it is not learned, whoever said it."""
    return {**turn, "train": False}


def _beginning_alike(row: int, chosen: Spoken, rejected: Spoken) -> list[Spoken]:
    """Return both answers behind the same tokens.

    Raises:
        DataError: the template writes the prompt in another way for each.
    """
    if chosen.tokens[: chosen.first] != rejected.tokens[: rejected.first]:
        raise DataError(
            f"row {row}: by the tokenizer's chat template the prompt in front of both answers is not the same: take a "
            "model with another template"
        )
    return [chosen, rejected]


def _longer_answer(chosen: Spoken, rejected: Spoken) -> int:
    """Return the tokens of the longer answer."""
    return max(len(each.tokens) - each.first for each in (chosen, rejected))
