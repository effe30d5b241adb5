"""The section ``[task]``, kind by kind. A new kind of task is a class here, and a line in the union at the end."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from fedsa.recipe.base import Agreed
from fedsa.recipe.kinds import ByKind, reader
from fedsa.recipe.task import Chat, Labels, Prompt, TaskSettings, Template, Texts, fields_of

__all__ = [
    "AnyTaskSettings",
    "ChatSettings",
    "ClassificationSettings",
    "DpoSettings",
    "GenerationSettings",
    "ImageClassificationSettings",
    "LanguageModelingSettings",
    "MultipleChoiceSettings",
    "OwnTaskSettings",
    "QuestionAnsweringSettings",
    "RegressionSettings",
    "TokenClassificationSettings",
    "task_settings",
]


def _are_tags(labels: list[str]) -> list[str]:
    strange = [tag for tag in labels if tag != "O" and tag[:2] not in ("B-", "I-")]
    if strange:
        raise ValueError(f"a tag is O, B-KIND or I-KIND (got {strange[0]!r})")
    return labels


def _is_one(columns: list[str]) -> list[str]:
    if len(columns) != 1:
        raise ValueError(f"there is one column in `text_columns` for this kind of task (got {columns})")
    return columns


def _are_question_and_context(columns: list[str]) -> list[str]:
    if len(columns) != 2:
        raise ValueError(f"there are two columns in `text_columns`: question and context (got {columns})")
    return columns


_Metric = Literal["log_likelihood", "exact_match", "f1"]
_Extract = Literal["none", "gsm8k_strict", "gsm8k_flexible"]


class _PlainTexts(TaskSettings):
    """Tasks whose columns hold one text each."""

    text_columns: Agreed[Texts] = Field(["text"])

    @property
    def input_columns(self) -> list[str]:
        """The columns of texts."""
        return self.text_columns

    @property
    def plain_columns(self) -> list[str]:
        """The columns of texts."""
        return self.text_columns


class _Classes(TaskSettings):
    """Tasks whose rows have a class each."""

    has_classes: ClassVar[bool] = True

    label_column: Agreed[str] = Field("label", description="the column of the class")
    labels: Agreed[Labels | None] = Field(
        None, description="class names in order of their number; empty: found in the data"
    )

    @property
    def class_names(self) -> list[str] | None:
        """The classes in order of their number; None: they are found in the data."""
        return self.labels


class ClassificationSettings(_Classes, _PlainTexts):
    """A class of each text, or of each pair of texts."""

    kind: Agreed[Literal["classification"]] = Field("classification", description="a class of a text or a pair")


class ImageClassificationSettings(_Classes):
    """A class of each image."""

    kind: Agreed[Literal["image_classification"]] = Field("image_classification", description="a class of an image")
    text_columns: Agreed[Annotated[list[str], AfterValidator(_is_one)]] = Field(
        ["image"], description="the column of the image"
    )
    image_size: Agreed[int | None] = Field(
        None, gt=0, description="pixels of an image's side; empty: as the base model's image processor says"
    )

    @property
    def columns(self) -> list[str]:
        """The column of the image."""
        return self.text_columns

    @property
    def asked_columns(self) -> list[str]:
        """The column of the image."""
        return self.text_columns

    @property
    def image_side(self) -> int | None:
        """Pixels of an image's side; None: the base model's image processor says it."""
        return self.image_size


class TokenClassificationSettings(TaskSettings):
    """A tag of each word."""

    kind: Agreed[Literal["token_classification"]] = Field("token_classification", description="a tag of each word")
    text_columns: Agreed[Annotated[list[str], AfterValidator(_is_one)]] = Field(
        ["text"], description="the column of the list of words"
    )
    answer: Agreed[str] = Field(min_length=1, description="the column of the list of tags")
    labels: Agreed[Annotated[Labels, AfterValidator(_are_tags)]] = Field(
        description="the tags O, and B-KIND and I-KIND for each kind, in order of their number"
    )

    @property
    def input_columns(self) -> list[str]:
        """The column of the words."""
        return self.text_columns

    @property
    def columns(self) -> list[str]:
        """The columns of words and tags."""
        return [*self.text_columns, self.answer]


class QuestionAnsweringSettings(_PlainTexts):
    """The part of a context that answers a question."""

    kind: Agreed[Literal["question_answering"]] = Field(
        "question_answering", description="the part of a context that answers a question"
    )
    text_columns: Agreed[Annotated[list[str], AfterValidator(_are_question_and_context)]] = Field(
        ["question", "context"], description="the columns of question and context"
    )
    answer: Agreed[str] = Field(
        "answers", min_length=1, description="the column with the lists text and answer_start, as in SQuAD"
    )
    max_length: Agreed[int] = Field(384, gt=0, description="tokens of a window")
    doc_stride: Agreed[int] = Field(
        128, gt=0, description="tokens that neighbouring windows share, at most a third of a window"
    )
    max_answer_length: Agreed[int] = Field(30, gt=0, description="most tokens of a predicted answer")

    @property
    def columns(self) -> list[str]:
        """The columns of question, context and answers."""
        return [*self.text_columns, self.answer]


class RegressionSettings(_PlainTexts):
    """A number of each text, or of each pair of texts."""

    kind: Agreed[Literal["regression"]] = Field("regression", description="a number of a text or a pair")
    answer: Agreed[str] = Field(min_length=1, description="the column of the number")

    @property
    def columns(self) -> list[str]:
        """The columns of texts and of the number."""
        return [*self.text_columns, self.answer]

    @property
    def number_columns(self) -> set[str]:
        """The column of the number."""
        return {self.answer}


class LanguageModelingSettings(_PlainTexts):
    """The next token of each text."""

    kind: Agreed[Literal["language_modeling"]] = Field("language_modeling", description="the next token of a text")


class GenerationSettings(TaskSettings):
    """An answer to a prompt, in the model's words."""

    kind: Agreed[Literal["generation"]] = Field("generation", description="an answer in words")
    prompt: Agreed[Prompt]
    answer: Agreed[Template] = Field(min_length=1, description="the answer to learn, with {column}")
    chat: Agreed[Chat] = False
    metric: Agreed[_Metric] = Field(
        "log_likelihood",
        description="log_likelihood: of the answer's tokens (mean, nats); exact_match, f1: the model's text compared "
        "with the answer, normalised as for SQuAD",
    )
    extract: Agreed[_Extract] = Field(
        "none", description="the part of a text that is compared: all; the number behind ####; the last number"
    )
    max_new_tokens: Agreed[int] = Field(64, gt=0, description="most tokens that the model writes on a prompt")

    @property
    def input_columns(self) -> list[str]:
        """The columns that the prompt names."""
        return fields_of(self.prompt)

    @property
    def columns(self) -> list[str]:
        """The columns that prompt and answer name."""
        return fields_of(self.prompt, self.answer)

    @property
    def number_columns(self) -> set[str]:
        """The columns that are written in a number's format, as ``{price:.2f}``."""
        parsed = string.Formatter().parse(self.prompt + self.answer)
        return {field for _, field, form, _ in parsed if field and form}


