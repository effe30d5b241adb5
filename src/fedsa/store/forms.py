"""What must stand in the files of a run folder, so that what reads them need not fear anything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from fedsa.errors import RunFolderError
from fedsa.store.small_files import SmallFiles
from fedsa.texts.json_text import parsed_json

__all__ = ["CLIENTS_FORM", "ENVIRONMENT_FORM", "SAMPLES_FORM", "SUMMARY_FORM", "check_form", "lines_of"]


_Count: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]
"""A number of numbers, which no model has more of than fit into a float."""


class _Sent(BaseModel):
    """What must stand in a row of the summary's ``sharing_plan``."""

    model_config = ConfigDict(strict=True, extra="allow")
    factor: str
    trained: bool
    sent: bool
    parameters: _Count = 0
    parameters_that_leave: _Count = 0

    @model_validator(mode="after")
    def _no_more_leave_than_there_are(self) -> Self:
        if self.parameters_that_leave > self.parameters:
            raise ValueError("parameters_that_leave is more than parameters")
        return self


class _Statistics(BaseModel):
    """What must stand in a test of the summary."""

    model_config = ConfigDict(strict=True, extra="allow")
    weighted_mean: float
    mean: float
    worst: float
    std: float = 0.0
    untrained_clients: NonNegativeInt = 0
    untrained_mean: float | None = None


class _Summary(BaseModel):
    """What must stand in ``summary.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    algorithm: str
    rounds: NonNegativeInt
    metric: str = "accuracy"
    chosen_round: NonNegativeInt = 0
    test: _Statistics | None
    test_final: _Statistics | None
    per_client: dict[str, dict[str, Any]]
    train_seconds: float = 0.0
    total_upload_bytes: NonNegativeInt = 0
    total_download_bytes: NonNegativeInt = 0
    clients: NonNegativeInt = 0
    source: str = ""
    variant: str = ""
    evaluated_after: str = "aggregate"
    sharing_plan: list[_Sent] = []
    sharing_plan_of_all_rounds: list[_Sent] = []

    @field_validator("test", "test_final", mode="before")
    @classmethod
    def _or_nothing(cls, value: Any) -> Any:
        return None if value == {} else value

    @model_validator(mode="after")
    def _has_figures(self) -> Self:
        for client, entry in self.per_client.items():
            for name, figures in entry.items():
                value = figures.get(self.metric, 0.0) if isinstance(figures, dict) else 0.0
                if type(value) not in (int, float):
                    raise ValueError(f"per_client.{client:.40}.{name:.40}: {self.metric:.40} is no number")
        return self


class _Client(BaseModel):
    """What must stand in an entry of ``clients.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    folder: str
    train_examples: NonNegativeInt = 0
    validation_examples: NonNegativeInt = 0
    test_examples: NonNegativeInt = 0
    labels: dict[str, NonNegativeInt] = {}
    held_out: bool = False


class _Line(BaseModel):
    """What must stand in a line of ``metrics.jsonl``."""

    model_config = ConfigDict(strict=True, extra="allow")
    round: NonNegativeInt
    client: str
    train: dict[str, float] | None = None
    upload_bytes: NonNegativeInt = 0
    download_bytes: NonNegativeInt = 0

    @model_validator(mode="after")
    def _has_figures(self) -> Self:
        for name in ("validation", "validation_after_training"):
            figures = (self.model_extra or {}).get(name)
            if not figures:
                continue
            if not isinstance(figures, dict) or "examples" not in figures:
                raise ValueError(f"{name} has no number of examples")
            wrong = [each for each, value in figures.items() if each != "after" and type(value) not in (int, float)]
            if wrong:
                raise ValueError(f"{name}.{wrong[0]:.40} is no number")
        return self


class _Sample(BaseModel):
    """What must stand in an entry of ``samples.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    client: str
    prompt: str
    written: str
    right: list[str]


SUMMARY_FORM = TypeAdapter(_Summary)
CLIENTS_FORM = TypeAdapter(dict[str, _Client])
ENVIRONMENT_FORM = TypeAdapter(dict[str, Any])
SAMPLES_FORM = TypeAdapter(list[_Sample])
_LINE_FORM = TypeAdapter(_Line)


def lines_of(folder: SmallFiles, metrics: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of ``metrics.jsonl``.

    Args:
        folder: whose they are.
        metrics: the file's text.

    Raises:
        RunFolderError: a line is damaged.
    """
    for number, text in enumerate(metrics.splitlines(), start=1):
        name = f"metrics.jsonl, line {number}"
        try:
            line = parsed_json(text)
        except ValueError as error:
            raise _unreadable(folder, name, error) from None
        check_form(folder, name, _LINE_FORM, line)
        yield line


def check_form(folder: SmallFiles, name: str, form: TypeAdapter[Any], data: Any) -> None:
    """Refuse a file whose content has not the form that this version of fedsa writes.

    Args:
        folder: whose file it is.
        name: of the file.
        form: what must stand in it.
        data: what stands in it.

    Raises:
        RunFolderError: the first thing that is not as it must be.
    """
    try:
        form.validate_python(data)
    except (ValidationError, RecursionError) as error:
        raise _unreadable(folder, name, error) from None


def _unreadable(folder: SmallFiles, name: str, error: Exception) -> RunFolderError:
    if isinstance(error, ValidationError):
        first, *_ = error.errors(include_url=False, include_input=False)
        place = "".join(f"{str(part)[:40]}." for part in first["loc"]).removesuffix(".")
        what = f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
    else:
        what = str(error)
    return RunFolderError(
        f"{folder.path / name} has not the form that this version of fedsa writes ({what:.300}): use the version that "
        f"{folder.path / 'environment.json'} names, or start the run again"
    )
