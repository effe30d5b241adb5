"""The section ``[task]``, what all kinds of task have: how a row becomes a batch, a loss and a metric."""

from __future__ import annotations

import string
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from fedsa.recipe.base import Agreed, Settings, repeated

__all__ = ["Chat", "Labels", "Prompt", "TaskSettings", "Template", "Texts", "fields_of"]


def fields_of(*templates: str) -> list[str]:
    """The columns that templates name.

    >>> fields_of("{question} {hint}", "{answer}")
    ['question', 'hint', 'answer']
    """
    parsed = [field for template in templates for _, field, _, _ in string.Formatter().parse(template)]
    return list(dict.fromkeys(field for field in parsed if field))


def _is_template(text: str) -> str:
    try:
        fields_of(text)
    except ValueError as error:
        raise ValueError(
            f"{error}; write a brace that does not belong to a column as {{{{ or }}}} (got {text!r})"
        ) from None
    return text


def _are_classes(labels: list[str]) -> list[str]:
    twice = repeated(labels)
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}; each class has one name and one number")
    if len(labels) < 2:
        raise ValueError(f"give at least two classes, or leave `labels` out to find them in the data (got {labels})")
    return labels


Template = Annotated[str, AfterValidator(_is_template)]
Labels = Annotated[list[str], AfterValidator(_are_classes)]
Texts = Annotated[list[str], Field(min_length=1, max_length=2, description="one column, or two for pairs")]
Chat = Annotated[bool, Field(description="prompt and answer are two turns in the tokenizer's chat template")]
Prompt = Annotated[
    Template, Field(min_length=1, description="the text before the answer; {column} is replaced by the row's value")
]


class TaskSettings(Settings):
    """How a row becomes a batch, a loss and a metric. What all kinds of task have."""

    is_own: ClassVar[bool] = False
    """It is a class of the user's."""

    has_classes: ClassVar[bool] = False
    """Each row has a class that is to be predicted."""

    shape: ClassVar[Literal["conversation", "preference"] | None] = None
    """Its rows come in several shapes: which columns of a table hold them is found by looking at the table."""

    kind: Agreed[str]
    label_column: Agreed[str | None] = Field(
        None,
        description="a column whose values are dealt out to clients like classes; empty: all rows are treated alike",
    )
    max_length: Agreed[int] = Field(128, gt=0, description="tokens kept of one example; not for images")

    @property
    def columns(self) -> list[str]:
        """The columns that it reads, but for the label's."""
        return [*self.input_columns]

    @property
    def given_columns(self) -> dict[str, str]:
        """Of rows with a `shape`: the columns of a table that the recipe names, by what they hold."""
        return {}

    @property
    def input_columns(self) -> list[str]:
        """Those of the columns that the model is given as text."""
        return []

    @property
    def asked_columns(self) -> list[str]:
        """Those of the columns that a row must have to be predicted: all that the model is given."""
        return self.input_columns

    @property
    def plain_columns(self) -> list[str]:
        """Those of the columns that hold one text each; others hold lists or pictures, or are looked at by the task."""
        return []

    @property
    def number_columns(self) -> set[str]:
        """Those of the columns whose cells may stay numbers."""
        return set()

    @property
    def class_names(self) -> list[str] | None:
        """The classes in order of their number; None: there are none, or they are found in the data."""
        return None

    @property
    def image_side(self) -> int | None:
        """Pixels of an image's side; None: there are no images, or the base model's image processor says it."""
        return None
