"""Rows with their classes, shared out over clients: from a recipe, or from tables that clients bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import datasets
import numpy as np

from fedsa.data.clients import SPLITS
from fedsa.data.files import expanded, is_local
from fedsa.data.labels import IntArray, encode_labels
from fedsa.data.partition import ClientRows, Partition, data_fingerprint, partition_columns, partition_rows
from fedsa.data.sources import CLIENT, Rows, class_names, load_rows, require_columns
from fedsa.errors import DataError
from fedsa.recipe import DataSettings, PartitionSettings, Recipe, TaskSettings
from fedsa.seeds import derive_seed
from fedsa.types import CLASS_NUMBER, NO_CLASS

__all__ = ["ClientTable", "SharedRows", "share_client", "share_rows", "share_tables"]

ClientTable: TypeAlias = datasets.Dataset | Mapping[str, datasets.Dataset]
"""One client's rows: one table to be split, or tables named train, validation and test."""


@final
@dataclass(frozen=True)
class SharedRows:
    """Rows with their classes, and who holds which.

    Attributes:
        table: the texts and class numbers (``CLASS_NUMBER``) of all rows, those of a validation or test split of its
            own after the others.
        labels: shape (rows,): class numbers; zeros where the task has no classes and no label column.
        label_names: in order of their number; `NO_CLASS` alone where there are none.
        partition: client id to its rows in ``table``.
        as_saved: the same partition with each split's own row numbers, and the fingerprint of the data it belongs to.
        notes: whole sentences on the rows that a user should know; `fedsa data`, the run and the report show them.
    """

    table: datasets.Dataset
    labels: IntArray
    label_names: tuple[str, ...]
    partition: Partition
    as_saved: tuple[Partition, str]
    notes: tuple[str, ...] = ()


def share_rows(recipe: Recipe, *, on_progress: Callable[[str], None] | None = None) -> SharedRows:
    """Return a recipe's rows, shared out over its clients; needs no model.

    Raises:
        DataError: the data, its columns, its labels or the partition do not fit.
    """
    rows = load_rows(recipe.data, on_progress=on_progress)
    return _share(rows, recipe)


def share_tables(clients: Mapping[str, ClientTable], recipe: Recipe) -> SharedRows:
    """Return clients' own tables as shared rows.

    Args:
        clients: client id to its rows.
        recipe: for columns, labels and the fractions of the splits.

    Raises:
        DataError: no clients, clients without rows, other columns than the first client's, or as `share_rows`.
    """
    return _share(_merge(clients), recipe)


def share_client(client: str, path: str, recipe: Recipe, label_names: Sequence[str]) -> tuple[SharedRows, list[str]]:
    """Return the rows of one client that was not in a federation, cut into train, validation and test as its clients'.

    Args:
        client: its id.
        path: a local file or folder; a folder has the splits that the recipe names, from a file all is cut.
        recipe: the federation's: columns, splits and their fractions.
        label_names: the federation's classes; the client need not have rows of each.

    Returns:
        The rows, and what is to be known of how they were cut.

    Raises:
        DataError: the file, its columns or its labels do not fit, or there are too few rows.
    """
    if not is_local(path):
        raise DataError(
            f"no file or folder {path}: give one that is here, in a format that a recipe's data.path may have"
        )
    named = (
        recipe.data.model_dump(include={"validation_split", "test_split", "split"}) if expanded(path).is_dir() else {}
    )
    data = DataSettings(path=path, partition=PartitionSettings(kind="iid", clients=1), **named)
    rows = load_rows(data)
    require_columns(rows.table, _needed(recipe.task), f"{path} ({data.split} rows)")
    group, notes = recipe.data.partition.group, []
    if group is not None and group not in rows.table.column_names:
        notes.append(
            f"the run kept rows with one {group!r} in one split; {path} has no such column, so its rows were cut one "
            "by one: if some belong together, the test is too easy"
        )
        group = None
    fractions = recipe.data.partition.model_dump(include={"validation_fraction", "test_fraction"})
    partition = PartitionSettings(kind="files", min_examples=3, group=group, **fractions)
    table = _stack({client: rows.table})
    validation, test = (None if own is None else _stack({client: own}) for own in (rows.validation, rows.test))
    task = recipe.task.model_copy(update={"labels": list(label_names)}) if recipe.task.has_classes else recipe.task
    own = recipe.model_copy(update={"task": task, "data": data.model_copy(update={"partition": partition})})
    return _share(Rows(table, validation, test, rows.notes), own, min_classes=1), notes


