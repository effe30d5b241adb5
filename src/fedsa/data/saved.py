"""Partitions as files: JSON in clear text, tied to the data they were made for."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fedsa.data.clients import ClientRows, Partition
from fedsa.data.labels import IntArray
from fedsa.errors import DataError
from fedsa.types import SPLITS

__all__ = ["data_fingerprint", "load_partition", "save_partition"]

_FORMAT = "fedsa partition"
_VERSION = 1


def data_fingerprint(labels: IntArray, validation: IntArray | None = None, test: IntArray | None = None) -> str:
    """Return a line that tells data apart: the number of rows of each table, and a hash of all labels in order.

    Args:
        labels: class numbers of ``Rows.table``.
        validation: class numbers of ``Rows.validation``, where the data has one.
        test: class numbers of ``Rows.test``, where the data has one.

    >>> data_fingerprint(np.array([0, 1, 1]))
    'table 3, validation none, test none, sha256 ccb1ac866b7d8de3'
    """
    digest = hashlib.sha256()
    sizes = []
    for name, table in zip(("table", "validation", "test"), (labels, validation, test), strict=True):
        sizes.append(f"{name} {'none' if table is None else len(table)}")
        if table is not None:
            digest.update(np.ascontiguousarray(table, dtype="<i8").tobytes())
    return f"{', '.join(sizes)}, sha256 {digest.hexdigest()[:16]}"


def save_partition(partition: Partition, path: Path, fingerprint: str) -> None:
    """Write a partition so that ``load_partition`` gives an equal one.

    A crash leaves the old file or none, never half a file.

    Args:
        partition: who has which rows.
        path: the file to write; its folder must exist.
        fingerprint: ``data_fingerprint`` of the data it belongs to.

    Raises:
        DataError: the file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "data": fingerprint,
        "own_validation": partition.own_validation,
        "own_test": partition.own_test,
        "clients": {
            client: {split: getattr(rows, split).tolist() for split in SPLITS}
            for client, rows in partition.clients.items()
        },
    }
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"cannot write partition {path}: {error.strerror or error}; give another file") from None


def load_partition(path: Path, fingerprint: str, sizes: tuple[int, int | None, int | None]) -> Partition:
    """Return the partition in a file.

    Args:
        path: written by ``save_partition``.
        fingerprint: ``data_fingerprint`` of the data at hand.
        sizes: rows of the table, and of the splits of their own for validation and test (None: there is none).

    Raises:
        DataError: no such file, not a partition, of a newer version, made for other data, or with row numbers that
            are out of range, given to two clients or missing from a split.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no partition file {path}; write one with: fedsa data RECIPE --save {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read partition {path}: {error}; write it again with fedsa data --save") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path} is not a partition file; write one with: fedsa data RECIPE --save FILE")
    if content.get("version") != _VERSION:
        raise DataError(
            f"{path} has version {content.get('version')!r} of the partition format, this fedsa reads {_VERSION}; "
            "write it again with fedsa data --save"
        )
    if content.get("data") != fingerprint:
        raise DataError(
            f"{path} was made for other data ({content.get('data')}; here: {fingerprint}); "
            "use the data it was made for, or write it again with fedsa data --save"
        )
    try:
        clients = {client: _client_rows(content["clients"][client]) for client in sorted(content["clients"])}
        partition = Partition(clients, bool(content["own_validation"]), bool(content["own_test"]))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); write it again") from None
    _check(partition, path, sizes)
    return partition


def _client_rows(rows: dict[str, Any]) -> ClientRows:
    def array(split: str) -> IntArray:
        if not all(type(row) is int for row in rows[split]):
            raise ValueError(f"{split} rows must be whole numbers")
        return np.sort(np.array(rows[split], dtype=np.int64))

    return ClientRows(array("train"), array("validation"), array("test"))


def _check(partition: Partition, path: Path, sizes: tuple[int, int | None, int | None]) -> None:
    own = {"train": False, "validation": partition.own_validation, "test": partition.own_test}
    if not partition.clients:
        raise DataError(f"{path} has no clients; write it again with fedsa data --save")
    empty = [
        f"{client!r} has no {split} rows"
        for client, rows in partition.clients.items()
        for split in SPLITS
        if not len(getattr(rows, split))
    ]
    if empty:
        raise DataError(f"{path}: every client needs rows in every split:\n  " + "\n  ".join(empty))
    for table, size in zip(("table", "validation", "test"), sizes, strict=True):
        used = [split for split in SPLITS if (split if own[split] else "table") == table]
        if not used:
            continue
        rows = np.concatenate([getattr(client, split) for client in partition.clients.values() for split in used])
        if size is None or rows.min() < 0 or rows.max() >= size:
            raise DataError(f"{path}: row numbers outside the {table} of {size} rows; write it again")
        if len(np.unique(rows)) < len(rows):
            raise DataError(f"{path}: rows of the {table} are given out twice; write it again with fedsa data --save")
