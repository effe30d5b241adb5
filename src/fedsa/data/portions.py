"""A portion of dealt rows: those of some clients alone, for a process that is not to have the others'."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from fedsa.data.partition import ClientRows, Partition
from fedsa.data.reading.hub import quiet_datasets
from fedsa.data.rows import DealtRows
from fedsa.errors import DataError
from fedsa.system.sums import changed_file, write_sums

__all__ = ["portion_of", "read_portion", "write_portion"]


def portion_of(rows: DealtRows, clients: Collection[str]) -> DealtRows:
    """The rows of some clients, in the order that they have among all; row numbers begin at 0 again.

    Args:
        rows: of all clients.
        clients: ids, each of a client that has rows.
    """
    chosen = {client: parts for client, parts in rows.partition.clients.items() if client in clients}
    used = np.unique(np.concatenate([part for parts in chosen.values() for part in parts]))
    own = Partition(
        {
            client: ClientRows(*(np.searchsorted(used, part).astype(np.int64) for part in parts))
            for client, parts in chosen.items()
        }
    )
    return replace(
        rows, table=rows.table.select(used), labels=rows.labels[used], partition=own, as_saved=(own, ""), notes=()
    )


def write_portion(rows: DealtRows, folder: Path) -> None:
    """Write dealt rows into a folder that is not there yet.

    Args:
        rows: any.
        folder: the table goes there in Arrow's format, who has which row as JSON.
    """
    with quiet_datasets():
        rows.table.save_to_disk(folder / "table")
    about = {
        "labels": rows.labels.tolist(),
        "label_names": list(rows.label_names),
        "clients": {client: [part.tolist() for part in parts] for client, parts in rows.partition.clients.items()},
    }
    (folder / "rows.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    write_sums(folder)


def read_portion(folder: Path) -> DealtRows:
    """The rows that `write_portion` wrote.

    Raises:
        DataError: they are not there, or are damaged.
    """
    try:
        changed = changed_file(folder)
        if changed is not None:
            raise DataError(f"{changed} was changed after it was written: have the rows written again")
        about: dict[str, Any] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        table = datasets.Dataset.load_from_disk(str(folder / "table"))
        clients = {
            client: ClientRows(*(np.array(part, dtype=np.int64) for part in parts))
            for client, parts in about["clients"].items()
        }
        labels, names = np.array(about["labels"], dtype=np.int64), tuple(about["label_names"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: the rows there cannot be read ({error}): have them written again") from None
    partition = Partition(clients)
    return DealtRows(table, labels, names, partition, (partition, ""))