class ChatSettings(TaskSettings):
    """The assistant's turns of a conversation."""

    shape: ClassVar[Literal["conversation"]] = "conversation"

    kind: Agreed[Literal["chat"]] = Field("chat", description="the assistant's turns of a conversation")
    messages: Agreed[str | None] = Field(
        None, description="the column of the conversation; empty: found by looking at the columns"
    )
    max_length: Agreed[int] = Field(512, gt=0, description="tokens kept of a conversation")
    max_new_tokens: Agreed[int] = Field(128, gt=0, description="most tokens that the model writes as an answer")

    @property
    def given_columns(self) -> dict[str, str]:
        """The column of the conversation, where the recipe names it."""
        return {"messages": self.messages} if self.messages else {}

    @property
    def input_columns(self) -> list[str]:
        """The column of the conversation, as it is read."""
        return ["messages"]


class DpoSettings(TaskSettings):
    """Which of two answers is preferred."""

    shape: ClassVar[Literal["preference"]] = "preference"

    kind: Agreed[Literal["dpo"]] = Field("dpo", description="which of two answers is preferred: DPO")
    prompt: Agreed[str | None] = Field(
        None,
        description="the column of what is answered; empty: found by looking at the columns, or what both answers' "
        "conversations begin with",
    )
    chosen: Agreed[str] = Field("chosen", min_length=1, description="the column of the preferred answer")
    rejected: Agreed[str] = Field("rejected", min_length=1, description="the column of the other answer")
    beta: Agreed[float] = Field(
        0.1, gt=0, description="how much the model may leave its base for a preference: higher, less"
    )
    max_length: Agreed[int] = Field(512, gt=0, description="tokens kept of a prompt with an answer")

    @property
    def given_columns(self) -> dict[str, str]:
        """The columns of the answers and, where the recipe names it, of what is answered."""
        return {"chosen": self.chosen, "rejected": self.rejected} | ({"prompt": self.prompt} if self.prompt else {})

    @property
    def input_columns(self) -> list[str]:
        """The columns of prompt and answers, as they are read."""
        return ["prompt", "chosen", "rejected"]


