"""The section ``[data.partition]``: which client has which rows, and how each client's rows are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedsa.recipe.base import Agreed, Machine, Settings

__all__ = ["PartitionSettings"]

_Kind = Literal["column", "files", "iid", "dirichlet", "client_dirichlet", "shards", "size", "saved"]


class PartitionSettings(Settings):
    """How rows are split over clients, and each client's rows into train, validation and test."""

    kind: Machine[_Kind] = Field(
        "iid",
        description="column: natural clients; files: one file or folder per client; iid: equal clients; dirichlet: "
        "label skew, each label is divided over clients at random; client_dirichlet: label skew, each client draws its "
        "label distribution, equal sizes; shards: few labels per client; size: uneven sizes, equal label distribution; "
        "saved: a partition file",
    )
    clients: Machine[int | dict[str, int] | None] = Field(
        None, description="number of clients; with `within`, per value (one number for all, or a table)"
    )
    column: Machine[str | None] = Field(None, description="kind = column: the column that names the client")
    within: Machine[str | None] = Field(None, description="split inside each value of this column separately")
    label_column: Machine[str | None] = Field(
        None,
        description="the column whose values are dealt out as labels (for example superclasses); empty: the task's",
    )
    group: Agreed[str | None] = Field(None, description="rows with one value here stay in one client and one split")
    dirichlet_alpha: Machine[float] = Field(
        0.5, gt=0, description="concentration of the label distribution (or of sizes): lower is more uneven"
    )
    shards_per_client: Machine[int] = Field(2, gt=0, description="kind = shards: label-sorted shards per client")
    file: Machine[str | None] = Field(None, description="kind = saved: a file that `fedsa data --save` wrote")
    validation_fraction: Agreed[float] = Field(
        0.15, gt=0, lt=1, description="part of a client's rows for validation, unless data.validation_split is given"
    )
    test_fraction: Agreed[float] = Field(
        0.2, gt=0, lt=1, description="part of a client's rows for test, unless data.test_split is given"
    )
    min_examples: Agreed[int] = Field(10, ge=3, description="fewest rows a client may have, all splits together")
    max_examples: Agreed[int | None] = Field(None, ge=3, description="most rows a client keeps, all splits together")
    permuted_clients: Machine[float] = Field(
        0.0,
        ge=0,
        le=1,
        description="part of the clients, evenly over their ids, whose classes trade names, the first with the last "
        "and so on: a control, for simulations, of clients that mean different things by one class",
    )
    leave_out_small: Machine[bool] = Field(
        False, description="leave out clients that have fewer rows than min_examples, or too few for their splits"
    )
    leave_out_unreadable: Machine[bool] = Field(
        False,
        description="kind = files: leave out clients with a file that is empty, of another kind or cannot be read",
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
                    problems.append(f"`{key}` does not go with kind = {self.kind!r}: remove it")
        if self.column and self.kind != "column":
            problems.append(f"`column` goes with kind = 'column' only, not with {self.kind!r}: remove it")
        if self.file and self.kind != "saved":
            problems.append(f"`file` goes with kind = 'saved' only, not with {self.kind!r}: remove it")
        if self.leave_out_unreadable and self.kind != "files":
            problems.append(f"`leave_out_unreadable` goes with kind = 'files' only, not with {self.kind!r}: remove it")
        if self.max_examples is not None and self.max_examples < self.min_examples:
            problems.append(
                f"max_examples = {self.max_examples} is below min_examples = {self.min_examples}: no client could have "
                "so few and so many rows"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            problems.append("validation_fraction + test_fraction must leave rows to train on (sum below 1)")
        if problems:
            raise ValueError("; ".join(problems))
        return self
