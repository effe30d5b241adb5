"""Regression: a number for a text or a pair of texts, as in STS-B."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
import numpy.typing as npt
import torch

from fedsa.errors import DataError
from fedsa.tasks.base import Encoded, IntArray, Prediction, Task
from fedsa.tasks.classification import BesideTokens, Classification
from fedsa.tasks.values import shown

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.recipe import OwnTaskSettings, RegressionSettings

__all__ = ["NumberRows", "Regression"]


@final
@dataclass(frozen=True)
class NumberRows(BesideTokens):
    """Texts with a number each.

    Attributes:
        texts: the rows' tokens.
        numbers: shape (rows,); NaN for a row that is not used.
    """

    numbers: npt.NDArray[np.float64]

    def fingerprint(self) -> str:
        """Return a hash of tokens and numbers."""
        return hashlib.sha256(self.texts.fingerprint().encode() + self.numbers.astype("<f8").tobytes()).hexdigest()

    def batch(self, rows: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """The inputs of some rows, as from `TokenRows`, with the numbers as ``labels``, float32."""
        return {**self.texts.batch(rows), "labels": torch.from_numpy(self.numbers[np.asarray(rows)]).float()}


@final
@dataclass(frozen=True)
class Regression(Task):
    """Squared error of one output; the metric is Spearman's correlation, as GLUE has it for STS-B beside Pearson's.

    Attributes:
        text_columns: one column, or two for a pair of texts.
        number_column: the column of the number.
        max_length: tokens kept of a row; a pair is shortened from its longer text.
        finds_end: as `Classification` has it.
    """

    text_columns: tuple[str, ...]
    number_column: str
    max_length: int = 128
    finds_end: bool = False

    metric: str = field(init=False, default="spearman")
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"

    @classmethod
    def from_settings(cls, settings: RegressionSettings | OwnTaskSettings, label_names: Sequence[str]) -> Regression:
        """Return the task of a recipe's ``[task]``."""
        return cls(tuple(settings.text_columns), settings.answer or "", settings.max_length)

    def model_options(self) -> dict[str, Any]:
        """The model has one output."""
        return {"num_labels": 1, "problem_type": "regression"}

    def fitted(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Regression:
        """Return the task as it is with a base model."""
        return replace(self, finds_end=bool(getattr(cast(Any, model).config, "is_encoder_decoder", False)))

    def encode(
        self,
        table: Dataset,
        rows: IntArray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        answered: bool = True,
    ) -> NumberRows:
        """Return ``rows`` of ``table`` as tokens and numbers.

        Raises:
            DataError: a value is no number.
        """
        rows, numbers = np.unique(rows), np.full(len(table), np.nan)
        if answered:
            numbers[rows] = self._numbers(table, rows)
        texts = Classification(self.text_columns, (), self.max_length, self.finds_end)
        return NumberRows(texts.encode(table, rows, tokenizer, limit=limit, answered=answered), numbers)

    def _numbers(self, table: Dataset, rows: IntArray) -> list[float]:
        """Return the number of each row.

        Raises:
            DataError: a value is none.
        """
        values: list[float] = table.select_columns([self.number_column])[rows][self.number_column]
        wrong = [place for place, value in enumerate(values) if not _is_number(value)]
        if wrong:  # one such cell, and a CSV's whole column is read as texts
            place = next((place for place in wrong if not _says_number(values[place])), wrong[0])
            raise DataError(
                f"row {rows[place]}: column {self.number_column!r} says {shown(values[place])}, which is no number to "
                "predict: correct the row, or name another column in task.answer"
            )
        return values

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each row's squared error, and ones."""
        each = (self.outputs(model, batch) - batch["labels"]).square()
        return each, torch.ones_like(each)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the predicted numbers in fp32 at least, shape (rows,)."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits[:, 0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``spearman``, ``pearson`` and the mean squared error as ``loss``.

        A correlation with what does not vary (all predictions alike, say, or one row) is counted as 0.
        """
        from scipy.stats import pearsonr, spearmanr

        wanted, predicted = cast("NumberRows", encoded).numbers[rows], np.array(_said(outputs))
        varies = min(np.ptp(wanted), np.ptp(predicted)) > 0
        figures = {
            name: float(of(predicted, wanted).statistic) if varies else 0.0
            for name, of in (("spearman", spearmanr), ("pearson", pearsonr))
        }
        return figures | {"loss": float(np.square(predicted - wanted).mean())}

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return each row's number."""
        return [Prediction(number) for number in _said(outputs)]


def _said(outputs: Tensor) -> list[float]:
    """Return the predicted number of each row."""
    numbers: list[float] = outputs.double().tolist()
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _says_number(value: Any) -> bool:
    """Say whether a text is that of a number."""
    try:
        return isinstance(value, str) and bool(np.isfinite(float(value)))
    except ValueError:
        return False
