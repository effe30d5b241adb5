"""From columns and settings to owners: which client has which row, before clients' rows are split. Pure numpy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedsa.data.labels import IntArray, is_missing
from fedsa.data.partition.allotting import Units, allot, deal_alike, make_units
from fedsa.data.reading.cells import text_of
from fedsa.errors import DataError
from fedsa.recipe import PartitionSettings
from fedsa.texts.words import counted

__all__ = ["Clients", "Columns", "Pool", "client_column", "client_ids", "deal_own", "made_clients", "natural_clients"]

Columns: TypeAlias = Mapping[str, Sequence[Any]]

_TRIES = 200


@dataclass(frozen=True)
class Pool:
    """The rows of one table and who has them.

    Attributes:
        labels: each row's class.
        owner: each row's client, as a place in ``Clients.ids``; -1: nobody's.
        groups: each row's group (any number; one client's only), where rows are grouped.
    """

    labels: IntArray
    owner: IntArray
    groups: IntArray | None


@dataclass(frozen=True)
class Clients:
    """Who takes part.

    Attributes:
        ids: the clients' names.
        cells: for each client the value of ``within`` that it belongs to; "" without ``within``.
    """

    ids: list[str]
    cells: list[str]


def client_column(settings: PartitionSettings) -> str | None:
    """Return the column that names the client; None where clients are made by a draw."""
    return {"column": settings.column, "files": "client"}.get(settings.kind)


def natural_clients(settings: PartitionSettings, labels: IntArray, columns: Columns) -> tuple[Pool, Clients]:
    """Return the table's owners by its client column; a group that two clients share becomes one group of each.

    Raises:
        DataError: a column is missing or has empty cells.
    """
    column = client_column(settings) or ""
    owner, ids = _codes(columns, column, "the client", len(labels))
    groups = _groups(settings, columns, len(labels))
    if groups is not None:
        groups = groups * len(ids) + owner
    return Pool(labels, owner, groups), Clients(ids, [""] * len(ids))


def client_ids(cell: str, count: int) -> list[str]:
    """Return the names of clients that are made by a draw.

    Args:
        cell: the value of ``within`` that they belong to; "" without ``within``.
        count: of them.
    """
    return [f"{cell or 'client'}-{index:0{len(str(count))}}" for index in range(1, count + 1)]


def made_clients(
    settings: PartitionSettings, labels: IntArray, columns: Columns, splits: int, rng: np.random.Generator
) -> tuple[Pool, Clients]:
    """Return the table dealt out to clients by a draw, inside each value of ``within`` separately.

    Args:
        settings: of a kind that makes clients.
        labels: each row's class.
        columns: the ``within`` and ``group`` columns.
        splits: how many splits a client's rows will be cut into; it gets as many rows or groups at least.
        rng: the source of randomness.

    Raises:
        DataError: columns with empty cells, a table of clients that does not fit the values, groups in two values, or
            too few rows.
    """
    rows = len(labels)
    groups = _groups(settings, columns, rows)
    units = make_units(labels, groups)
    cell_of_row, cells = np.zeros(rows, np.int64), [""]
    if settings.within:
        cell_of_row, cells = _codes(columns, settings.within, "partition.within", rows)
        _check_spans(settings, units, cell_of_row, cells)
    cell_of_unit = np.zeros(len(units.label), np.int64)
    cell_of_unit[units.of_row] = cell_of_row
    owner_of_unit = np.empty(len(units.label), np.int64)
    clients = Clients([], [])
    counts = _client_numbers(settings, cells)
    for number, cell in enumerate(cells):
        count, members = counts[cell], np.flatnonzero(cell_of_unit == number)
        owner_of_unit[members] = len(clients.ids) + _draw(settings, units, members, cell, count, splits, rng)
        clients.ids.extend(client_ids(cell, count))
        clients.cells.extend([cell] * count)
    return Pool(labels, owner_of_unit[units.of_row], groups), clients


def deal_own(
    settings: PartitionSettings,
    name: str,
    labels: IntArray,
    columns: Columns,
    table: Pool,
    clients: Clients,
    rng: np.random.Generator,
) -> Pool:
    """Return a split that the data has of its own with its owners.

    Args:
        settings: the recipe's ``[data.partition]``.
        name: "validation" or "test".
        labels: the split's classes.
        columns: those of the partition's columns that the split has.
        table: the table's rows and owners.
        clients: who takes part.
        rng: the source of randomness.

    Raises:
        DataError: empty cells, or clients or ``within`` values that the table does not have.
    """
    rows = len(labels)
    groups = _groups(settings, columns, rows) if settings.group in columns else None
    column = client_column(settings)
    if column is not None and column in columns:
        code, values = _codes(columns, column, f"the client, in the {name} split", rows)
        place = {client: index for index, client in enumerate(clients.ids)}
        _check_known(values, place, f"{name} split: clients of column {column!r}", name)
        owner = np.array([place[value] for value in values])[code]
        return Pool(labels, owner, None if groups is None else groups * len(place) + owner)
    classes = int(max(table.labels.max(), labels.max())) + 1
    counts = np.bincount(table.owner * classes + table.labels, minlength=len(clients.ids) * classes)
    cell_of_client, cell_of_row = np.zeros(len(clients.ids), np.int64), np.zeros(rows, np.int64)
    if settings.within is not None and settings.within in columns:
        cell_of_row, values = _codes(columns, settings.within, f"partition.within, in the {name} split", rows)
        _check_known(values, clients.cells, f"{name} split: values of column {settings.within!r}", name)
        place = {value: index for index, value in enumerate(values)}
        cell_of_client = np.array([place.get(cell, -1) for cell in clients.cells])
        groups = None if groups is None else groups * len(values) + cell_of_row
    units = make_units(labels, groups)
    owner_of_unit, cell_of_unit = np.full(len(units.label), -1), np.zeros(len(units.label), np.int64)
    cell_of_unit[units.of_row] = cell_of_row
    for cell in np.unique(cell_of_row):
        members = np.flatnonzero(cell_of_client == cell)
        held = counts.reshape(-1, classes)[members]
        dealt, client = deal_alike(units, np.flatnonzero(cell_of_unit == cell), held, rng)
        owner_of_unit[dealt] = members[client]
    return Pool(labels, owner_of_unit[units.of_row], groups)


def _codes(columns: Columns, name: str, purpose: str, rows: int) -> tuple[IntArray, list[str]]:
    """Return each row's value as a number, and the values as text in order."""
    if name not in columns:
        raise DataError(f"column {name!r} ({purpose}) is not in the data; there is: {', '.join(columns) or 'none'}")
    values = list(columns[name])
    if len(values) != rows:
        raise ValueError(f"column {name!r} has {counted(len(values), 'value')} for {counted(rows, 'row')}")
    empty = [row for row, value in enumerate(values) if is_missing(value)]
    if empty:
        raise DataError(
            f"column {name!r} ({purpose}) is empty in {len(empty)} of {counted(rows, 'row')}, first in row {empty[0]}; "
            "fill them in or drop the rows"
        )
    try:
        texts = [str(text_of(value)) for value in values]
    except ValueError as error:
        raise DataError(f"column {name!r} ({purpose}) {error}; write its cells as texts") from None
    found = sorted(set(texts))
    number = {text: index for index, text in enumerate(found)}
    return np.array([number[text] for text in texts], dtype=np.int64), found


