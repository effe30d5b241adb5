"""The recipe: a federation as pure data.

Every field has a type, a range and a default; a recipe with mistakes is refused with all of them at once.
``auto`` values are chosen once, when a run starts, and written to the run's resolved recipe.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedsa.errors import ConfigError, Mistake, UserError, near
from fedsa.system.paths import local_path
from fedsa.texts.words import brief, cut

__all__ = [
    "DEFAULT_ADAPTATION_EPOCHS",
    "DEFAULT_LOCAL_STEPS",
    "OBJECTS",
    "SERVER_DEFAULTS",
    "AdaptationSettings",
    "AdapterSettings",
    "Check",
    "ComputeSettings",
    "DataSettings",
    "EvaluationSettings",
    "ModelSettings",
    "PartitionSettings",
    "Recipe",
    "ReconstructionSettings",
    "ServerSettings",
    "Start",
    "TaskSettings",
    "TrainingSettings",
    "apply_overrides",
    "dump_recipe",
    "fields_of",
    "find_toml",
    "mistakes_of",
    "parse_recipe",
    "parse_toml",
    "read_recipe",
    "read_toml",
    "recipe_names",
    "refuse_objects",
    "with_absolute_paths",
]

OBJECTS = "objects:"
"""Stands for a path in the recipe of a federation that was made from Python objects."""

DEFAULT_LOCAL_STEPS = 10
"""Optimiser steps a round, where a recipe gives neither local_steps nor local_epochs."""

DEFAULT_ADAPTATION_EPOCHS = 5
"""Passes over a newcomer's rows, where a recipe gives neither adaptation.steps nor adaptation.epochs."""

Start = Literal["initial", "mean", "nearest"]
"""Where a newcomer's personal tensors begin."""

Check = Callable[[Mapping[str, Any]], Iterable[Mistake]]
"""A further check of a recipe's raw data, for what only a higher layer knows (the algorithms, say)."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSettings(_Settings):
    """The base model. It is loaded once, and never changed."""

    path: str = Field(description="hub name, local folder, or part:NAME for a packaged part")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="attention kernel; empty: eager or sdpa, whichever trains faster here"
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="frozen linear layers in 4 or 8 bits as in QLoRA (extra bnb); for lora, rslora and dora; empty: in "
        "compute.precision",
    )
    config: dict[str, Any] | None = Field(
        None,
        description="architecture in transformers' words (model_type, hidden_size, ...): `fedsa plan` then needs no "
        "download; weights of other sizes are refused",
    )

    @field_validator("config")
    @classmethod
    def _names_a_model_type(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        if config is None:
            return None
        if not isinstance(config.get("model_type"), str):
            raise ValueError("needs model_type, the architecture's name in transformers, e.g. 'roberta'")
        try:
            tomli_w.dumps(config)
        except TypeError as error:
            raise ValueError(f"must hold what TOML can write: {error}") from None
        return config


_UNUSED: dict[str, dict[str, str]] = {
    "vera": {"lora_alpha": "scale"},
    "loha": {"dropout": "dropout"},
    "ia3": {"r": "rank", "lora_alpha": "scale", "dropout": "dropout"},
}
"""Settings of the adapter that a variant does not have, and what they would be."""


class AdapterSettings(_Settings):
    """The adapter that is trained on the base model, in PEFT's own words."""

    variant: Literal["lora", "rslora", "vera", "dora", "pissa", "olora", "loha", "ia3", "lora_xs"] = Field(
        "lora", description="adapter variant"
    )
    r: int = Field(0, ge=0, description="rank; 0: 8, and 256 for vera; ia3 has none")
    ranks: dict[str, int] | list[int] | None = Field(
        None, description="clients' own ranks, up to r: by client id (others r), or a list that is dealt in turn"
    )
    own_initial_a: bool = Field(
        False,
        description="every client draws an initial A of its own, where A stays at the client (local, alora); false: "
        "all start from one A",
    )
    lora_alpha: int = Field(16, gt=0, description="LoRA scale: lora_alpha/r, or lora_alpha/sqrt(r) for rslora")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout in front of the adapter; loha and ia3 have none")
    target_modules: list[str] | str | None = Field(
        None, description="layers to adapt: name endings, or a regular expression; empty: PEFT's choice for the model"
    )
    feedforward_modules: list[str] | str | None = Field(
        None,
        description="ia3: those of target_modules whose input is scaled, not their output; empty: none, or PEFT's "
        "choice where target_modules is too",
    )
    modules_to_save: list[str] | None = Field(
        None, description="layers trained in full and kept with the adapter; empty: the classification head"
    )

    @model_validator(mode="after")
    def _is_used(self) -> AdapterSettings:
        problems = []
        for name, reason in _UNUSED.get(self.variant, {}).items():
            default = type(self).model_fields[name].default  # written out in a resolved recipe
            if getattr(self, name) not in (default, 0):
                problems.append(f"{name} does not go with variant = {self.variant!r}, which has no {reason}: remove it")
        if self.feedforward_modules is not None and self.variant != "ia3":
            problems.append(f"feedforward_modules goes with variant = 'ia3' only, not with {self.variant!r}")
        elif self.feedforward_modules is not None and self.target_modules is None:
            problems.append("feedforward_modules needs target_modules, of which they are some")
        elif isinstance(self.feedforward_modules, list) and isinstance(self.target_modules, list):
            missing = sorted(set(self.feedforward_modules) - set(self.target_modules))
            if missing:
                problems.append(f"feedforward_modules: {missing[0]!r} is not in target_modules; add it there too")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> AdapterSettings:
        ranks = list(self.ranks.values()) if isinstance(self.ranks, dict) else self.ranks
        if ranks is None:
            return self
        if self.variant in ("pissa", "olora"):
            raise ValueError(
                f"ranks does not go with variant = {self.variant!r}: the frozen weights lack what the whole rank holds"
            )
        if not ranks or min(ranks) < 1 or (self.rank and max(ranks) > self.rank):
            raise ValueError(f"ranks must be from 1 to r = {self.rank} (got {self.ranks})")
        return self

    @property
    def rank(self) -> int:
        """The rank after the variant's default; 0: the variant has none."""
        return self.r or {"vera": 256, "ia3": 0}.get(self.variant, 8)


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


