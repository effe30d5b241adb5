"""Chat: the assistant's turns of a conversation are learned, all of them, and the last one is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast, final

import numpy as np

from fedsa.tasks.base import IntArray, Prediction, Sample
from fedsa.tasks.beginnings import Beginnings
from fedsa.tasks.chat import with_template
from fedsa.tasks.decoding import Decoding, said_of
from fedsa.tasks.dialogues import Cuts, Dialogues, Kept, answer_of
from fedsa.tasks.lengths import Reading, kept_length
from fedsa.tasks.tokenizing import parts_of
from fedsa.types import CLASS_NUMBER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import ChatSettings
    from fedsa.tasks.base import Encoded, Task
    from fedsa.tasks.sequences import SequenceRows

__all__ = ["Chat"]


@final
@dataclass(frozen=True)
class Chat(Decoding):
    """The assistant's turns of conversations are trained, in the tokenizer's chat template; their likelihood counts.

    A column ``messages`` holds a conversation as JSON: a list of turns with ``role`` and ``content``. A tokenizer
    without a chat template gets a plain one.

    Attributes:
        max_length: tokens kept of a conversation.
        max_new_tokens: written at most as an answer.
        stops: the tokens at which the model stops to write.
        limit: the most tokens that the model takes; None: as many as there are.
        writes: the model can write.
    """

    max_length: int = 512
    max_new_tokens: int = 128
    stops: tuple[int, ...] = ()
    limit: int | None = None
    writes: bool = False
    chats: ClassVar[bool] = True
    chat: bool = field(init=False, default=True)
    metric: str = field(init=False, default="log_likelihood")

    @classmethod
    def from_settings(cls, settings: ChatSettings, label_names: Sequence[str]) -> Chat:
        """Return the task of a recipe's ``[task]``."""
        return cls(settings.max_length, settings.max_new_tokens)

    def fitted(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Return the task as it is with a base model, whose tokenizer has a chat template from now on."""
        return super().fitted(model, with_template(tokenizer))

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> SequenceRows:
        """Return ``rows`` of ``table`` as tokens: whole conversations, or what the model is to answer.

        Raises:
            DataError: the template does not go with a row, or the tokenizer knows nothing of most rows.
        """
        rows, count = np.unique(rows), len(table)
        dialogues, reading = Dialogues(tokenizer), Reading(tokenizer)
        cuts = Cuts(kept_length(self.max_length, limit), limit)
        made: list[Kept] = []
        for part, cells in parts_of(table, rows):
            turns = [json.loads(cell["messages"]) for cell in cells]
            if not answered:
                fronts = dialogues.fronts(part, turns)
                reading.add([front for front, _ in fronts], [len(front) for front, _ in fronts])
                for row, (front, probe) in zip(part.tolist(), fronts, strict=True):
                    kept = cuts.fit_front(row, front, probe, self.max_new_tokens)
                    made.append((kept, [False] * len(kept)))
                continue
            spoken = dialogues.spoken(part, turns)
            reading.add([each.tokens for each in spoken], [len(each.tokens) for each in spoken])
            for row, each in zip(part.tolist(), spoken, strict=True):
                made += cuts.fit(row, [each], answer_of(each))
        labels = np.asarray(table[CLASS_NUMBER][:], dtype=np.int64)
        notes = (*dialogues.notes, *cuts.notes(), *reading.unread(["messages"]))
        numbers, items = (rows, count) if answered else (rows + count, 2 * count)
        return dialogues.encoded(made, numbers, items, labels, limit=limit, notes=notes)

    def beginnings(self, encoded: SequenceRows) -> IntArray:
        """Return the tokens of each row up to its last answer."""
        asked = encoded.asked_tokens
        if asked is None or not len(asked):
            return np.zeros(len(encoded.lengths), dtype=np.int64)
        last = np.maximum.accumulate(np.where(asked, -1, np.arange(len(asked))))  # up to each token, the last not asked
        kept = last[np.maximum(encoded.offsets[1:] - 1, 0)] + 1 - encoded.offsets[:-1]
        return np.where(encoded.lengths > 0, np.clip(kept, 1, None), 0)

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return what the model answers in each conversation."""
        return [
            Prediction(text)
            for text in ([] if generated is None else said_of(cast("SequenceRows", encoded), generated))
        ]

    def samples(self, encoded: Encoded, rows: IntArray, generated: Tensor) -> list[Sample]:
        """Return conversations up to their last answer, what the model wrote, and what stands there, as many tokens."""
        return cast("Beginnings", encoded).samples(rows, generated)
