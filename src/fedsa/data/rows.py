"""Rows with their classes, dealt to clients: from a recipe, or from tables that clients bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import datasets
import numpy as np

from fedsa.data.brought import ClientTable, merged_tables
from fedsa.data.checking import clients_without_rows, filled_rows, require_one_writing, rows_of, with_texts
from fedsa.data.labels import IntArray, encode_labels
from fedsa.data.partition import (
    ClientRows,
    Partition,
    client_column,
    data_fingerprint,
    partition_columns,
    partition_rows,
)
from fedsa.data.quality import client_notes, label_notes, repeat_notes, spelling_notes
from fedsa.data.reading.base import FROM_0, Places, Wanted, some
from fedsa.data.reading.cells import text_of
from fedsa.data.reading.paths import expanded, is_local
from fedsa.data.shapes import shape_of
from fedsa.data.sources import CLIENT, Rows, class_names, load_rows, require_columns
from fedsa.errors import DataError, near
from fedsa.recipe import DataSettings, PartitionSettings, Recipe, TaskSettings
from fedsa.seeds import derive_seed
from fedsa.texts.words import counted
from fedsa.types import CLASS_NUMBER, NO_CLASS

__all__ = ["ClientTable", "DealtRows", "deal_client", "deal_rows", "deal_tables", "wanted_columns"]


@final
@dataclass(frozen=True)
class DealtRows:
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


def deal_rows(
    recipe: Recipe, *, label_names: Sequence[str] | None = None, on_progress: Callable[[str], None] | None = None
) -> DealtRows:
    """A recipe's rows, dealt to its clients; needs no model.

    Args:
        recipe: any.
        label_names: the classes that several sites have agreed upon; the rows here need not have each of them. None:
            as the recipe or the rows say.
        on_progress: told what is fetched.

    Raises:
        DataError: the data, its columns, its labels or the partition do not fit.
    """
    rows = load_rows(recipe.data, wanted_columns(recipe.task, recipe.data.partition), on_progress=on_progress)
    if label_names is None:
        return _share(rows, recipe.data, recipe.task, recipe.seed)
    return _share(rows, recipe.data, _with_classes(recipe.task, label_names), recipe.seed, min_classes=1)


def deal_tables(clients: Mapping[str, ClientTable], recipe: Recipe) -> DealtRows:
    """Return clients' own tables as shared rows.

    Args:
        clients: client id to its rows.
        recipe: for columns, labels and the fractions of the splits.

    Raises:
        DataError: no clients, clients without rows, other columns than the first client's, or as `deal_rows`.
    """
    rows = merged_tables(clients, wanted_columns(recipe.task, recipe.data.partition))
    return _share(rows, recipe.data, recipe.task, recipe.seed)


def deal_client(
    client: str, path: str, recipe: Recipe, label_names: Sequence[str], *, newcomer: bool
) -> tuple[DealtRows, list[str]]:
    """The rows of one client, from its own file or folder, cut into train, validation and test as among all clients.

    Args:
        client: its id.
        path: a local file or folder; a folder has the splits that the recipe names, from a file all is cut.
        recipe: the federation's: columns, splits, and how a client's rows are cut.
        label_names: the federation's classes; the client need not have rows of each.
        newcomer: it was not in the federation: it may have fewer rows than ``min_examples``, and no column ``group``.

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
    named |= recipe.data.model_dump(include={"separator", "encoding", "drop_empty"})
    data = DataSettings(path=path, partition=PartitionSettings(kind="iid", clients=1), **named)
    agreed = recipe.data.partition
    rows = load_rows(data, wanted_columns(recipe.task, agreed))
    group, notes = agreed.group, []
    needed = [*_needed(recipe.task), *([group] if group is not None and not newcomer else [])]
    require_columns(rows.table, needed, f"{path} ({data.split} rows)", rows.unread)
    if group is not None and group not in rows.table.column_names:
        notes.append(
            f"the run kept rows with one {group!r} in one split; {path} has no such column, so its rows were cut one "
            "by one: if some belong together, the test is too easy"
        )
        group = None
    kept = agreed.model_dump(include={"validation_fraction", "test_fraction", "max_examples"})
    fewest = 3 if newcomer else agreed.min_examples
    partition = PartitionSettings(kind="files", min_examples=fewest, group=group, **kept)
    table, validation, test = (
        None if own is None else _of_client(own, client) for own in (rows.table, rows.validation, rows.test)
    )
    own, task = data.model_copy(update={"partition": partition}), _with_classes(recipe.task, label_names)
    rows = replace(rows, table=table, validation=validation, test=test)
    return _share(rows, own, task, recipe.seed, min_classes=1), notes