def _share(rows: Rows, recipe: Recipe, *, min_classes: int = 2) -> SharedRows:
    task, settings = recipe.task, recipe.data.partition
    extra = partition_columns(settings)
    tables = {"train": rows.table, "validation": rows.validation, "test": rows.test}
    present = {name: table for name, table in tables.items() if table is not None}
    for split, table in present.items():
        where = f"{recipe.data.path} ({split} rows)"
        needed = [*_needed(task), *([settings.label_column] if settings.label_column else [])]
        require_columns(table, [*needed, *(extra if split == "train" else [])], where)
        _require_values(table, task.columns, where)
    numbers, names = _classes(task, present, recipe.data.path, min_classes)
    dealt = numbers if settings.label_column is None else _numbered(present, settings.label_column)[0]
    partition = partition_rows(
        settings,
        labels=dealt["train"],
        columns=_columns(rows.table, extra),
        seed=derive_seed(recipe.seed, "partition"),
        validation_labels=dealt.get("validation"),
        validation_columns=None if rows.validation is None else _columns(rows.validation, extra),
        test_labels=dealt.get("test"),
        test_columns=None if rows.test is None else _columns(rows.test, extra),
    )
    starts = dict(zip(present, np.cumsum([0, *(len(table) for table in present.values())]), strict=False))
    moved = {
        client: ClientRows(
            parts.train,
            parts.validation + starts.get("validation", 0),
            parts.test + starts.get("test", 0),
        )
        for client, parts in partition.clients.items()
    }
    texts = [table.select_columns(task.columns) for table in present.values()]
    table = datasets.concatenate_datasets(
        [table.add_column(CLASS_NUMBER, numbers[split]) for split, table in zip(present, texts, strict=True)]
    )
    labels = np.concatenate([numbers[split] for split in present])
    fingerprint = data_fingerprint(numbers["train"], numbers.get("validation"), numbers.get("test"))
    return SharedRows(table, labels, names, Partition(moved), (partition, fingerprint), rows.notes)


def _needed(task: TaskSettings) -> list[str]:
    """Return the columns that every split must have."""
    return list(dict.fromkeys([*task.columns, *([task.label_column] if task.label_column else [])]))


def _classes(
    task: TaskSettings, tables: Mapping[str, datasets.Dataset], path: str, min_classes: int
) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Return each split's class numbers, and the classes' names; without a label column all rows are of one kind."""
    if task.label_column is None:
        return {split: np.zeros(len(table), dtype=np.int64) for split, table in tables.items()}, (NO_CLASS,)
    names: Sequence[str] | None = task.labels if task.has_classes else None
    if not task.has_classes:  # values that only tell how rows are shared out: no split need have them all
        return _numbered(tables, task.label_column)
    numbers: dict[str, IntArray] = {}
    for split, table in tables.items():
        where = f"{path} ({split} rows)"
        names = class_names(table, task.label_column, names, where)
        numbers[split], names = encode_labels(
            table[task.label_column][:],  # as a list: row by row takes minutes for many
            names,
            f"{where}, column {task.label_column!r}",
            min_classes=min_classes if split == "train" else 1,
        )
    return numbers, tuple(names or ())


def _numbered(tables: Mapping[str, datasets.Dataset], column: str) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Return each split's values of a column as numbers, and the values as texts in order of their number."""
    values = {split: list(map(str, table[column][:])) for split, table in tables.items()}
    known = sorted(set().union(*values.values()))
    place = {value: number for number, value in enumerate(known)}
    return {split: np.array([place[value] for value in own], dtype=np.int64) for split, own in values.items()}, tuple(
        known
    )


def _require_values(table: datasets.Dataset, columns: Sequence[str], where: str) -> None:
    """Refuse rows without a value in a column.

    Raises:
        DataError: with the number of such rows and the first of them, for every column.
    """
    problems = []
    for column in columns:
        if not table.data.column(column).null_count:
            continue
        empty = [number for number, text in enumerate(table[column][:]) if text is None]
        if empty:
            shown = ", ".join(map(str, empty[:5]))
            problems.append(f"column {column!r} is empty in {len(empty)} rows (counted from 0: {shown})")
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}; fill them in or drop these rows")


def _columns(table: datasets.Dataset, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    return {name: table[name][:] for name in names if name in table.column_names}


def _merge(clients: Mapping[str, ClientTable]) -> Rows:
    """Return all clients' rows in one table, with a column that names the client."""
    if not clients:
        raise DataError("no clients: give at least one data set")
    whole = {client: table for client, table in clients.items() if isinstance(table, datasets.Dataset)}
    split = {client: table for client, table in clients.items() if not isinstance(table, datasets.Dataset)}
    if whole and split:
        raise DataError("give every client one Dataset, or every client a DatasetDict with train, validation and test")
    if whole:
        return Rows(_stack(whole), None, None)
    missing = [
        f"{client} has no {name!r} rows" for client, tables in split.items() for name in SPLITS if name not in tables
    ]
    if missing:
        raise DataError("every client needs train, validation and test rows: " + "; ".join(missing))
    return Rows(*(_stack({client: tables[name] for client, tables in split.items()}) for name in SPLITS))


def _stack(tables: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    empty = [client for client, table in tables.items() if not len(table)]
    if empty:
        raise DataError(f"clients without rows: {', '.join(empty)}; leave them out, or give them data")
    parts = [
        (table.remove_columns(CLIENT) if CLIENT in table.column_names else table).add_column(
            CLIENT, [client] * len(table)
        )
        for client, table in tables.items()
    ]
    try:
        return datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise DataError(f"the clients' rows do not have the same columns and types: {error}") from None