class TaskSettings(_Settings):
    """How a row becomes a batch, a loss and a metric."""

    kind: str = Field(
        "classification",
        description="classification, image_classification, token_classification, question_answering, regression, "
        "generation, language_modeling, multiple_choice, or package.module:Class",
    )
    text_columns: list[str] = Field(
        ["text"],
        min_length=1,
        max_length=2,
        description="one column, or two for pairs; image_classification: the column of the image, image by default; "
        "token_classification: the column of the list of words; question_answering: question and context, the default",
    )
    label_column: str | None = Field(
        None,
        description="the column of the class; empty: label. For tasks without classes: a column whose values are "
        "shared out as classes are, or empty",
    )
    labels: list[str] | None = Field(
        None,
        description="class names in order of their number; empty: found in the data. multiple_choice: the choices, "
        "where every row has the same; token_classification: O, B-KIND and I-KIND of each kind",
    )
    prompt: str | None = Field(None, description="what the model is given; {column} stands for a row's value")
    answer: str | None = Field(
        None,
        description="generation: what it is to say, with {column}; multiple_choice: the column that tells the right "
        "choice (its number, its letter, its text, or true and false); regression: the column of the number; "
        "token_classification: the column of the list of tags; question_answering: the column with the lists text and "
        "answer_start, answers by default",
    )
    chat: bool = Field(False, description="prompt and answer are a turn each in the tokenizer's chat template")
    choices: list[str] | None = Field(
        None, description="columns with a choice each, or one column with a list (or with text and label, as in ARC)"
    )
    choice_template: str = Field(" {choice}", description="a choice as the model would say it")
    first_choice: int = Field(0, ge=0, le=1, description="the number of the first choice, where the answer is a number")
    metric: Literal["log_likelihood", "exact_match", "f1"] = Field(
        "log_likelihood",
        description="log_likelihood: of the answer's tokens (mean, nats); exact_match, f1: of what the model writes, "
        "against the answer, normalised as for SQuAD",
    )
    extract: Literal["none", "gsm8k_strict", "gsm8k_flexible"] = Field(
        "none", description="what of a text is compared: all; the number behind ####; the last number"
    )
    max_new_tokens: int = Field(64, gt=0, description="tokens that the model writes at most on a prompt")
    max_length: int = Field(
        128,
        gt=0,
        description="tokens kept of one example; not for images; question_answering: of a window, 384 by default",
    )
    doc_stride: int = Field(
        128,
        gt=0,
        description="question_answering: tokens that neighbouring windows share, a third of a window's at most",
    )
    max_answer_length: int = Field(30, gt=0, description="question_answering: tokens of a predicted answer at most")
    image_size: int | None = Field(
        None, gt=0, description="pixels of an image's side; empty: what the base model's image processor says"
    )
    options: dict[str, Any] = Field({}, description="of a task of your own")

    @model_validator(mode="before")
    @classmethod
    def _has_own_defaults(cls, data: Any) -> Any:
        kind = data.get("kind", "classification") if isinstance(data, Mapping) else None
        return {**_OWN_DEFAULTS[kind], **data} if isinstance(kind, str) and kind in _OWN_DEFAULTS else data

    @field_validator("labels")
    @classmethod
    def _are_classes(cls, labels: list[str] | None) -> list[str] | None:
        twice = _repeated(labels or ())
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


