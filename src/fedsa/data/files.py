"""Read tables with the ``datasets`` library: a file, a folder, a folder per client, the hub.

Only CSV, TSV, JSON, Parquet, Arrow and folders of images are read: no format here can carry code.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import logging
import os
import re
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsa.data.merging import merge_tables
from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["CLIENT", "expanded", "is_local", "load_client_files", "load_hub", "load_local"]

DOMAIN = "domain"
"""The column that names the domain of images that lie in folders DOMAIN/CLASS."""

CLIENT = "client"
"""The column that names the client where each client has a file of its own."""

_FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
_ENDINGS = ", ".join(_FORMATS) + ", each also with .gz; or a folder of images"
_SAFE_BUILDERS = {"csv", "json", "parquet", "arrow", "imagefolder"}


def expanded(path: str) -> Path:
    """Return the path with ``~`` replaced; unlike Path.expanduser it leaves the ``~`` of an unknown user as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def is_local(path: str) -> bool:
    """Return whether ``path`` exists here; false means that it can only be a name on the hub.

    Raises:
        DataError: it does not exist and looks like a path, not like a name on the hub.
    """
    place = expanded(path)
    if place.exists():
        return True
    hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path) is not None
    if hub_name and _ending(place) not in _FORMATS and not ("/" in path and place.parent.is_dir()):
        return False
    raise DataError(f"no file or folder {path}{_near_files(place)}")


def _near_files(place: Path) -> str:
    folder = place.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    missing = place.relative_to(folder).parts[0] if place != folder else ""
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(missing, entries, n=3)
    if close:
        return f"; in {folder} there is {', '.join(close)}"
    if not entries:
        return f"; {folder} is empty"
    shown = ", ".join(entries[:8]) + (f" and {len(entries) - 8} more" if len(entries) > 8 else "")
    return f"; {folder} has {shown}"


def load_local(place: Path, splits: Sequence[str], *, name: str | None = None) -> dict[str, datasets.Dataset]:
    """Return the splits of a local file, or of a folder of files in the hub's own format.

    Args:
        place: a file (its one split is ``train``) or a folder (splits by file and folder names or its README).
        splits: the splits to return, each as ``datasets`` writes them (``train``, ``train[:1000]``).
        name: the configuration, where a folder's README has several.

    Raises:
        DataError: a file that is empty, malformed or of another kind, or an unknown split or configuration.
    """
    if place.is_dir():
        if (place / "state.json").exists() or (place / "dataset_dict.json").exists():
            raise DataError(
                f"{place} was written by save_to_disk, which is not the hub's format; write it with "
                "Dataset.to_parquet('train.parquet') into a folder and give that folder"
            )
        return {
            split: _with_domains(table, place)
            for split, table in _build(str(place), str(place), splits, name=name).items()
        }
    if name is not None:
        raise DataError(f"data.name goes with a folder or hub data; {place} is one file: leave data.name out")
    if _ending(place) not in _FORMATS:
        raise DataError(f"{place}: files of this kind are not read; known endings: {_ENDINGS}")
    if not place.stat().st_size:
        raise DataError(f"{place} is empty; it needs a header and rows")
    builder, options = _FORMATS[_ending(place)]
    return _build(builder, str(place), splits, data_files=[str(place)], **options)


def load_hub(
    path: str, splits: Sequence[str], *, name: str | None = None, revision: str | None = None
) -> dict[str, datasets.Dataset]:
    """Return the splits of a data set on the hub (or of its copy in the cache).

    Args:
        path: its name, ``owner/name``.
        splits: the splits to return.
        name: its configuration.
        revision: a branch, tag or commit.

    Raises:
        DataError: there is no such data set, the hub cannot be reached, or its files are of another kind.
    """
    from datasets.exceptions import DatasetNotFoundError

    try:
        return _build(path, path, splits, name=name, revision=revision)
    except (DatasetNotFoundError, ConnectionError) as error:
        if isinstance(error, DatasetNotFoundError):
            reason = "the hub has no such data set, or it needs a login (hf auth login)"
        else:
            reason = f"the hub could not be reached ({_reason(error)})"
        folder = Path.cwd()
        raise DataError(
            f"no data set {path!r}: there is no such file or folder in {folder}, and {reason}; "
            "check the name, or give a local file or folder"
        ) from None


