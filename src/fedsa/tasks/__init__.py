"""Tasks: rows to batches, losses and metrics. What a task is: see `fedsa.tasks.base`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsa.plugins import load_class
from fedsa.tasks.base import Task

if TYPE_CHECKING:
    from fedsa.recipe import TaskSettings

__all__ = ["make_task"]

_TASKS = {
    "classification": "fedsa.tasks.classification:Classification",
    "image_classification": "fedsa.tasks.images:ImageClassification",
    "generation": "fedsa.tasks.generation:Generation",
    "language_modeling": "fedsa.tasks.generation:LanguageModeling",
    "chat": "fedsa.tasks.conversations:Chat",
    "dpo": "fedsa.tasks.preferences:Dpo",
    "regression": "fedsa.tasks.regression:Regression",
    "token_classification": "fedsa.tasks.tagging:TokenClassification",
    "question_answering": "fedsa.tasks.question_answering:QuestionAnswering",
    "multiple_choice": "fedsa.tasks.multiple_choice:MultipleChoice",
}


def make_task(settings: TaskSettings, label_names: Sequence[str]) -> Task:
    """Return the task that a recipe describes.

    Args:
        settings: the recipe's ``[task]``.
        label_names: of the label column, in order of their number; empty where there is none.

    Raises:
        UserError: a class of the user's cannot be imported, or is no task.
    """
    found: type[Task] = load_class("task", _TASKS.get(settings.kind, settings.kind), Task)
    return found.from_settings(settings, label_names)