class PartitionSettings(_Settings):
    """How rows are split over clients, and each client's rows into train, validation and test."""

    kind: Literal["column", "files", "iid", "dirichlet", "client_dirichlet", "shards", "size", "saved"] = Field(
        "iid",
        description="column: natural clients; files: one file or folder each; iid; dirichlet: label skew, each label's "
        "shares over clients drawn; client_dirichlet: label skew, each client's label mix drawn, equal sizes; shards: "
        "few labels each; size: uneven sizes, equal label mix; saved: a partition file",
    )
    clients: int | dict[str, int] | None = Field(
        None, description="number of clients; with `within`, per value (one number for all, or a table)"
    )
    column: str | None = Field(None, description="kind = column: the column that names the client")
    within: str | None = Field(None, description="split inside each value of this column separately")
    label_column: str | None = Field(
        None, description="the column whose values are shared out as labels (superclasses, say); empty: the task's"
    )
    group: str | None = Field(None, description="rows with one value here stay in one client and one split")
    dirichlet_alpha: float = Field(
        0.5, gt=0, description="concentration of the label mix (or of sizes): lower is more uneven"
    )
    shards_per_client: int = Field(2, gt=0, description="kind = shards: label-sorted shards per client")
    file: str | None = Field(None, description="kind = saved: a file that `fedsa data --save` wrote")
    validation_fraction: float = Field(0.15, gt=0, lt=1, description="of a client's rows, unless data.validation_split")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="of a client's rows, unless data.test_split")
    min_examples: int = Field(10, ge=3, description="fewest rows a client may have, all splits together")
    max_examples: int | None = Field(None, ge=3, description="most rows a client keeps, all splits together")
    leave_out_small: bool = Field(
        False, description="go on without clients that have fewer rows than min_examples, or too few for their splits"
    )
    leave_out_unreadable: bool = Field(
        False, description="kind = files: go on without clients whose file is empty, foreign or cannot be read"
    )

    @model_validator(mode="after")
    def _complete(self) -> PartitionSettings:
        problems = []
        if self.kind == "column" and not self.column:
            problems.append("kind = 'column' needs `column`, the column that names the client")
        if self.kind == "saved" and not self.file:
            problems.append("kind = 'saved' needs `file`, written by `fedsa data RECIPE --save FILE`")
        if self.kind in ("iid", "dirichlet", "client_dirichlet", "shards", "size"):
            if self.clients is None:
                problems.append(f"kind = {self.kind!r} needs `clients`, their number")
            elif isinstance(self.clients, dict) and not self.within:
                problems.append("`clients` as a table needs `within`, the column its names are values of")
            counts = self.clients.values() if isinstance(self.clients, dict) else [self.clients or 1]
            if any(count < 1 for count in counts):
                problems.append("`clients` must be at least 1")
        else:
            made_only = ("within", self.within), ("clients", self.clients), ("label_column", self.label_column)
            for key, value in made_only:
                if value is not None:
                    problems.append(f"`{key}` does not go with kind = {self.kind!r}")
        if self.column and self.kind != "column":
            problems.append(f"`column` goes with kind = 'column' only, not with {self.kind!r}")
        if self.file and self.kind != "saved":
            problems.append(f"`file` goes with kind = 'saved' only, not with {self.kind!r}")
        if self.leave_out_unreadable and self.kind != "files":
            problems.append(f"`leave_out_unreadable` goes with kind = 'files' only, not with {self.kind!r}")
        if self.max_examples is not None and self.max_examples < self.min_examples:
            problems.append(
                f"max_examples = {self.max_examples} is below min_examples = {self.min_examples}: no client would do"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            problems.append("validation_fraction + test_fraction must leave rows to train on (sum below 1)")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class DataSettings(_Settings):
    """Where the rows are."""

    path: str = Field(description="hub name, local folder or file (CSV, JSONL, Parquet, Excel), or part:NAME")
    name: str | None = Field(None, description="the hub data set's configuration")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    split: str = Field("train", description="the split whose rows are shared out")
    validation_split: str | None = Field(
        None, description="a split of its own for validation, shared out with the same label mix"
    )
    test_split: str | None = Field(None, description="a split of its own for test, shared out with the same label mix")
    separator: str | None = Field(
        None, description="CSV and TSV: the character between cells, or tab; empty: found by looking, and said"
    )
    encoding: str | None = Field(
        None, description="of text files, say cp1252 or utf-16; empty: UTF-8, or else found by looking, and said"
    )
    drop_empty: bool = Field(
        False, description="go on without rows that have an empty cell in a column that is read; they are counted"
    )
    partition: PartitionSettings

    @field_validator("separator")
    @classmethod
    def _is_one_character(cls, separator: str | None) -> str | None:
        separator = "\t" if separator in ("tab", "\\t") else separator
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise ValueError(
                f"must be one character, as ; or tab, and no quotation mark or line end (got {separator!r})"
            )
        return separator

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                "".encode(encoding)  # of codecs, it takes those of texts alone
            except (LookupError, ValueError):
                raise ValueError(
                    f"no encoding of texts has the name {encoding[:40]!r}; say utf-8, utf-16 or cp1252"
                ) from None
        return encoding

    @model_validator(mode="after")
    def _no_split_twice(self) -> DataSettings:
        twice = _repeated([name for name in (self.split, self.validation_split, self.test_split) if name])
        if twice:
            raise ValueError(
                f"split, validation_split and test_split share rows: {twice[0]!r} is named twice; leave "
                "validation_split or test_split out to cut that part from each client's rows"
            )
        return self


class TrainingSettings(_Settings):
    """A client's local training in one round."""

    local_steps: int | None = Field(
        None, gt=0, description=f"optimiser steps per round; {DEFAULT_LOCAL_STEPS} if local_epochs is not given"
    )
    local_epochs: int | None = Field(None, gt=0, description="passes over the client's rows per round")
    batch_size: int = Field(16, gt=0, description="rows per optimiser step and accumulation step")
    gradient_accumulation_steps: int = Field(1, gt=0, description="batches per optimiser step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate")
    head_learning_rate: float | None = Field(None, gt=0, description="peak rate of the head; empty: learning_rate")
    head_warmup_epochs: int = Field(
        0,
        ge=0,
        description="passes over a client's rows, before its first training, in which its head alone is fitted to what "
        "the frozen model makes of them; one pass through the model",
    )
    head_warmup_learning_rate: float = Field(1e-2, gt=0, description="of the warm-up, AdamW's whatever the optimizer")
    b_learning_rate_ratio: float = Field(
        1.0, gt=0, description="LoRA+: peak rate of the B side over learning_rate, which the A side keeps"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 for sgd")
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd only")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="over the whole run, not one round"
    )
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="part of the whole run with a rising rate")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm; 'none' in a recipe: off")
    proximal_mu: float = Field(0.0, ge=0, description="FedProx: μ/2·‖w − w_received‖² on what the server sent")
    optimizer_state: Literal["reset", "keep"] = Field("reset", description="at a client, from round to round")
    group_by_length: bool = Field(
        False, description="batches of rows of like length: less padding, but rows no longer meet at random"
    )
    trainer: Literal["auto", "sequential", "cohort"] = Field(
        "auto", description="cohort: many clients in one pass, equal within rounding; auto: where the adapter allows it"
    )
    cohort_size: int = Field(0, ge=0, description="clients in one pass; 0: by compute.memory_budget and speed")
    packing: bool | None = Field(
        None, description="cohort: several texts in one row instead of padding; empty: where the model allows it"
    )

    @field_validator("max_grad_norm", mode="before")
    @classmethod
    def _none_turns_clipping_off(cls, value: Any) -> Any:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if self.local_steps and self.local_epochs:
            raise ValueError("give local_steps or local_epochs, not both")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum goes with optimizer = 'sgd' only")
        if self.trainer == "sequential" and (self.cohort_size or self.packing):
            raise ValueError("cohort_size and packing do not go with trainer = 'sequential'")
        return self


