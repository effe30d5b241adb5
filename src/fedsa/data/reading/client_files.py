"""Read a folder that has one file or one sub-folder per client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsa.data.reading.base import Log, Wanted, some
from fedsa.data.reading.cells import as_texts
from fedsa.data.reading.formats import ENDINGS, describes_data, kind_of, without_ending
from fedsa.data.reading.listing import entries_of
from fedsa.data.reading.local import load_local
from fedsa.data.reading.tables import Table, merge_tables
from fedsa.errors import DataError, MissingExtraError

__all__ = ["CLIENT", "load_client_files"]

CLIENT = "client"
"""The column that names the client where each client has a file of its own."""


def load_client_files(
    folder: Path,
    splits: Sequence[str],
    *,
    name: str | None = None,
    wanted: Wanted | None = None,
    log: Log | None = None,
    leave_out_unreadable: bool = False,
) -> dict[str, Table]:
    """Return the splits of a folder that has one file or one sub-folder per client, with the client's name as column.

    Args:
        folder: its entries are the clients; an entry's name without its ending is the client's id. Links are followed.
            Hidden entries, README and LICENSE are passed over.
        splits: the splits to return; every client must have each.
        name: the configuration, for sub-folders whose README has several.
        wanted: what is read; None: all.
        log: keeps what is to be said of the files.
        leave_out_unreadable: go on without a client whose file is empty, foreign or cannot be read, and say so.

    Raises:
        DataError: not a folder, no client in it, two entries with one id, a file that cannot be read, a column
            ``client`` that says something else, or clients whose columns or types differ.

    Cost: about 1 ms per client.
    """
    wanted, log = wanted or Wanted(), log or Log()
    if not folder.is_dir():
        raise DataError(f"{folder} is one file; partition.kind = 'files' needs a folder with a file per client")
    found: dict[str, dict[str, Table]] = {}
    names: dict[str, str] = {}
    failure: DataError | None = None
    for client, entry in _client_entries(folder, log if leave_out_unreadable else None).items():
        own = Log()
        own.files = log.files  # one numbering of files; what is to be said counts only if the client takes part
        try:
            tables = load_local(
                entry, splits, name=name if entry.is_dir() else None, wanted=wanted, log=own, shown=entry.name
            )
            if leave_out_unreadable:
                _require(tables, wanted, entry)
            found[client] = {split: _without_client_column(table, client, entry) for split, table in tables.items()}
        except MissingExtraError:
            raise
        except DataError as error:
            if not leave_out_unreadable:
                raise
            failure = error
            log.left_out[entry.name] = str(error).splitlines()[0]
            continue
        names[client] = entry.name
        log.join(own)
    if not found:
        raise failure or DataError(f"{folder} has no file or sub-folder for a client; known endings: {ENDINGS}")
    return {
        split: merge_tables(
            {client: tables[split] for client, tables in found.items()},
            names,
            f"{folder}",
            column=CLIENT,
            unread=log.unread,
        )
        for split in splits
    }


def _require(tables: Mapping[str, Table], wanted: Wanted, entry: Path) -> None:
    """Refuse a client's file without the columns that are read."""
    for table in tables.values():
        missing = sorted(wanted.needed - {*table.features, CLIENT})
        if missing:
            raise DataError(f"{entry} has no column {', '.join(map(repr, missing))}")


def _client_entries(folder: Path, log: Log | None) -> dict[str, Path]:
    """Return the clients' files and folders by their names.

    Args:
        folder: the clients'.
        log: keeps what no client can be read from; None: that is refused.
    """
    clients: dict[str, Path] = {}
    strange: list[str] = []
    for entry in entries_of(folder):
        if not entry.is_dir() and describes_data(entry):
            continue
        if not (entry.is_dir() or kind_of(entry)):
            strange.append(entry.name)
            continue
        client = entry.name if entry.is_dir() else without_ending(entry)
        if client in clients:
            raise DataError(
                f"{folder}: {clients[client].name} and {entry.name} would both be client {client!r}; rename one"
            )
        clients[client] = entry
    if strange and log is None:
        raise DataError(
            f"{folder}: no client can be read from {some(strange)}; known endings: {ENDINGS}. "
            "Convert them, move them out of the folder, or set data.partition.leave_out_unreadable = true"
        )
    if log is not None:
        log.left_out.update(dict.fromkeys(strange, "no known ending"))
    if not clients:
        raise DataError(f"{folder} has no file or sub-folder for a client; known endings: {ENDINGS}")
    return clients


def _without_client_column(table: Table, client: str, entry: Path) -> Table:
    if CLIENT not in table.features:
        return table
    texts = as_texts(table.arrow[CLIENT], CLIENT, lambda row: f"{entry}, row {row}")
    others = sorted({str(value) for value in texts.unique().to_pylist()} - {client})
    if others:
        raise DataError(
            f"{entry} has a column {CLIENT!r} of its own that says {others[0]!r} and not {client!r}, the file's name; "
            "rename that column, or use partition.kind = 'column'"
        )
    return Table(
        table.arrow.drop_columns([CLIENT]), {name: kind for name, kind in table.features.items() if name != CLIENT}
    )