def _groups(settings: PartitionSettings, columns: Columns, rows: int) -> IntArray | None:
    return _codes(columns, settings.group, "partition.group", rows)[0] if settings.group else None


def _client_numbers(settings: PartitionSettings, cells: Sequence[str]) -> dict[str, int]:
    if not isinstance(settings.clients, dict):
        return dict.fromkeys(cells, settings.clients or 1)
    unknown, missing = sorted(set(settings.clients) - set(cells)), sorted(set(cells) - set(settings.clients))
    problems = [f"{value!r} is not a value of the column" for value in unknown]
    problems += [f"{value!r} is a value of the column without a number of clients" for value in missing]
    if problems:
        raise DataError(
            f"partition.clients does not fit the column {settings.within!r}:\n  "
            + "\n  ".join(problems)
            + f"\nthe values are: {', '.join(cells)}"
        )
    return settings.clients


def _check_spans(settings: PartitionSettings, units: Units, cell_of_row: IntArray, cells: Sequence[str]) -> None:
    pairs = np.unique(units.of_row * len(cells) + cell_of_row) // len(cells)
    spanning = int((np.bincount(pairs) > 1).sum())
    if spanning:
        raise DataError(
            f"{counted(spanning, 'group')} (column {settings.group!r}) with rows in several values of "
            f"{settings.within!r} cannot stay in one client; leave partition.within or partition.group out, or name "
            "the groups apart"
        )


def _draw(
    settings: PartitionSettings,
    units: Units,
    members: IntArray,
    cell: str,
    clients: int,
    splits: int,
    rng: np.random.Generator,
) -> IntArray:
    """Deal until every client has enough rows, and enough units for all splits."""
    rows = int(units.size[members].sum())
    where = f"{settings.within} = {cell!r}: " if settings.within else ""
    groups = f" in {counted(len(members), 'group')}" if settings.group else ""
    if rows < clients * settings.min_examples or len(members) < clients * splits:
        raise DataError(
            f"{where}{counted(rows, 'row')}{groups} cannot be dealt to {counted(clients, 'client')} with at least "
            f"{counted(settings.min_examples, 'row')} each; set fewer clients or a lower min_examples"
        )
    for _ in range(_TRIES):
        client = allot(settings, units, members, clients, rng)
        enough = np.bincount(client, weights=units.size[members], minlength=clients) >= settings.min_examples
        if (enough & (np.bincount(client, minlength=clients) >= splits)).all():
            return client
    mend = "a higher dirichlet_alpha, " if settings.kind in ("dirichlet", "client_dirichlet", "size") else ""
    raise DataError(
        f"{where}in {_TRIES} draws of kind {settings.kind!r} some client was always left with fewer than "
        f"{counted(settings.min_examples, 'row')} ({counted(rows, 'row')}, {counted(clients, 'client')}); set "
        f"{mend}fewer clients, or a lower min_examples"
    )


def _check_known(values: Sequence[str], known: Collection[str], what: str, name: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise DataError(
            f"{what} that have no rows in the table: {shown}; leave data.{name}_split out (each client's own rows are "
            "then split), or drop those rows"
        )