SERVER_DEFAULTS: dict[str, dict[str, float]] = {
    "none": {},
    "fedavgm": {"learning_rate": 1.0, "momentum": 0.9},
    "fedadam": {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedyogi": {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
}
"""The server optimisers, and the settings that go with each, with their defaults."""


class ServerSettings(_Settings):
    """What the server makes of a round's mean: it can take it as a gradient of its own."""

    optimizer: Literal["none", "fedavgm", "fedadam", "fedyogi"] = Field(
        "none",
        description="none: the mean is the new value; fedavgm: momentum; fedadam, fedyogi: adaptive steps. For methods "
        "whose tensors are averaged in place",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="of the server; empty: 1 for fedavgm, 0.01 for the others (their paper tunes it)"
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="fedavgm only; empty: 0.9")
    beta1: float | None = Field(None, ge=0, lt=1, description="of the first moment, fedadam and fedyogi; empty: 0.9")
    beta2: float | None = Field(None, ge=0, lt=1, description="of the second moment, fedadam and fedyogi; empty: 0.99")
    tau: float | None = Field(
        None, gt=0, description="added to the root of the second moment, fedadam and fedyogi; empty: 0.001"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("optimizer"), str):
            return data
        return {**SERVER_DEFAULTS.get(data["optimizer"], {}), **data}

    @model_validator(mode="after")
    def _keys_go_with_the_optimizer(self) -> ServerSettings:
        own = SERVER_DEFAULTS[self.optimizer]
        wrong = [name for name, value in self if name != "optimizer" and value is not None and name not in own]
        if wrong:
            goes = f"it takes {', '.join(own)}" if own else f"choose {', '.join(list(SERVER_DEFAULTS)[1:])}"
            raise ValueError(f"{', '.join(wrong)}: not a setting of optimizer = {self.optimizer!r}; {goes}")
        return self


class EvaluationSettings(_Settings):
    """When and how clients are evaluated, each on its own rows."""

    evaluate_every: int = Field(1, gt=0, description="rounds between evaluations on validation; the last is always one")
    fraction_evaluate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the clients that is evaluated on validation in a round, drawn anew each time; test at the "
        "end is of all",
    )
    evaluate_after: Literal["aggregate", "training", "both"] = Field(
        "aggregate",
        description="aggregate: with what the client would use next; training: its own model after local training; "
        "both: the round is chosen by the first",
    )
    batch_size: int = Field(64, gt=0, description="rows per forward pass")
    samples: int = Field(
        3,
        ge=0,
        le=100,
        description="kinds generation and language_modeling: test rows that are kept in the run folder and shown in "
        "the report, each with what the model of the chosen round writes on its prompt or its beginning and what is "
        "right there; 0: no row's text is kept",
    )
    global_model: Literal["none", "average", "fit"] = Field(
        "none",
        description="one model for all at the end, measured beside the clients' own. average: of their personal "
        "tensors; fit: one B fitted to the mean of their B·A. Needs adaptation.share_personal",
    )


