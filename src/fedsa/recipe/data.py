"""The section ``[data]``: where the rows are."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from fedsa.recipe.base import Machine, Settings, repeated
from fedsa.recipe.partition import PartitionSettings

__all__ = ["DataSettings"]


class DataSettings(Settings):
    """Where the rows are."""

    path: Machine[str] = Field(description="hub name, local folder or file (CSV, JSONL, Parquet, Excel), or part:NAME")
    name: Machine[str | None] = Field(None, description="the hub data set's configuration")
    revision: Machine[str | None] = Field(None, description="branch, tag or commit on the hub")
    split: Machine[str] = Field("train", description="the split whose rows are dealt out to the clients")
    validation_split: Machine[str | None] = Field(
        None, description="a separate split for validation, dealt out with the same label distribution"
    )
    test_split: Machine[str | None] = Field(
        None, description="a separate split for test, dealt out with the same label distribution"
    )
    separator: Machine[str | None] = Field(
        None, description="CSV and TSV: the character between cells, or tab; empty: detected, and a note says which"
    )
    encoding: Machine[str | None] = Field(
        None, description="of text files, for example cp1252 or utf-16; empty: UTF-8, or detected with a note"
    )
    drop_empty: Machine[bool] = Field(
        False, description="leave out rows with an empty cell in a column that is read; a note counts them"
    )
    partition: PartitionSettings

    @field_validator("separator")
    @classmethod
    def _is_one_character(cls, separator: str | None) -> str | None:
        separator = "\t" if separator in ("tab", "\\t") else separator
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise ValueError(
                f"must be one character, such as ; or tab, but not a quotation mark or line end (got {separator!r})"
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
                    f"there is no text encoding {encoding[:40]!r}; use for example utf-8, utf-16 or cp1252"
                ) from None
        return encoding

    @model_validator(mode="after")
    def _no_split_twice(self) -> DataSettings:
        twice = repeated([name for name in (self.split, self.validation_split, self.test_split) if name])
        if twice:
            raise ValueError(
                f"split, validation_split and test_split share rows: {twice[0]!r} is named twice; leave "
                "validation_split or test_split out to cut that part from each client's rows"
            )
        return self