class MultipleChoiceSettings(TaskSettings):
    """The one of several choices that the model finds most likely."""

    kind: Agreed[Literal["multiple_choice"]] = Field("multiple_choice", description="the most likely of some choices")
    prompt: Agreed[Prompt]
    answer: Agreed[Template] = Field(
        min_length=1,
        description="the column with the right choice: its number, its letter, its text, or true and false",
    )
    chat: Agreed[Chat] = False
    labels: Agreed[Labels | None] = Field(None, description="the choices, if every row has the same ones")
    choices: Agreed[list[str] | None] = Field(
        None, description="one column for each choice, or one column with a list (or with text and label, as in ARC)"
    )
    choice_template: Agreed[Template] = Field(" {choice}", description="the text of a choice after the prompt")
    first_choice: Agreed[int] = Field(
        0, ge=0, le=1, description="the number of the first choice, if the answer is a number"
    )

    @model_validator(mode="after")
    def _has_choices(self) -> MultipleChoiceSettings:
        if (self.choices is None) == (self.labels is None):
            raise ValueError(
                "kind = 'multiple_choice' needs either `choices`, the columns, or `labels`, the same choices for all"
            )
        return self

    @property
    def input_columns(self) -> list[str]:
        """The columns that prompt and template of a choice name, and those of the choices."""
        named = [name for name in fields_of(self.choice_template) if name != "choice"]
        return list(dict.fromkeys([*fields_of(self.prompt), *(self.choices or ()), *named]))

    @property
    def columns(self) -> list[str]:
        """The columns of the prompt, of the choices and of the right one."""
        return list(dict.fromkeys([*self.input_columns, self.answer]))

    @property
    def number_columns(self) -> set[str]:
        """The column that tells the right choice."""
        return {self.answer}


class OwnTaskSettings(TaskSettings):
    """A task of the user's own, which may use any setting that another kind has."""

    is_own: ClassVar[bool] = True

    kind: Agreed[str] = Field(pattern=":", description="a task of your own; it may use every setting below")
    text_columns: Agreed[Texts] = Field(["text"])
    labels: Agreed[Labels | None] = None
    prompt: Agreed[Template | None] = None
    answer: Agreed[Template | None] = None
    chat: Agreed[bool] = False
    choices: Agreed[list[str] | None] = None
    choice_template: Agreed[Template] = " {choice}"
    first_choice: Agreed[int] = Field(0, ge=0, le=1)
    metric: Agreed[_Metric] = "log_likelihood"
    extract: Agreed[_Extract] = "none"
    max_new_tokens: Agreed[int] = Field(64, gt=0)
    doc_stride: Agreed[int] = Field(128, gt=0)
    max_answer_length: Agreed[int] = Field(30, gt=0)
    image_size: Agreed[int | None] = Field(None, gt=0)
    messages: Agreed[str | None] = None
    chosen: Agreed[str] = "chosen"
    rejected: Agreed[str] = "rejected"
    beta: Agreed[float] = Field(0.1, gt=0)
    options: Agreed[dict[str, Any]] = Field({}, description="settings of that task alone")

    @property
    def input_columns(self) -> list[str]:
        """The columns of texts."""
        return self.text_columns

    @property
    def columns(self) -> list[str]:
        """The columns of texts and of the answer."""
        return [*self.text_columns, *([self.answer] if self.answer else [])]

    @property
    def number_columns(self) -> set[str]:
        """The column of the answer."""
        return {self.answer} if self.answer else set()

    @property
    def class_names(self) -> list[str] | None:
        """The labels."""
        return self.labels

    @property
    def image_side(self) -> int | None:
        """Pixels of an image's side."""
        return self.image_size


AnyTaskSettings = Annotated[
    ClassificationSettings
    | ImageClassificationSettings
    | TokenClassificationSettings
    | QuestionAnsweringSettings
    | RegressionSettings
    | GenerationSettings
    | LanguageModelingSettings
    | ChatSettings
    | DpoSettings
    | MultipleChoiceSettings
    | OwnTaskSettings,
    ByKind(
        "kind",
        default="classification",
        about="How a row becomes a batch, a loss and a metric.",
        passes_over_defaults=True,
    ),
]

task_settings: Callable[[Any], AnyTaskSettings] = reader(AnyTaskSettings)
"""The section that raw data describes: of the kind that ``kind`` names, or of a classification."""