class ReconstructionSettings(_Settings):
    """How a client that keeps nothing between rounds makes its personal tensors anew (FedRecon, arXiv:2102.03448)."""

    steps: int = Field(10, gt=0, description="optimiser steps on the personal tensors, the shared ones frozen")
    learning_rate: float | None = Field(
        None, gt=0, description="constant rate of these steps; empty: training.learning_rate"
    )
    freeze_personal: bool = Field(
        True, description="in the round's training that follows, only what is shared is trained, as in the paper"
    )


class AdaptationSettings(_Settings):
    """How a client that was not in the federation comes to an adapter of its own."""

    steps: int | None = Field(
        None, gt=0, description=f"optimiser steps; empty: epochs, {DEFAULT_ADAPTATION_EPOCHS} unless given"
    )
    epochs: int | None = Field(None, gt=0, description="passes over the client's training rows")
    freeze_shared: bool = Field(False, description="train the personal tensors only")
    start: Start = Field(
        "initial",
        description="of the personal tensors. initial: as every client began; mean: of the federation's clients; "
        "nearest: the mean of that cluster of them with the lowest loss on the newcomer's training rows",
    )
    share_personal: bool = Field(
        False,
        description="the clients let their personal tensors be put together: these then leave the client. Needed for "
        "start = mean and nearest, and for evaluation.global_model",
    )
    clusters: int = Field(0, ge=0, description="start = nearest: of the clients; 0: the square root of their number")

    @property
    def length(self) -> dict[str, int]:
        """``steps`` or ``epochs``, after the default."""
        return {"steps": self.steps} if self.steps else {"epochs": self.epochs or DEFAULT_ADAPTATION_EPOCHS}

    @model_validator(mode="after")
    def _is_allowed(self) -> AdaptationSettings:
        if self.steps and self.epochs:
            raise ValueError("give steps or epochs, not both")
        if self.start != "initial" and not self.share_personal:
            raise ValueError(
                f"start = {self.start!r} puts clients' personal tensors together, which then leave the client: "
                "set share_personal = true if they agree, or start = 'initial'"
            )
        return self


