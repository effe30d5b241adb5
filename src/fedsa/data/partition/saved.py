"""Partitions as files: JSON in clear text, tied to the data they were made for."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from fedsa.data.labels import IntArray
from fedsa.data.partition.clients import ClientRows, Partition
from fedsa.errors import DataError
from fedsa.texts.words import brief, counted, cut
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
    content = _content(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{path} is not a partition file; write one with: fedsa data RECIPE --save FILE")
    if content.get("version") != _VERSION or content["version"] is True:
        raise DataError(
            f"{path} has version {brief(content.get('version'))} of the partition format, this fedsa reads {_VERSION}; "
            "write it again with fedsa data --save"
        )
    if content.get("data") != fingerprint:
        raise DataError(
            f"{path} was made for other data ({cut(str(content.get('data')), 200)}; here: {fingerprint}); "
            "use the data it was made for, or write it again with fedsa data --save"
        )
    try:
        saved = _Saved.model_validate(content)
        "".join(saved.clients).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{path} is damaged (a client's name is no text); write it again with fedsa data --save"
        ) from None
    except ValidationError as error:
        first, *_ = error.errors(include_url=False, include_input=False)
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise DataError(f"{path} is damaged ({where}: {first['msg']}); write it again with fedsa data --save") from None
    clients = {client: _client_rows(saved.clients[client]) for client in sorted(saved.clients)}
    partition = Partition(clients, saved.own_validation, saved.own_test)
    _check(partition, path, sizes)
    return partition


def _content(path: Path) -> Any:
    """The contents of a saved partition.

    Raises:
        DataError: there is none, it cannot be read, or it is not JSON.
    """
    again = "write it again with fedsa data --save"
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise DataError(f"partition {path} is {'a folder' if path.is_dir() else 'no file'}; give a file")
        return json.loads(path.read_bytes(), object_pairs_hook=_once)
    except FileNotFoundError:
        raise DataError(f"no partition file {path}; write one with: fedsa data RECIPE --save {path}") from None
    except RecursionError:
        raise DataError(f"cannot read partition {path}: it is nested too deeply; {again}") from None
    except UnicodeDecodeError:
        raise DataError(f"cannot read partition {path}: it is no text; {again}") from None
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else cut(str(error), 300)
        raise DataError(f"cannot read partition {path}: {told}; {again}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table, if none of its names stands there twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{brief(next(name for name in names if names.count(name) > 1))} stands there twice")
    return table


_RowNumbers = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], FailFast()]


class _SavedClient(BaseModel):
    """What must stand in a partition file of each client."""

    model_config = ConfigDict(strict=True)
    train: _RowNumbers
    validation: _RowNumbers
    test: _RowNumbers


class _Saved(BaseModel):
    """What must stand in a partition file beside format, version and data."""

    model_config = ConfigDict(strict=True)
    own_validation: bool
    own_test: bool
    clients: dict[str, _SavedClient]


def _client_rows(saved: _SavedClient) -> ClientRows:
    train, validation, test = (np.sort(np.array(getattr(saved, split), dtype=np.int64)) for split in SPLITS)
    return ClientRows(train, validation, test)


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
        if size is None:
            raise DataError(
                f"{path} has row numbers of a {table} split of its own, and the data has none; use the data it was "
                "made for, or write it again with fedsa data --save"
            )
        if rows.max() >= size:
            raise DataError(
                f"{path}: row number {rows.max()} is outside the {table} of {counted(size, 'row')}; "
                "write it again with fedsa data --save"
            )
        if len(np.unique(rows)) < len(rows):
            raise DataError(f"{path}: rows of the {table} are given out twice; write it again with fedsa data --save")