def load_client_files(folder: Path, splits: Sequence[str], *, name: str | None = None) -> dict[str, datasets.Dataset]:
    """Return the splits of a folder that has one file or one sub-folder per client, with the client's name as column.

    Args:
        folder: its entries are the clients; an entry's name without its ending is the client's id. Hidden files,
            README and LICENSE are passed over.
        splits: the splits to return; every client must have each.
        name: the configuration, for sub-folders whose README has several.

    Raises:
        DataError: not a folder, no client in it, two entries with one id, a file that cannot be read, a column
            ``client`` that says something else, or clients whose columns or types differ.

    Cost: about 20 ms per client when its file is read for the first time.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is one file; partition.kind = 'files' needs a folder with a file per client")
    entries = _client_entries(folder)
    tables: dict[str, dict[str, datasets.Dataset]] = {split: {} for split in splits}
    names: dict[str, str] = {}
    for client, entry in entries.items():
        names[client] = entry.name
        for split, table in load_local(entry, splits, name=name if entry.is_dir() else None).items():
            tables[split][client] = _without_client_column(table, client, entry)
    with _quiet():
        return {split: merge_tables(by_client, names, CLIENT, f"{folder}") for split, by_client in tables.items()}


def _client_entries(folder: Path) -> dict[str, Path]:
    clients: dict[str, Path] = {}
    strange: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "README", "LICENSE")):
            continue
        if not (entry.is_dir() or _ending(entry) in _FORMATS):
            strange.append(entry.name)
            continue
        client = entry.name if entry.is_dir() else _stem(entry)
        if client in clients:
            raise DataError(
                f"{folder}: {clients[client].name} and {entry.name} would both be client {client!r}; rename one"
            )
        clients[client] = entry
    if strange:
        raise DataError(
            f"{folder}: no client can be read from {', '.join(strange)}; known endings: {_ENDINGS}. "
            "Convert them, or move them out of the folder"
        )
    if not clients:
        raise DataError(f"{folder} has no file or sub-folder for a client; known endings: {_ENDINGS}")
    return clients


def _without_client_column(table: datasets.Dataset, client: str, entry: Path) -> datasets.Dataset:
    if CLIENT not in table.column_names:
        return table
    others = sorted({str(value) for value in table[CLIENT]} - {client})
    if others:
        raise DataError(
            f"{entry} has a column {CLIENT!r} of its own that says {others[0]!r} and not {client!r}, the file's name; "
            "rename that column, or use partition.kind = 'column'"
        )
    return table.remove_columns(CLIENT)


def _with_domains(table: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Return a folder's rows; of images that lie in DOMAIN/CLASS/, with a column ``domain``.

    Args:
        table: what ``datasets`` makes of the folder: for images, ``label`` is the name of the innermost folder.
        folder: where it is; images of a split may lie in a folder of its name.
    """
    import datasets

    image = next((name for name, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if image is None or DOMAIN in table.column_names or "label" not in table.column_names:
        return table
    plain = table.cast_column(image, datasets.Image(decode=False))
    if plain[0][image]["bytes"] is not None:
        return table
    root, split = folder.resolve(), str(table.split)
    places = [Path(cell["path"]).resolve().relative_to(root).parts[:-2] for cell in plain[image][:]]
    domains = [place[1:] if place[:1] == (split,) else place for place in places]
    if {len(each) for each in domains} != {1}:
        return table
    return table.add_column(DOMAIN, [each[0] for each in domains])


def _ending(place: Path) -> str:
    suffixes = place.suffixes
    if suffixes[-1:] == [".gz"]:
        suffixes = suffixes[:-1]
    return suffixes[-1].lower() if suffixes else ""


def _stem(place: Path) -> str:
    return Path(place.name.removesuffix(".gz")).stem


def _build(
    path: str,
    shown: str,
    splits: Collection[str],
    *,
    name: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> dict[str, datasets.Dataset]:
    """Return splits through a builder of ``datasets``, with its failures turned into DataErrors."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    # It tells the hub of every file that it loads, local ones too, and waits for the answer.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    with _quiet():
        try:
            builder = datasets.load_dataset_builder(path, name=name, revision=revision, **options)
            kind = type(builder).__module__.rpartition(".")[2]
            if kind not in _SAFE_BUILDERS:
                raise DataError(f"{shown}: files of kind {kind!r} are not read; known endings: {_ENDINGS}")
            builder.download_and_prepare()
        except (DataError, DatasetNotFoundError, ConnectionError):
            raise
        except FileNotFoundError:
            raise DataError(f"{shown} has no data files; known endings: {_ENDINGS}") from None
        except Exception as error:
            reason = _reason(error)
            _release(error)
            raise DataError(f"{shown} cannot be read: {reason}") from None
        return {split: _split(builder, split, shown) for split in splits}


def _split(builder: Any, split: str, shown: str) -> datasets.Dataset:
    known = builder.info.splits or {}
    if split in known and not known[split].num_examples:
        raise DataError(f"{shown}: split {split!r} has no rows; add rows, or name another split in [data]")
    try:
        return builder.as_dataset(split=split)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{shown}: no split {split!r} ({_reason(error)}); the splits are: {', '.join(known)}") from None


def _reason(error: BaseException) -> str:
    """Return the first line of the first cause: the one that names the place in the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _release(error: BaseException | None) -> None:
    """Close the files that a failed reader of ``datasets`` left open, which would warn at some later moment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        gc.collect()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bars and logs of ``datasets``, and leave them as they were."""
    import datasets
    from datasets.utils.logging import get_verbosity, set_verbosity

    undo: list[Callable[[], None]] = []
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        undo.append(datasets.enable_progress_bars)
    verbosity = get_verbosity()
    set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(verbosity)
        for step in undo:
            step()