class ComputeSettings(_Settings):
    """What the run computes on. ``auto`` is resolved once and written to the resolved recipe."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: int = Field(0, ge=0, le=1024, description="processor threads; 0: all cores")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of frozen weights, forward and backward; auto: bf16 where the hardware has it"
    )
    memory_budget: float | None = Field(
        None, gt=0, description="GiB that a cohort's training may take; empty: half of what is free at the start"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, about a third more time"
    )
    compile: bool = Field(False, description="torch.compile the layers: pays for long runs only")


class Recipe(_Settings):
    """A whole federation."""

    description: str = Field("", description="one line for `fedsa recipes`")
    algorithm: str = Field("fedsa", description="a name from `fedsa algorithms`, or package.module:Class")
    algorithm_options: dict[str, Any] = Field({}, description="the algorithm's own options")
    share_head: bool | None = Field(None, description="send and average the head too; empty: as in the method's paper")
    weighting: Literal["num_examples", "uniform"] = Field("num_examples", description="clients' weights in the average")
    rounds: int = Field(gt=0, description="communication rounds")
    fraction_train: float = Field(1.0, gt=0, le=1, description="part of the clients that trains in a round")
    personal_state: Literal["store", "reconstruct"] = Field(
        "store",
        description="what is trained and not received. store: a client keeps it from round to round; reconstruct: a "
        "client keeps nothing, and fits it anew from its rows whenever it is needed",
    )
    holdout_clients: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="part of the clients that is never in the federation; at the end each is taken to an own adapter "
        "as [adaptation] says",
    )
    wire_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="in what shared tensors travel, both ways; bf16: half the bytes; what stays is fp32"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of everything random")
    keep_rounds: Literal["needed", "all"] = Field(
        "needed",
        description="rounds whose tensors stay in the run folder: those that are needed, or all",
    )
    callbacks: list[str] = Field([], description="progress listeners, e.g. tensorboard")
    model: ModelSettings
    adapter: AdapterSettings = AdapterSettings()
    task: TaskSettings = Field(default_factory=TaskSettings)
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    server: ServerSettings = ServerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="after")
    def _personal_tensors(self) -> Recipe:
        problems = []
        if self.personal_state == "reconstruct":
            name = "personal_state = 'reconstruct'"
            if self.training.optimizer_state == "keep":
                problems.append(f"{name}: a client keeps nothing, so training.optimizer_state must be 'reset'")
            if self.evaluation.evaluate_after != "aggregate":
                problems.append(
                    f"{name}: after a round a client has nothing of its own to be measured, so "
                    "evaluation.evaluate_after must be 'aggregate'"
                )
        if self.evaluation.global_model != "none" and not self.adaptation.share_personal:
            problems.append(
                f"evaluation.global_model = {self.evaluation.global_model!r} puts clients' personal tensors together, "
                "which then leave the client: set adaptation.share_personal = true if they agree"
            )
        if self.adapter.own_initial_a and self.adaptation.share_personal:
            problems.append(
                "adaptation.share_personal puts clients' A's together, which with adapter.own_initial_a start apart: "
                "their mean says nothing: leave one of the two out"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def recipe_names() -> dict[str, str]:
    """Return the recipes that come with fedsa: name to TOML text, sorted by name."""
    folder = resources.files("fedsa.recipes")
    texts = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    return {name: texts[name].read_text(encoding="utf-8") for name in sorted(texts)}


def read_recipe(recipe: str) -> tuple[dict[str, Any], str]:
    """Return a recipe's raw data and its short name.

    Args:
        recipe: a path to a TOML file, or the name of a recipe that comes with fedsa.

    Raises:
        UserError: there is no such file or recipe, or it is not TOML.
    """
    return find_toml(recipe, "recipe", recipe_names())


def find_toml(given: str, what: str, known: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return what a file of the user's or one that comes with fedsa holds, and its short name.

    Args:
        given: a path to a TOML file, or a name.
        what: what it is to be, for messages: ``recipe``.
        known: the texts of those that come with fedsa, by name.

    Raises:
        UserError: there is no such file or name, or it cannot be read, or it is no TOML.
    """
    path = local_path(given, what)
    is_toml, is_there = path.suffix == ".toml", path.exists()
    if not is_toml and given in known and not path.is_file():
        return parse_toml(known[given], f"{what} {given}"), given
    if not is_there and is_toml:
        raise UserError(f"no {what} file {cut(given, 200)}; known {what}s: {', '.join(known)}")
    if not is_there:
        raise UserError(f"no {what} {cut(given, 200)!r}: {near(given, known)} (a file of your own ends in .toml)")
    return read_toml(path, what), path.stem


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return what a TOML file holds.

    Args:
        path: the file.
        what: what it is to be, for messages: ``recipe``.

    Raises:
        UserError: it cannot be read, or is no text in UTF-8, or no TOML.
    """
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"), str(path))
    except IsADirectoryError:
        raise UserError(f"cannot read {what} {path}: it is a folder; give the TOML file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read {what} {path}: it is not text in UTF-8 (byte {error.start} is "
            f"{error.object[error.start]:#x}); give a TOML file, saved as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from None


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return what a TOML text holds.

    Args:
        text: of any origin.
        source: named in the error.

    Raises:
        UserError: it is no TOML, or nested deeper than any settings.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        data = None
    except ValueError as error:  # of TOML's grammar, or a number of thousands of digits
        raise UserError(f"{source} is not valid TOML: {cut(str(error), 300)}") from None
    if data is None or _is_deep(data):
        raise UserError(f"{source} has lists or tables within each other more than {_LEVELS} deep: take some out")
    return data


_LEVELS = 32
"""Of tables and lists within each other. Python's own limit ends a deeper look in a RecursionError."""


