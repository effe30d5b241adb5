"""Tables that clients bring, as Python has them: end to end, with a column that names the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from fedsa.data.checking import with_texts
from fedsa.data.reading.base import FROM_0, PLACE, Places, Wanted, some
from fedsa.data.reading.client_files import CLIENT
from fedsa.data.reading.tables import Table, as_dataset, merge_tables
from fedsa.data.shapes import dataset_in_shape
from fedsa.data.sources import Rows
from fedsa.errors import DataError
from fedsa.types import SPLITS

__all__ = ["ClientTable", "merged_tables"]

ClientTable: TypeAlias = datasets.Dataset | Mapping[str, datasets.Dataset]
"""One client's rows: one table to be split, or tables named train, validation and test."""

_NO_VALIDATION = (
    "The clients' data sets have no validation rows: a part of each client's train rows (data.partition."
    "validation_fraction) is kept from training to choose the round by."
)


def merged_tables(clients: Mapping[str, ClientTable], wanted: Wanted) -> Rows:
    """Return all clients' rows in one table, with a column that names the client.

    Args:
        clients: client id to its rows.
        wanted: what is read of them.

    Raises:
        DataError: there are none, a client has no rows or lacks a split, or their columns differ.
    """
    if not clients:
        raise DataError("no clients: give at least one data set")
    whole = {client: table for client, table in clients.items() if isinstance(table, datasets.Dataset)}
    split = {client: table for client, table in clients.items() if not isinstance(table, datasets.Dataset)}
    if whole and split:
        raise DataError(
            "give every client one Dataset, or every client a DatasetDict with train and test (and validation)"
        )
    if whole:
        return _stacked({"table": whole}, wanted)
    has_validation = any("validation" in tables for tables in split.values())
    needed = [name for name in SPLITS if name != "validation" or has_validation]
    missing = [
        f"{client} has no {name!r} rows" for client, tables in split.items() for name in needed if name not in tables
    ]
    if missing:
        raise DataError(
            f"{'; '.join(missing)}: give every client {', '.join(needed[:-1])} and {needed[-1]} rows; where no client "
            "has 'validation' rows, they are cut from the 'train' rows"
        )
    by_split = {
        "table" if name == "train" else name: {client: tables[name] for client, tables in split.items()}
        for name in needed
    }
    rows = _stacked(by_split, wanted)
    return rows if has_validation else replace(rows, notes=(*rows.notes, _NO_VALIDATION))


def _stacked(by_split: Mapping[str, Mapping[str, datasets.Dataset]], wanted: Wanted) -> Rows:
    """Return clients' tables end to end; columns that are not read are left out, and named in a note."""
    found: dict[str, datasets.Dataset] = {}
    places: dict[str, Places] = {}
    unread: dict[str, list[str]] = {}
    shapes: dict[str, list[str]] = {}
    for split, tables in by_split.items():
        empty = [client for client, table in tables.items() if not len(table)]
        if empty:
            raise DataError(f"clients without rows: {', '.join(empty)}; leave them out, or give them data")
        parts = {}
        for number, (client, table) in enumerate(tables.items()):
            kept = [name for name in table.column_names if name in wanted and name != CLIENT]
            for name in table.column_names:
                if name not in wanted:
                    unread.setdefault(name, []).append(client)
            own = with_texts(table.select_columns(kept), wanted.texts & {*kept}, partial(_row_of, client))
            if wanted.shape is not None:
                own, read = dataset_in_shape(own, wanted.shape, partial(_row_of, client), client)
                shapes.setdefault(read.what, []).append(client)
                for name in read.unread:
                    unread.setdefault(name, []).append(client)
            arrow = own.with_format("arrow")[:]
            codes = (number << 32) + np.arange(len(arrow), dtype=np.int64)
            arrow = arrow.append_column(PLACE, pa.array(codes)) if kept else pa.table({PLACE: codes})
            parts[client] = Table(arrow, {**own.features, PLACE: datasets.Value("int64")})
        whole = as_dataset(
            merge_tables(parts, {client: client for client in parts}, "the clients' rows", column=CLIENT, unread=unread)
        )
        places[split] = Places(
            [(client, FROM_0) for client in tables], np.asarray(whole.with_format("numpy")[PLACE][:])
        )
        found[split] = whole.remove_columns(PLACE)
    count = len(next(iter(by_split.values())))
    named = [
        repr(name) if len(set(having)) == count else f"{name!r} (of {some(dict.fromkeys(having))})"
        for name, having in unread.items()
    ]
    notes = [f"Columns that are not used are left aside: {some(named)}."] if named else []
    notes += [f"{some(dict.fromkeys(having))}: {what}." for what, having in shapes.items()]
    return Rows(found["table"], found.get("validation"), found.get("test"), tuple(notes), places, tuple(unread))


def _row_of(client: str, row: int) -> str:
    return f"{client}, {FROM_0.format(row)}"
