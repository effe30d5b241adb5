"""Load rows: packaged parts, local files and folders, one file per client, and data sets on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsa.data.packaged.newsgroups import read_newsgroups
from fedsa.data.packaged.sentiment import read_sentiment
from fedsa.data.packaged.squad_shifts import read_squad_shifts
from fedsa.data.reading.base import FROM_0, PLACE, Log, Places, Wanted
from fedsa.data.reading.client_files import CLIENT, load_client_files
from fedsa.data.reading.hub import load_hub
from fedsa.data.reading.local import load_local
from fedsa.data.reading.paths import expanded, is_local
from fedsa.data.reading.tables import Table, as_dataset
from fedsa.data.shapes import dataset_in_shape
from fedsa.errors import DataError, near
from fedsa.recipe import DataSettings
from fedsa.texts.words import counted

if TYPE_CHECKING:
    import datasets

__all__ = ["CLIENT", "Rows", "are_here", "class_names", "load_rows", "require_columns", "unreadable_clients"]

_PARTS: dict[str, tuple[Callable[[Path], dict[str, datasets.Dataset]], tuple[str, ...]]] = {
    "newsgroups": (read_newsgroups, ("train", "test")),
    "sentiment": (lambda folder: {"train": read_sentiment(folder)}, ("train",)),
    "squad-shifts": (lambda folder: {"train": read_squad_shifts(folder)}, ("train",)),
}
"""What reads a packaged data set, and its splits."""


@dataclass(frozen=True)
class Rows:
    """The rows of a federation, before they are dealt to clients.

    Attributes:
        table: the rows that are dealt to the clients.
        validation: a split of its own for validation, where the recipe names one.
        test: a split of its own for test, where the recipe names one.
        notes: whole sentences on how the rows were read that a user should know.
        places: "table", "validation" or "test" to where its rows stand in files, where they come from files.
        unread: columns of the files that were not read.
    """

    table: datasets.Dataset
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    notes: tuple[str, ...] = ()
    places: Mapping[str, Places] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def load_rows(
    settings: DataSettings, wanted: Wanted | None = None, *, on_progress: Callable[..., None] | None = None
) -> Rows:
    """Return the rows that a recipe's ``[data]`` names.

    A path that exists here is always taken before a hub name, and so is a folder in ``$FEDSA_DATA`` of the data set's
    name. With ``partition.kind = "files"`` the path is a folder with one file or one sub-folder per client; the rows
    then have a column ``client`` with its name.
    Local files are read anew each time, and nothing is written (what comes from the hub is kept in the cache of
    ``datasets``); no code from the hub is run and nothing is unpickled.

    Args:
        settings: the recipe's ``[data]``.
        wanted: the columns that are read, and which of them are texts; None: all, as they are.
        on_progress: handed to the fetching of a packaged part.

    Raises:
        DataError: nothing is there, the hub cannot be reached, a file cannot be read, there are no rows, a split does
            not exist, or clients' files do not fit together.
        FetchError: a packaged part could not be fetched.
    """
    wanted = replace(wanted or Wanted(), separator=settings.separator, encoding=settings.encoding)
    log = Log()
    splits = {"table": settings.split, "validation": settings.validation_split, "test": settings.test_split}
    named = {part: split for part, split in splits.items() if split is not None}
    tables = _load(settings, list(named.values()), wanted, log, on_progress)
    found: dict[str, datasets.Dataset] = {}
    places: dict[str, Places] = {}
    for part, split in named.items():
        table = tables[split]
        table = as_dataset(table) if isinstance(table, Table) else table
        if not len(table):
            raise DataError(f"{settings.path}: split {split!r} has no rows; add rows, or name another split in [data]")
        if wanted.shape is not None and PLACE not in table.column_names:  # files come in the shape already
            where = f"{settings.path} ({split} rows)"
            table, read = dataset_in_shape(table, wanted.shape, partial(_row_of, where), where)
            log.sentences += [f"{settings.path}: {read.what}."] if part == "table" else []
        if PLACE in table.column_names:
            places[part] = Places(log.files, np.asarray(table.with_format("numpy")[PLACE][:], dtype=np.int64))
            table = table.remove_columns(PLACE)
        found[part] = table
    return Rows(found["table"], found.get("validation"), found.get("test"), log.notes(), places, log.unread)


def _row_of(where: str, row: int) -> str:
    return f"{where}, {FROM_0.format(row)}"


def _load(
    settings: DataSettings,
    splits: Sequence[str],
    wanted: Wanted,
    log: Log,
    on_progress: Callable[..., None] | None,
) -> Mapping[str, Table | datasets.Dataset]:
    from fedsa.packages.parts import PREFIX

    path, by_file = settings.path, settings.partition.kind == "files"
    part = path.startswith(PREFIX)
    local = not part and is_local(path)
    if settings.revision is not None and (part or local):
        raise DataError(f"data.revision goes with hub data only; {path} is not on the hub: leave data.revision out")
    here = None if part or local else _stand_in(path, settings.name)
    if by_file and not local and here is None:
        raise DataError(
            f"{path}: partition.kind = 'files' needs a local folder with one file or sub-folder per client; "
            "use kind = 'column' for data that has a column naming the client"
        )
    if part:
        if settings.name is not None:
            raise DataError(f"data.name goes with hub data and its local copies; {path} has none: leave data.name out")
        return _load_part(path.removeprefix(PREFIX), splits, on_progress)
    if by_file:
        leave_out = settings.partition.leave_out_unreadable
        folder, name = (expanded(path), settings.name) if here is None else (here, None)
        return load_client_files(folder, splits, name=name, wanted=wanted, log=log, leave_out_unreadable=leave_out)
    if local:
        return load_local(expanded(path), splits, name=settings.name, wanted=wanted, log=log)
    if here is not None:
        if on_progress is not None:
            on_progress(f"reading {here} in place of {path} on the hub")
        return load_local(here, splits, wanted=wanted, log=log)
    return load_hub(path, splits, name=settings.name, revision=settings.revision, wanted=wanted, log=log)


def unreadable_clients(settings: DataSettings, wanted: Wanted) -> dict[str, str]:
    """What is wrong with the files of a folder that has one per client: all of them, not the first.

    Args:
        settings: the recipe's ``[data]``, with ``partition.kind = "files"`` and a local path.
        wanted: the columns that are read.

    Returns:
        The name of each file or folder from which no client can be read, and why.
    """
    wanted = replace(wanted, separator=settings.separator, encoding=settings.encoding)
    log = Log()
    splits = [split for split in (settings.split, settings.validation_split, settings.test_split) if split]
    with suppress(DataError):  # no client is left, or those that are do not fit together: reading the rows tells it
        here = None if is_local(settings.path) else _stand_in(settings.path, settings.name)
        folder, name = (expanded(settings.path), settings.name) if here is None else (here, None)
        load_client_files(folder, splits, name=name, wanted=wanted, log=log, leave_out_unreadable=True)
    return log.left_out


def are_here(settings: DataSettings) -> bool:
    """Return whether the rows can be read without fetching anything."""
    from fedsa.packages.parts import PREFIX, is_cached

    if settings.path.startswith(PREFIX):
        return is_cached(settings.path.removeprefix(PREFIX))
    try:
        return is_local(settings.path) or _stand_in(settings.path, settings.name) is not None
    except DataError:
        return False


def _stand_in(path: str, name: str | None) -> Path | None:
    """Return the folder in ``$FEDSA_DATA`` that stands for a data set on the hub, if there is one.

    ``owner/name`` with a configuration is ``name/CONFIGURATION`` there, or ``name`` where that has no folders;
    capitals, - and _ do not matter. ``NAME_128`` stands for ``name`` too: its images, made smaller.
    """
    if not os.environ.get("FEDSA_DATA"):
        return None
    place = _folder(Path(os.environ["FEDSA_DATA"]).expanduser(), path.rpartition("/")[2])
    if place is None or name is None or not any(entry.is_dir() for entry in place.iterdir()):
        return place
    return _folder(place, name)


def _folder(parent: Path, name: str) -> Path | None:
    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    entries = [entry for entry in sorted(parent.iterdir()) if entry.is_dir()] if parent.is_dir() else []
    same = [entry for entry in entries if plain(entry.name) == plain(name)]
    smaller = [entry for entry in entries if plain(re.sub(r"_\d+$", "", entry.name)) == plain(name)]
    return next(iter(same + smaller), None)


def _load_part(
    name: str, splits: Collection[str], on_progress: Callable[..., None] | None
) -> dict[str, datasets.Dataset]:
    from fedsa.packages.parts import PREFIX, part_folder

    if name not in _PARTS:
        raise DataError(f"no packaged data set {name!r}: {near(name, _PARTS)}")
    read, known = _PARTS[name]
    unknown = sorted(set(splits) - {*known})
    if unknown:
        raise DataError(f"{PREFIX}{name}: no split {', '.join(map(repr, unknown))}; the splits are: {', '.join(known)}")
    return read(part_folder(name, on_progress=on_progress))


def require_columns(table: datasets.Dataset, names: Sequence[str], where: str, unread: Sequence[str] = ()) -> None:
    """Check that a table has columns.

    Args:
        table: the rows.
        names: the columns it must have.
        where: what the rows are, for the message (a path and a split).
        unread: columns that its files have beside these.

    Raises:
        DataError: with every column that is missing.
    """
    known = [*table.column_names, *unread]
    missing = [name for name in dict.fromkeys(names) if name not in table.column_names]
    if missing:
        hints = "".join(f"\n  {name!r}: {near(name, known)}" for name in missing)
        count = counted(len(missing), "column is", "columns are")
        raise DataError(f"{where}: {count} missing:{hints}\nthe columns are: {', '.join(known)}")


def class_names(table: datasets.Dataset, column: str, names: Sequence[str] | None, where: str) -> list[str] | None:
    """Return the class names in order of their number: the recipe's, else those stored with the data, else none.

    Args:
        table: the rows.
        column: the label column, which must exist.
        names: the recipe's ``task.labels``.
        where: what the rows are, for the message.

    Raises:
        DataError: the recipe and the data name the same classes in another order, or another number of classes.
    """
    stored: Any = getattr(table.features[column], "names", None)
    if stored is None or names is None:
        return list(names) if names is not None else (list(stored) if stored is not None else None)
    reordered = sorted(names) == sorted(stored) and list(names) != list(stored)
    if reordered or len(names) != len(stored):
        raise DataError(
            f"{where}: task.labels = {list(names)} does not fit the classes stored with column {column!r}, "
            f"{list(stored)}: give as many names, in the order of their number, or leave task.labels out"
        )
    return list(names)