_LARGEST = 3e38
"""Of a number that torch takes for tensors of fp32, as a learning rate say."""


def _is_deep(data: Any) -> bool:
    return any(not mistake.where for mistake in _unwritable(data))


def _unwritable(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what no settings can hold: depth, whole numbers of more than 64 bits, and others that fp32 has not."""
    level: list[tuple[tuple[str, ...], Any]] = [((), data)]
    for _ in range(_LEVELS):
        inner = []
        for place, value in level:
            if isinstance(value, int) and value.bit_length() > 63:
                yield Mistake(".".join(map(_key, place)), f"{brief(value)} is too large, use a number below 2^63")
            elif isinstance(value, float) and _LARGEST < abs(value) < float("inf"):
                yield Mistake(".".join(map(_key, place)), f"{value:g} is too large, use a number below {_LARGEST:g}")
            elif isinstance(value, Mapping):
                inner += [((*place, str(key)), each) for key, each in value.items()]
            elif isinstance(value, list | tuple):
                inner += [(place, each) for each in value]
        level = inner
    if level:
        yield Mistake("", f"lists or tables lie within each other more than {_LEVELS} deep: take some out")


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a recipe's raw data with ``key=value`` settings put in.

    Args:
        data: raw recipe data.
        overrides: each ``dotted.key=value``; the value is read as TOML, and as plain text where it is not TOML.

    Raises:
        UserError: an override has no ``=``, or goes below a key that is not a table.

    >>> apply_overrides({"data": {"path": "x"}}, ["rounds=3", "data.path=dir/y", "fruit=[1, 2]"])
    {'data': {'path': 'dir/y'}, 'rounds': 3, 'fruit': [1, 2]}
    """
    result = _copy(data)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        given = f"--set {cut(override, 200)}"
        if not equals or not dotted.strip():
            raise UserError(f"{given}: expected key=value, e.g. --set rounds=3 or --set training.batch_size=8")
        *parents, last = dotted.strip().split(".")
        if len(parents) >= _LEVELS:
            raise UserError(f"{given}: a key has {_LEVELS} parts at most")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise UserError(f"{given}: {cut(parent, 80)} is not a table of settings")
        table[last] = _value(text.strip(), given)
    return result


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with local paths made absolute, so that its run can be resumed from any folder.

    A path counts as local where it exists; relative ones are taken from the current folder. What stands for Python
    objects is no path.

    Raises:
        UserError: a path is none that a file can have.
    """
    partition = recipe.data.partition
    file = str(local_path(partition.file, "data.partition.file").absolute()) if partition.file else None
    path = _absolute(recipe.data.path, "data.path")
    data = {"path": path, "partition": partition.model_copy(update={"file": file})}
    model = recipe.model.model_copy(update={"path": _absolute(recipe.model.path, "model.path")})
    return recipe.model_copy(update={"model": model, "data": recipe.data.model_copy(update=data)})


def _absolute(path: str, setting: str) -> str:
    if path == OBJECTS:
        return path
    place = local_path(path, setting)
    return str(place.absolute()) if place.exists() else path


def refuse_objects(recipe: Recipe, where: object) -> None:
    """Refuse a recipe whose model or data were Python objects: it alone does not say what they are.

    Args:
        recipe: any.
        where: what the user gave, for the message: a recipe or a run folder.

    Raises:
        UserError: the model or the data are objects.
    """
    if OBJECTS in (recipe.data.path, recipe.model.path):
        raise UserError(
            f"{where} was started from Python objects, which the command line does not have: make the federation "
            "again with Federation.from_objects, and start it with fedsa.run(federation, folder) or continue it with "
            "fedsa.resume(federation, folder)"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _value(text: str, given: str) -> Any:
    try:
        data = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError):  # nested deep, or a number of thousands of digits: refused as in a file
        data = parse_toml(f"value = {text}", given)
    return data["value"] if data.keys() == {"value"} else text


def parse_recipe(data: Mapping[str, Any], *, source: str = "recipe", checks: Sequence[Check] = ()) -> Recipe:
    """Return the recipe that raw data describes.

    Args:
        data: raw recipe data, as read from TOML.
        source: named in the error.
        checks: further checks; their mistakes are listed with the others.

    Raises:
        ConfigError: with every mistake found.
    """
    mistakes: list[Mistake] = []
    recipe = None
    unwritable = list(_unwritable(data))
    if unwritable:
        raise ConfigError(unwritable, source)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        mistakes = mistakes_of(error, Recipe)
    else:
        mistakes = _contradictions(recipe)
    for check in checks:
        mistakes.extend(check(data))
    if mistakes or recipe is None:
        raise ConfigError(mistakes, source)
    return recipe


def _contradictions(recipe: Recipe) -> list[Mistake]:
    """Return the mistakes that only two sections together make."""
    variant = recipe.adapter.variant
    mistakes = []
    if variant in ("ia3", "lora_xs") and recipe.training.b_learning_rate_ratio != 1:
        mistakes.append(
            Mistake(
                "training.b_learning_rate_ratio",
                f"does not go with adapter.variant = {variant!r}, which has no A side and B side: remove it",
            )
        )
    if recipe.training.head_warmup_epochs and recipe.personal_state == "reconstruct":
        mistakes.append(
            Mistake(
                "training.head_warmup_epochs",
                "does not go with personal_state = 'reconstruct', which fits heads anew in every round: set it to 0",
            )
        )
    if recipe.model.quantization and variant not in ("lora", "rslora", "dora"):
        mistakes.append(
            Mistake(
                "model.quantization",
                f"does not go with adapter.variant = {variant!r}, which needs the weights in full: use lora, rslora or "
                "dora, or remove it",
            )
        )
    return mistakes


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML, with every default written out; reading it gives an equal recipe."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.training.max_grad_norm is None:
        data["training"]["max_grad_norm"] = "none"
    return tomli_w.dumps(data)


def mistakes_of(error: ValidationError, model: type[BaseModel]) -> list[Mistake]:
    """Return what pydantic found wrong with data for a model, in a user's words."""
    # A hint for each of a hundred thousand unknown keys takes a minute, and is not shown.
    return [_mistake(entry, model, hint=number < 100) for number, entry in enumerate(error.errors(include_url=False))]


def _mistake(entry: Mapping[str, Any], model: type[BaseModel], *, hint: bool) -> Mistake:
    location = [part for part in entry["loc"] if isinstance(part, str | int)]
    where = ".".join(_key(part) for part in location)
    match entry["type"]:
        case "extra_forbidden":
            known = _fields(location[:-1], model) if hint else []
            return Mistake(where, f"unknown key; {_near_key(str(location[-1]), known)}" if known else "unknown key")
        case "missing":
            return Mistake(where, "is missing; add it to the recipe" if model is Recipe else "is missing; add it")
        case "value_error":
            return Mistake(where, str(entry["ctx"]["error"]))
        case _:
            message = str(entry["msg"])
            return Mistake(where, f"{message[0].lower()}{message[1:]} (got {brief(entry['input'])})")


def _key(part: str | int) -> str:
    """Return a part of a key as TOML would have it."""
    return cut(part, 80) if isinstance(part, str) and part.replace("-", "_").isidentifier() else brief(part)


_OTHER_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "epochs": "rounds",
}
"""Names that other libraries have for a setting: nothing in their spelling leads from one to the other."""


def _near_key(name: str, known: Sequence[str]) -> str:
    other = _OTHER_NAMES.get(name)
    return f"did you mean {other!r}?" if other in known else near(name, known)


def _fields(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Return the names of the fields of the settings at a location in a model's data."""
    for part in location:
        if isinstance(part, int):  # the place in a list, whose entries' model was taken already
            continue
        annotation = model.model_fields[part].annotation
        annotation = next((of for of in (*get_args(annotation), annotation) if _is_model(of)), None)
        if annotation is None:
            return []
        model = annotation
    return list(model.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