def _with_classes(task: TaskSettings, label_names: Sequence[str]) -> TaskSettings:
    """The task with the names of the classes, where it has any."""
    return task.model_copy(update={"labels": list(label_names)}) if task.has_classes or task.is_own else task


def _of_client(table: datasets.Dataset, client: str) -> datasets.Dataset:
    """Return one client's rows with its name as a column."""
    table = table.remove_columns(CLIENT) if CLIENT in table.column_names else table
    return table.add_column(CLIENT, [client] * len(table))


def wanted_columns(task: TaskSettings, partition: PartitionSettings) -> Wanted:
    """What is read of a table, for a task and a way to share rows out."""
    columns = {*partition_columns(partition)}
    roles = {*columns, task.label_column, partition.label_column}
    texts = {*roles, *task.plain_columns} if task.plain_columns else (roles - {*task.columns}) | columns
    shape = shape_of(task, _names(roles))
    if shape is not None:  # its columns are made of others
        return Wanted(_names(roles - {*shape.columns}), _names(texts - {*shape.columns}), shape=shape)
    return Wanted(_names({*roles, *task.columns}), _names(texts), _names(task.number_columns - texts))


def _names(columns: Iterable[str | None]) -> frozenset[str]:
    return frozenset(name for name in columns if name)


def _share(rows: Rows, data: DataSettings, task: TaskSettings, seed: int, *, min_classes: int = 2) -> DealtRows:
    settings = data.partition
    extra = partition_columns(settings)
    notes = [*rows.notes]
    present, places = _checked(rows, data, task, notes)
    numbers, names = _classes(task, present, data.path, min_classes, places, notes)
    dealt = numbers if settings.label_column is None else _numbered(present, settings.label_column)[0]
    validation, test = present.get("validation"), present.get("test")
    partition = partition_rows(
        settings,
        labels=dealt["train"],
        columns=_columns(present["train"], extra),
        seed=derive_seed(seed, "partition"),
        validation_labels=dealt.get("validation"),
        validation_columns=None if validation is None else _columns(validation, extra),
        test_labels=dealt.get("test"),
        test_columns=None if test is None else _columns(test, extra),
    )
    if partition.left_out:
        listed = some(f"{client} ({why})" for client, why in partition.left_out.items())
        notes.append(f"Clients left out (data.partition.leave_out_small): {listed}.")
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
    labels = np.concatenate([numbers[split] for split in present])
    if settings.permuted_clients:
        labels = _permuted(labels, moved, names, settings.permuted_clients, task, notes)
    table = datasets.concatenate_datasets(texts).add_column(CLASS_NUMBER, labels)
    fingerprint = data_fingerprint(numbers["train"], numbers.get("validation"), numbers.get("test"))
    inputs = task.input_columns
    outputs = [name for name in task.columns if name not in inputs]
    notes += client_notes(partition)
    notes += repeat_notes(
        table,
        labels,
        Partition(moved),
        inputs,
        outputs,
        group=settings.group,
        own_test=partition.own_test,
        drawn=client_column(settings) is None,
    )
    return DealtRows(table, labels, names, Partition(moved), (partition, fingerprint), tuple(notes))


def _permuted(
    labels: IntArray,
    clients: Mapping[str, ClientRows],
    names: Sequence[str],
    part: float,
    task: TaskSettings,
    notes: list[str],
) -> IntArray:
    """Return every row's class number, where some clients' classes have traded names: the first with the last.

    Args:
        labels: the class numbers, as the rows have them.
        clients: client id to its rows.
        names: of the classes.
        part: of the clients; of each prefix of their ids, as nearly as whole clients allow.
        task: the task.
        notes: added to.

    Raises:
        DataError: the task has no classes.
    """
    if not task.has_classes:
        raise DataError(f"data.partition.permuted_clients: task.kind = {task.kind!r} has no classes: set it to 0")
    ids = sorted(clients)
    chosen = [client for place, client in enumerate(ids) if int((place + 1) * part) > int(place * part)]
    traded = labels.copy()
    for client in chosen:
        own = np.concatenate([*clients[client]])
        traded[own] = len(names) - 1 - labels[own]
    whose = f"{counted(len(chosen), 'client')} ({some(chosen)})"
    traders = f"{names[0]!r} and {names[-1]!r}, and so on"
    notes.append(f"data.partition.permuted_clients: classes have traded names at {whose}: {traders}.")
    return traded


