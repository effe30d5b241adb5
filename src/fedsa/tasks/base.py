"""The contract of a task: how rows become batches, a loss and a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "IntArray", "Task"]

IntArray = npt.NDArray[np.int64]


class Encoded(Protocol):
    """Rows ready for the model, kept compactly; a batch is made when it is asked for."""

    @property
    def labels(self) -> IntArray:
        """Shape (rows,): the class number of each row."""
        ...

    @property
    def lengths(self) -> IntArray:
        """Shape (rows,): tokens of each row; 0 for a row that is not used."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of all rows and labels."""
        ...

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return the model's inputs for some rows, padded to the longest of them."""
        ...


class Task(ABC):
    """What is learned. One task serves every client."""

    metric: ClassVar[str]
    """The name of the number that rounds are chosen by; higher is better."""
    auto_model: ClassVar[str]
    """The transformers class that loads the base model."""
    peft_task_type: ClassVar[str]

    @abstractmethod
    def model_options(self) -> dict[str, Any]:
        """Return what the base model's config needs to know of the task (numbers and names of classes, say)."""

    @abstractmethod
    def encode(
        self, table: Dataset, rows: IntArray, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None
    ) -> Encoded:
        """Return ``table`` encoded under its own row numbers.

        Args:
            table: all rows.
            rows: the row numbers that are used; the others need not be encoded.
            tokenizer: the base model's.
            limit: the most tokens that the model takes in a row.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each row's summed loss and the number of terms in it, both of shape (rows,).

        The loss of some rows is the sum of their sums over the sum of their numbers: so a batch of several clients
        falls apart into the loss of each.
        """

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the model says of each row of a batch, first dimension the row, float32."""

    @abstractmethod
    def score(self, encoded: Encoded, rows: IntArray, outputs: Tensor) -> dict[str, float]:
        """Return the metrics of ``outputs`` for ``rows``: `metric` and ``loss`` at least."""
