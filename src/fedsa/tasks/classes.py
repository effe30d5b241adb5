"""What tasks have in common whose rows have a class each, whatever the rows are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from fedsa.tasks.base import Encoded, IntArray, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ClassTask"]


class ClassTask(Task):
    """Cross-entropy on class logits; the metric is accuracy. A task says how rows become batches."""

    metric: str = "accuracy"
    label_names: tuple[str, ...]
    """Class names in order of their number."""

    def model_options(self) -> dict[str, Any]:
        """Return the classes for the model's config."""
        return {
            "num_labels": len(self.label_names),
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {name: number for number, name in enumerate(self.label_names)},
        }

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return each row's cross-entropy, and ones."""
        each = F.cross_entropy(self.outputs(model, batch), batch["labels"], reduction="none")
        return each, torch.ones_like(each)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return accuracy and mean cross-entropy."""
        labels = encoded.labels[rows]
        predicted = _chosen(outputs).numpy()
        return {
            "accuracy": float((predicted == labels).mean()),
            "loss": float(F.cross_entropy(outputs, torch.from_numpy(labels))),
        }

    def predictions(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> list[Prediction]:
        """Return each row's most probable class, and the probability of each class."""
        return [
            Prediction(self.label_names[number], dict(zip(self.label_names, chances, strict=True)))
            for number, chances in zip(_chosen(outputs).tolist(), outputs.double().softmax(dim=1).tolist(), strict=True)
        ]


def _chosen(outputs: Tensor) -> Tensor:
    """Return the number of each row's class: the one with the highest logit."""
    return outputs.argmax(dim=1)
