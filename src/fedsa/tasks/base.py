"""The contract of a task: how rows become batches, a loss and a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


__all__ = ["Encoded", "IntArray", "Prediction", "Sample", "Task"]

IntArray = npt.NDArray[np.int64]


class Encoded(Protocol):
    """Rows ready for the model, kept compactly; a batch is made when it is asked for.

    Items are what goes into a batch. The first are the rows; a task may have more. It may have ``notes``: whole
    sentences on the rows that a user should know, what was cut of them, say.
    """

    @property
    def labels(self) -> IntArray:
        """Shape (rows,): the class number of each row."""
        ...

    @property
    def lengths(self) -> IntArray:
        """Shape (items,): tokens of each item; 0 for a row that is not used."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of all rows and labels."""
        ...

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return the model's inputs for some items, padded to the longest of them."""
        ...


class Sample(NamedTuple):
    """A row as a reader sees it: what the model was given, what it wrote, and every answer that is right."""

    prompt: str
    written: str
    right: tuple[str, ...]


@final
@dataclass(frozen=True)
class Prediction:
    """What a model says of a row. All of it can be written as JSON.

    Attributes:
        value: the answer: a class, a number, a text, or a list of tags.
        probabilities: of each class or choice, where there are some.
        about: what else is known of the answer, by name; each kind of task has names of its own.
    """

    value: str | float | list[str | None]
    probabilities: Mapping[str, float] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """What is learned. One task serves every client."""

    metric: str
    """The name of the number that rounds are chosen by; higher is better."""
    auto_model: ClassVar[str]
    """The transformers class that loads the base model."""
    peft_task_type: ClassVar[str | None]
    """PEFT's name for such a task, by which it finds the head; None: fedsa names the head itself."""
    pipeline_tag: ClassVar[str]
    """What the hub calls such a model, for the model card."""
    has_head: ClassVar[bool] = True
    """The model has a head of the task's own, which is trained in full."""
    takes_images: ClassVar[bool] = False
    """Rows are images: the base model comes with an image processor, and not with a tokenizer."""
    generates: bool = False
    """Part of the figures is of what the model writes."""
    chats: ClassVar[bool] = False
    """Its rows are conversations: a tokenizer without a chat template gets a plain one."""
    asks_base: ClassVar[bool] = False
    """It compares what the model says with what its base says, which must be the model with its adapter off."""
    predicts_text: ClassVar[bool] = False
    """What it predicts of a row is what the model writes on the row's prompt."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Any, label_names: Sequence[str]) -> Task:
        """Return the task of a recipe's ``[task]``.

        Args:
            settings: the section, of the task's kind, or `OwnTaskSettings`.
            label_names: of the label column, in order of their number; empty where there is none.
        """

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """The settings of the base model's config that depend on the task (for example number and names of classes)."""

    def fitted(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Return the task as it is with a base model: itself, or a copy that knows what it needs of the model."""
        return self

    @abstractmethod
    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> Encoded:
        """Return ``table`` encoded under its own row numbers.

        Args:
            table: all rows.
            rows: the row numbers that are used; the others need not be encoded.
            tokenizer: the base model's; its image processor where the task `takes_images`.
            limit: the most tokens that the model takes in a row; of images, the tokens of each.
            answered: the rows have answers. False: they are to be predicted; the columns of answers are not looked at.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each row's summed loss and the number of terms in it, both of shape (rows,).

        The loss of some rows is the sum of their sums over the sum of their numbers: so a batch of several clients
        falls apart into the loss of each.
        """

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's outputs for the rows of a batch; the first dimension is the row, float32."""

    def training_items(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return the items that are trained of ``rows``, row by row: the rows themselves.

        A task may train more than one of a row: batches are drawn from the items.
        """
        return rows

    def questions(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return the items whose outputs the figures of ``rows`` are made of, row by row: the rows themselves.

        A task may ask several things of a row: items beyond the rows are its encoded form's own.
        """
        return rows

    def prompts(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return the item of each row that the model is given to write on, where the task `generates`."""
        raise NotImplementedError

    def generate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The tokens that the model writes on a batch of prompts, shape (rows, most tokens), padded."""
        raise NotImplementedError

    @abstractmethod
    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return the metrics for ``rows``: `metric` and ``loss`` at least.

        Args:
            encoded: the rows.
            rows: of one client.
            outputs: of the rows' `questions`, in their order.
            generated: on the rows' `prompts`, where the task `generates`.
        """

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return what the model says of ``rows``, in their order: what `score` compares with the answers.

        Args:
            encoded: the rows, encoded without answers.
            rows: of it.
            outputs: of the rows' `questions`, in their order.
            generated: on the rows' `prompts`, where the task `predicts_text`.
        """
        raise NotImplementedError

    def sampling(self, encoded: Encoded) -> tuple[Task, Encoded] | None:
        """A task that shows some rows with the model's text, and the rows in that task's encoding.

        The task has `prompts`, `generate` and `samples`, even where its figures are of something else. Where it
        `generates`, what is shown is what the figures are made of.

        Returns:
            None where nothing is shown.
        """
        return None

    def samples(self, encoded: Encoded, rows: IntArray, generated: Tensor) -> list[Sample]:
        """Return rows as a reader sees them; of a task that `sampling` gives.

        Args:
            encoded: the rows.
            rows: some of them.
            generated: on their `prompts`.
        """
        raise NotImplementedError

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of a size that means nothing, to count what a model does with one.

        Args:
            rows: of the batch.
            size: tokens of a row; pixels of an image's side where the task `takes_images`.
        """
        ids = torch.ones(rows, size, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