def _checked(
    rows: Rows, data: DataSettings, task: TaskSettings, notes: list[str]
) -> tuple[dict[str, datasets.Dataset], dict[str, Callable[[int], str]]]:
    """Return each split's rows, with texts where texts belong and no empty cell, and where each row stands."""
    settings = data.partition
    extra, client = partition_columns(settings), client_column(settings)
    texts = wanted_columns(task, settings).texts
    present: dict[str, datasets.Dataset] = {}
    places: dict[str, Callable[[int], str]] = {}
    for split, table in {"train": rows.table, "validation": rows.validation, "test": rows.test}.items():
        if table is None:
            continue
        where = f"{data.path} ({split} rows)"
        needed = [*_needed(task), *([settings.label_column] if settings.label_column else [])]
        require_columns(table, [*needed, *(extra if split == "train" else [])], where, rows.unread)
        read = list(dict.fromkeys([*needed, *(name for name in extra if name in table.column_names)]))
        place = rows.places.get("table" if split == "train" else split)
        table = with_texts(table, texts & {*read}, place or FROM_0.format)
        kept, said = filled_rows(
            table, {name: name not in task.columns for name in read}, place, where, drop=data.drop_empty
        )
        if kept is not None:
            if client in table.column_names:
                said += clients_without_rows(table, kept, str(client), leave_out=settings.leave_out_small)
            table, place = rows_of(table, kept), None if place is None else Places(place.files, place.codes[kept])
        notes += said
        present[split], places[split] = table, place or FROM_0.format
        if task.has_classes and place is not None and split == "train":
            require_one_writing(table, task.label_column or "", place, data.path)
    return present, places


def _needed(task: TaskSettings) -> list[str]:
    """Return the columns that every split must have."""
    return list(dict.fromkeys([*task.columns, *([task.label_column] if task.label_column else [])]))


def _classes(
    task: TaskSettings,
    tables: Mapping[str, datasets.Dataset],
    path: str,
    min_classes: int,
    places: Mapping[str, Callable[[int], str]],
    notes: list[str],
) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Return each split's class numbers, and the classes' names; without a label column all rows are of one kind."""
    if task.label_column is None:
        return {split: np.zeros(len(table), dtype=np.int64) for split, table in tables.items()}, (NO_CLASS,)
    names: Sequence[str] | None = task.class_names
    if not task.has_classes:  # values that only tell how rows are dealt: no split need have them all
        return _numbered(tables, task.label_column, names, path)
    numbers: dict[str, IntArray] = {}
    for split, table in tables.items():
        where = f"{path} ({split} rows)"
        names = class_names(table, task.label_column, names, where)
        cells = table[task.label_column][:]  # as a list: row by row takes minutes for many
        notes += spelling_notes(sorted({cell for cell in cells if isinstance(cell, str)}), task.label_column)
        numbers[split], names = encode_labels(
            cells,
            names,
            f"{where}, column {task.label_column!r}",
            min_classes=min_classes if split == "train" else 1,
            place=places[split],
        )
    found = tuple(names or ())
    notes += label_notes(found, np.concatenate(list(numbers.values())))
    return numbers, found


def _numbered(
    tables: Mapping[str, datasets.Dataset], column: str, names: Sequence[str] | None = None, path: str = ""
) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Return each split's values of a column as numbers, and the values as texts in order of their number.

    Args:
        tables: by split.
        column: the column.
        names: the values in order of their number; None: those that occur, sorted.
        path: of the rows, for the message.

    Raises:
        DataError: a value is none of the names.
    """
    values = {split: [str(text_of(cell)) for cell in table[column][:]] for split, table in tables.items()}
    found = set().union(*values.values())
    known = sorted(found) if names is None else list(names)
    unknown = sorted(found - {*known})
    if unknown:
        raise DataError(f"{path}, column {column!r}: {unknown[0]!r} is none of the classes; {near(unknown[0], known)}")
    place = {value: number for number, value in enumerate(known)}
    return {split: np.array([place[value] for value in own], dtype=np.int64) for split, own in values.items()}, tuple(
        known
    )


def _columns(table: datasets.Dataset, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    return {name: table[name][:] for name in names if name in table.column_names}
