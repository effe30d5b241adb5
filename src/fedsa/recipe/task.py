"""The section ``[task]``: how a row becomes a batch, a loss and a metric."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fedsa.errors import near
from fedsa.recipe.base import Agreed, Settings, repeated

__all__ = ["TaskSettings", "fields_of"]

_CLASSES = {"classification", "image_classification"}
"""The kinds of task whose rows have a class each."""

_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {"label_column": "label"},
    "image_classification": {"label_column": "label", "text_columns": ["image"]},
    "question_answering": {"text_columns": ["question", "context"], "answer": "answers", "max_length": 384},
}
"""Defaults that a kind has for itself."""

_GOES_WITH: dict[str, set[str]] = {
    "labels": {"classification", "image_classification", "multiple_choice", "token_classification"},
    "prompt": {"generation", "multiple_choice"},
    "answer": {"generation", "multiple_choice", "question_answering", "regression", "token_classification"},
    "chat": {"generation", "multiple_choice"},
    "choices": {"multiple_choice"},
    "choice_template": {"multiple_choice"},
    "first_choice": {"multiple_choice"},
    "metric": {"generation"},
    "extract": {"generation"},
    "max_new_tokens": {"generation"},
    "doc_stride": {"question_answering"},
    "max_answer_length": {"question_answering"},
    "image_size": {"image_classification"},
}
"""Settings of the task, and the kinds that they go with; the others go with all."""

_NEEDED: dict[str, tuple[str, ...]] = {
    "generation": ("prompt", "answer"),
    "multiple_choice": ("prompt", "answer"),
    "question_answering": ("answer",),
    "regression": ("answer",),
    "token_classification": ("answer", "labels"),
}
"""What a kind cannot do without."""


class TaskSettings(Settings):
    """How a row becomes a batch, a loss and a metric."""

    kind: Agreed[str] = Field(
        "classification",
        description="classification, image_classification, token_classification, question_answering, regression, "
        "generation, language_modeling, multiple_choice, or package.module:Class",
    )
    text_columns: Agreed[list[str]] = Field(
        ["text"],
        min_length=1,
        max_length=2,
        description="one column, or two for pairs; image_classification: the column of the image, image by default; "
        "token_classification: the column of the list of words; question_answering: question and context, the default",
    )
    label_column: Agreed[str | None] = Field(
        None,
        description="the column of the class; empty: label. For tasks without classes: a column whose values are "
        "shared out as classes are, or empty",
    )
    labels: Agreed[list[str] | None] = Field(
        None,
        description="class names in order of their number; empty: found in the data. multiple_choice: the choices, "
        "where every row has the same; token_classification: O, B-KIND and I-KIND of each kind",
    )
    prompt: Agreed[str | None] = Field(None, description="what the model is given; {column} stands for a row's value")
    answer: Agreed[str | None] = Field(
        None,
        description="generation: what it is to say, with {column}; multiple_choice: the column that tells the right "
        "choice (its number, its letter, its text, or true and false); regression: the column of the number; "
        "token_classification: the column of the list of tags; question_answering: the column with the lists text and "
        "answer_start, answers by default",
    )
    chat: Agreed[bool] = Field(False, description="prompt and answer are a turn each in the tokenizer's chat template")
    choices: Agreed[list[str] | None] = Field(
        None, description="columns with a choice each, or one column with a list (or with text and label, as in ARC)"
    )
    choice_template: Agreed[str] = Field(" {choice}", description="a choice as the model would say it")
    first_choice: Agreed[int] = Field(
        0, ge=0, le=1, description="the number of the first choice, where the answer is a number"
    )
    metric: Agreed[Literal["log_likelihood", "exact_match", "f1"]] = Field(
        "log_likelihood",
        description="log_likelihood: of the answer's tokens (mean, nats); exact_match, f1: of what the model writes, "
        "against the answer, normalised as for SQuAD",
    )
    extract: Agreed[Literal["none", "gsm8k_strict", "gsm8k_flexible"]] = Field(
        "none", description="what of a text is compared: all; the number behind ####; the last number"
    )
    max_new_tokens: Agreed[int] = Field(64, gt=0, description="tokens that the model writes at most on a prompt")
    max_length: Agreed[int] = Field(
        128,
        gt=0,
        description="tokens kept of one example; not for images; question_answering: of a window, 384 by default",
    )
    doc_stride: Agreed[int] = Field(
        128,
        gt=0,
        description="question_answering: tokens that neighbouring windows share, a third of a window's at most",
    )
    max_answer_length: Agreed[int] = Field(
        30, gt=0, description="question_answering: tokens of a predicted answer at most"
    )
    image_size: Agreed[int | None] = Field(
        None, gt=0, description="pixels of an image's side; empty: what the base model's image processor says"
    )
    options: Agreed[dict[str, Any]] = Field({}, description="of a task of your own")

    @model_validator(mode="before")
    @classmethod
    def _has_own_defaults(cls, data: Any) -> Any:
        kind = data.get("kind", "classification") if isinstance(data, Mapping) else None
        return {**_OWN_DEFAULTS[kind], **data} if isinstance(kind, str) and kind in _OWN_DEFAULTS else data

    @field_validator("labels")
    @classmethod
    def _are_classes(cls, labels: list[str] | None) -> list[str] | None:
        twice = repeated(labels or ())
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}; each class has one name and one number")
        if labels is not None and len(labels) < 2:
            raise ValueError(
                f"give at least two classes, or leave `labels` out to find them in the data (got {labels})"
            )
        return labels

    @field_validator("prompt", "answer", "choice_template")
    @classmethod
    def _is_a_template(cls, text: str | None) -> str | None:
        try:
            fields_of(text or "")
        except ValueError as error:
            raise ValueError(f"{error}; write a brace that is no column as {{{{ or }}}} (got {text!r})") from None
        return text

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TaskSettings:
        kinds = sorted({*_CLASSES, *_NEEDED, "language_modeling"})
        if self.is_own:
            return self
        if self.kind not in kinds:
            raise ValueError(
                f"kind = {self.kind!r}: {near(self.kind, kinds)} (a task of your own is package.module:Class)"
            )
        problems = [
            f"kind = {self.kind!r} needs `{name}`" for name in _NEEDED.get(self.kind, ()) if not getattr(self, name)
        ]
        for name, goes_with in _GOES_WITH.items():
            if self.kind not in goes_with and getattr(self, name) != type(self).model_fields[name].default:
                problems.append(f"`{name}` does not go with kind = {self.kind!r}")
        if self.kind in ("image_classification", "token_classification") and len(self.text_columns) > 1:
            problems.append(f"kind = {self.kind!r} has one column in `text_columns`")
        if self.kind == "question_answering" and len(self.text_columns) != 2:
            problems.append("kind = 'question_answering' has two columns in `text_columns`: question and context")
        if self.kind == "token_classification":
            strange = [tag for tag in self.labels or () if tag != "O" and tag[:2] not in ("B-", "I-")]
            if strange:
                problems.append(f"`labels`: a tag is O, B-KIND or I-KIND (got {strange[0]!r})")
        if self.options:
            problems.append("`options` are for a task of your own (kind = package.module:Class)")
        if self.kind == "multiple_choice" and (self.choices is None) == (self.labels is None):
            problems.append(
                "kind = 'multiple_choice' needs either `choices`, the columns, or `labels`, the same choices for all"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def is_own(self) -> bool:
        """It is a class of the user's."""
        return ":" in self.kind

    @property
    def has_classes(self) -> bool:
        """Each row has a class that is to be predicted."""
        return self.kind in _CLASSES

    @property
    def columns(self) -> list[str]:
        """The columns that it reads, but for the label's."""
        if self.kind == "generation":
            return fields_of(self.prompt or "", self.answer or "")
        if self.kind == "multiple_choice":
            return list(dict.fromkeys([*fields_of(self.prompt or ""), *(self.choices or ()), self.answer or ""]))
        return [*self.text_columns, *([self.answer] if self.answer else [])]


def fields_of(*templates: str) -> list[str]:
    """Return the columns that templates name.

    >>> fields_of("{question} {hint}", "{answer}")
    ['question', 'hint', 'answer']
    """
    parsed = [field for template in templates for _, field, _, _ in string.Formatter().parse(template)]
    return list(dict.fromkeys(field for field in parsed if field))
