"""Find and read tables: a file, a folder, a folder per client, the hub.

Only CSV, TSV, JSON, Parquet, Arrow, Excel and folders of images are read: no format here can carry code. Local files
are read anew each time, by their literal names: nothing is taken from a cache, no character of a path has a meaning.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fedsa.data.cells import as_texts
from fedsa.data.json_rows import read_json
from fedsa.data.listing import entries_of, files_of, splits_of
from fedsa.data.merging import Table, merge_tables
from fedsa.data.pictures import METADATA, is_picture, read_pictures
from fedsa.data.reading import PLACE, FileRows, Log, Wanted, some
from fedsa.data.separated import read_separated
from fedsa.data.stored import read_arrow, read_excel, read_parquet
from fedsa.errors import DataError, MissingExtraError, near

if TYPE_CHECKING:
    import datasets

__all__ = [
    "CLIENT",
    "as_dataset",
    "expanded",
    "is_local",
    "load_client_files",
    "load_hub",
    "load_local",
    "quiet_datasets",
]

CLIENT = "client"
"""The column that names the client where each client has a file of its own."""

_FORMATS: dict[str, tuple[str, Callable[[Path, Wanted], FileRows]]] = {
    ".csv": ("CSV", partial(read_separated, separator=",")),
    ".tsv": ("CSV", partial(read_separated, separator="\t")),
    ".json": ("JSON", partial(read_json, lines=False)),
    ".jsonl": ("JSON", partial(read_json, lines=True)),
    ".ndjson": ("JSON", partial(read_json, lines=True)),
    ".parquet": ("Parquet", read_parquet),
    ".arrow": ("Arrow", read_arrow),
    ".xlsx": ("Excel", read_excel),
}
"""Endings, the kind of table that they stand for, and its reader."""

_PACKED = {"CSV", "JSON"}
_ENDINGS = ", ".join(_FORMATS) + "; text formats also with .gz; or a folder of images"
_BESIDE = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""Files of the hub's format that are no rows."""

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


def load_local(
    place: Path,
    splits: Sequence[str],
    *,
    name: str | None = None,
    wanted: Wanted | None = None,
    log: Log | None = None,
    shown: str | None = None,
) -> dict[str, Table]:
    """Return the splits of a local file, or of a folder of files in the hub's own format, with their `PLACE`.

    Args:
        place: a file (its one split is ``train``) or a folder (splits by file and folder names or its README).
        splits: the splits to return, each as ``datasets`` writes them (``train``, ``train[:1000]``).
        name: the configuration, where a folder's README has several.
        wanted: what is read; None: all.
        log: keeps what is to be said of the files.
        shown: the place's name in messages.

    Raises:
        DataError: a file that is empty, malformed or of another kind, or an unknown split or configuration.
    """
    wanted, log = wanted or Wanted(), log or Log()
    if place.is_dir():
        return _load_folder(place, splits, name, wanted, log, shown)
    if name is not None:
        raise DataError(f"data.name goes with a folder or hub data; {place} is one file: leave data.name out")
    if _kind(place) is None:
        raise DataError(f"{place}: files of this kind are not read; known endings: {_ENDINGS}")
    return _chosen(splits, {"train": lambda: _load_file(place, wanted, log, shown or place.name)}, str(place))


def _kind(place: Path | PurePosixPath) -> str | None:
    """Return the kind of table that a file's ending stands for."""
    kind = _FORMATS.get(_ending(place), (None,))[0]
    return None if place.suffix.lower() == ".gz" and kind not in _PACKED else kind


def _read(place: Path, wanted: Wanted) -> FileRows:
    try:
        if not place.stat().st_size:
            raise DataError(f"{place} is empty; it needs a header and rows")
        return _FORMATS[_ending(place)][1](place, wanted)
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror or error}") from None


def _load_file(place: Path, wanted: Wanted, log: Log, shown: str) -> Table:
    import datasets

    rows = _read(place, wanted)
    table = log.add(rows, shown)
    features = dict(rows.features or datasets.Features.from_arrow_schema(table.schema))
    return Table(table, {**features, PLACE: datasets.Value("int64")})


def _load_folder(
    folder: Path, splits: Sequence[str], name: str | None, wanted: Wanted, log: Log, shown: str | None
) -> dict[str, Table]:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        raise DataError(
            f"{folder} was written by save_to_disk, which is not the hub's format; write it with "
            "Dataset.to_parquet('train.parquet') into a folder and give that folder"
        )
    names = [PurePosixPath(path.relative_to(folder).as_posix()) for path in files_of(folder)]
    card = _card(folder)
    by_split = _configured(folder, card, name, names) if name or card.get("configs") else None
    names = _data_files(folder, names if by_split is None else sorted(set().union(*by_split.values())), log, shown)
    if by_split is None:
        by_split = splits_of(names)
        left = sorted(set(names) - set().union(*by_split.values()))
        if left and any(is_picture(each) for each in left):
            by_split = {"train": names}  # then it is a class that has the name of a split
        elif left:
            log.sentences.append(
                f"{shown or folder.name}: not read, since their names say no split while those of others do: "
                f"{some(map(str, left))}."
            )
    by_split = {split: [each for each in files if each in set(names)] for split, files in by_split.items()}
    loaders = {
        split: partial(_load_files, folder, files, split, wanted, log, shown) for split, files in by_split.items()
    }
    classes = _stored_classes(card, name)
    return {split: _with_classes(table, classes) for split, table in _chosen(splits, loaders, str(folder)).items()}


def _data_files(folder: Path, names: Sequence[PurePosixPath], log: Log, shown: str | None) -> list[PurePosixPath]:
    """Return the files that hold rows: all tables of one kind, or pictures and what describes them.

    Raises:
        DataError: there are none, or tables of several kinds.
    """
    tables = [each for each in names if _kind(each) and each.name not in _BESIDE]
    pictures = [each for each in names if is_picture(each)]
    if len(pictures) >= len(tables) and pictures:
        data = [*pictures, *(each for each in tables if each.name in METADATA)]
    else:
        data = tables
        kinds = {
            kind: str(next(each for each in tables if _kind(each) == kind))
            for kind in sorted({_kind(each) or "" for each in tables})
        }
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} ({example})" for kind, example in kinds.items())
            raise DataError(
                f"{folder} holds tables of several kinds, {listed}, perhaps the same rows twice: keep one kind there"
            )
    others = [str(each) for each in sorted({*names} - {*data}) if not _says_nothing(each)]
    if not data:
        found = f" (there is {some(others)})" if others else ""
        raise DataError(f"{folder} has no data files{found}; known endings: {_ENDINGS}")
    if others:
        log.sentences.append(f"{shown or folder.name}: not read, as other files than the data: {some(others)}.")
    return sorted(data)


def _says_nothing(name: Path | PurePosixPath) -> bool:
    """Return whether a file only describes the data: a README, a licence, the hub's own files."""
    return name.name in _BESIDE or (
        _kind(name) is None and name.name.upper().startswith(("README", "LICENSE", "LICENCE"))
    )


def _load_files(
    folder: Path, names: Sequence[PurePosixPath], split: str, wanted: Wanted, log: Log, shown: str | None
) -> Table:
    def title(name: PurePosixPath) -> str:
        return f"{shown}/{name}" if shown else str(name)

    if any(is_picture(name) for name in names):
        return Table(*read_pictures(folder, names, split, wanted, log, title, _read))
    tables = {str(name): _load_file(folder / name, wanted, log, title(name)) for name in names}
    return merge_tables(tables, {name: name for name in tables}, str(folder), unread=log.unread)


def _chosen(splits: Sequence[str], loaders: Mapping[str, Callable[[], Table]], shown: str) -> dict[str, Table]:
    """Return splits, each by its name, a part of it (``train[:10%]``) or a sum of such; only what they name is read.

    Raises:
        DataError: there is no such split, or it has no rows.
    """
    import datasets
    import pyarrow as pa

    words = {word for split in splits for word in re.findall(r"\w+(?:\.\w+)*", split)}
    tables = {name: load() for name, load in loaders.items() if name in words}
    sizes = {name: len(tables[name].arrow) if name in tables else 0 for name in loaders}
    chosen = {}
    for split in splits:
        try:
            pieces = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            raise DataError(
                f"{shown}: no split {split!r} ({_reason(error)}); the splits are: {', '.join(loaders)}"
            ) from None
        parts = [tables[piece.splitname].arrow.slice(piece.from_, piece.to - piece.from_) for piece in pieces]
        features = tables[pieces[0].splitname].features
        whole = parts[0] if len(parts) == 1 else pa.concat_tables(part.select(list(features)) for part in parts)
        if not len(whole):
            raise DataError(f"{shown}: split {split!r} has no rows; add rows, or name another split in [data]")
        chosen[split] = Table(whole, features)
    return chosen


def _card(folder: Path) -> dict[str, Any]:
    """Return what a folder's README says of its data in the hub's own way.

    Raises:
        DataError: that part of it is not YAML.
    """
    from huggingface_hub import metadata_load

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        found = metadata_load(path)
    except Exception as error:  # whatever the YAML reader finds wrong
        raise DataError(f"{path}: its YAML header cannot be read ({_reason(error)}): mend or remove it") from None
    return found if isinstance(found, dict) else {}


def _configured(
    folder: Path, card: Mapping[str, Any], name: str | None, names: Sequence[PurePosixPath]
) -> dict[str, list[PurePosixPath]]:
    """Return the files of each split of a configuration that a README names."""
    from fsspec.utils import glob_translate

    listed = card.get("configs")
    configs = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    known = {str(each.get("config_name", "default")): each for each in configs}
    if name is None and len(known) > 1:
        name = next((title for title, each in known.items() if title == "default" or each.get("default")), None)
        if name is None:
            raise DataError(f"{folder} has several configurations: set data.name to one of {', '.join(known)}")
    if name is not None and name not in known:
        raise DataError(f"{folder} has no configuration {name!r}: {near(name, known)}" if known else
                        f"{folder} has no README.md that names configurations: leave data.name out")  # fmt: skip
    config = known[name] if name is not None else next(iter(known.values()))
    within = str(config.get("data_dir") or "").strip("/")
    patterns = config.get("data_files")
    if patterns is None:
        return splits_of([each for each in names if not within or str(each).startswith(f"{within}/")])
    if isinstance(patterns, list) and all(isinstance(each, dict) for each in patterns):
        by_split = {str(each.get("split")): each.get("path") for each in patterns}
    else:
        by_split = patterns if isinstance(patterns, dict) else {"train": patterns}
    found: dict[str, list[PurePosixPath]] = {}
    for split, given in by_split.items():
        texts = [str(each) for each in (given if isinstance(given, list) else [given])]
        texts = [f"{within}/{each}" if within else each for each in texts]
        shapes = [re.compile(glob_translate(each)) for each in texts]
        found[split] = [each for each in names if str(each) in texts or any(shape.match(str(each)) for shape in shapes)]
        if not found[split]:
            raise DataError(f"{folder / 'README.md'}: no file fits data_files of split {split!r}, {some(texts)}")
    return found


def _stored_classes(card: Mapping[str, Any], name: str | None) -> dict[str, list[str]]:
    """Return the names of classes that a README's ``dataset_info`` gives for columns of numbers."""
    infos = card.get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]
    own = [each for each in infos if isinstance(each, dict) and (name is None or each.get("config_name", name) == name)]
    features = own[0].get("features") if own else None
    classes = {}
    for each in features if isinstance(features, list) else []:
        kind = each.get("dtype") if isinstance(each, dict) else None
        if isinstance(kind, dict) and isinstance(names := (kind.get("class_label") or {}).get("names"), dict | list):
            classes[str(each.get("name"))] = [str(v) for v in (names.values() if isinstance(names, dict) else names)]
    return classes


def _with_classes(table: Table, classes: Mapping[str, list[str]]) -> Table:
    """Return a table whose columns of class numbers have the classes' names."""
    import datasets
    import pyarrow as pa

    arrow, features = table
    for column, names in classes.items():
        if column not in features or isinstance(features[column], datasets.ClassLabel):
            continue
        try:
            numbers = arrow[column].cast(pa.int64())
        except pa.ArrowInvalid:
            continue  # the names themselves
        if len(numbers) and max(numbers.to_pylist(), key=lambda each: each or 0) < len(names):
            arrow = arrow.set_column(arrow.column_names.index(column), column, numbers)
            features = {**features, column: datasets.ClassLabel(names=names)}
    return Table(arrow, features)


def load_hub(
    path: str,
    splits: Sequence[str],
    *,
    name: str | None = None,
    revision: str | None = None,
    wanted: Wanted | None = None,
    log: Log | None = None,
) -> dict[str, datasets.Dataset]:
    """Return the splits of a data set on the hub (or of its copy in the cache). CSV files are read as local ones are.

    Args:
        path: its name, ``owner/name``.
        splits: the splits to return.
        name: its configuration.
        revision: a branch, tag or commit.
        wanted: what is read of CSV files; None: all.
        log: keeps what is to be said of the files.

    Raises:
        DataError: there is no such data set, the hub cannot be reached, or its files are of another kind.
    """
    from datasets.exceptions import DatasetNotFoundError

    try:
        return _build(path, splits, name, revision, wanted or Wanted(), log or Log())
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
        raise failure or DataError(f"{folder} has no file or sub-folder for a client; known endings: {_ENDINGS}")
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
        missing = sorted((wanted.columns or frozenset()) - {*table.features, CLIENT})
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
        if not entry.is_dir() and _says_nothing(entry):
            continue
        if not (entry.is_dir() or _kind(entry)):
            strange.append(entry.name)
            continue
        client = entry.name if entry.is_dir() else _stem(entry)
        if client in clients:
            raise DataError(
                f"{folder}: {clients[client].name} and {entry.name} would both be client {client!r}; rename one"
            )
        clients[client] = entry
    if strange and log is None:
        raise DataError(
            f"{folder}: no client can be read from {some(strange)}; known endings: {_ENDINGS}. "
            "Convert them, move them out of the folder, or set data.partition.leave_out_unreadable = true"
        )
    if log is not None:
        log.left_out.update(dict.fromkeys(strange, "no known ending"))
    if not clients:
        raise DataError(f"{folder} has no file or sub-folder for a client; known endings: {_ENDINGS}")
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


def _ending(place: Path | PurePosixPath) -> str:
    suffixes = place.suffixes
    if suffixes[-1:] == [".gz"]:
        suffixes = suffixes[:-1]
    return suffixes[-1].lower() if suffixes else ""


def _stem(place: Path) -> str:
    return Path(place.name.removesuffix(".gz")).stem


def _build(
    path: str, splits: Sequence[str], name: str | None, revision: str | None, wanted: Wanted, log: Log
) -> dict[str, datasets.Dataset]:
    """Return splits through a builder of ``datasets``, with its failures turned into DataErrors."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    # It tells the hub of every file that it loads, and waits for the answer.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    with quiet_datasets():
        try:
            builder = datasets.load_dataset_builder(path, name=name, revision=revision)
            kind = type(builder).__module__.rpartition(".")[2]
            if kind not in _SAFE_BUILDERS:
                raise DataError(f"{path}: files of kind {kind!r} are not read; known endings: {_ENDINGS}")
            if kind == "csv":
                return _hub_csv(builder, path, splits, wanted, log)
            builder.download_and_prepare()
        except (DataError, DatasetNotFoundError, ConnectionError):
            raise
        except FileNotFoundError:
            raise DataError(f"{path} has no data files; known endings: {_ENDINGS}") from None
        except Exception as error:
            reason = _reason(error)
            _release(error)
            raise DataError(f"{path} cannot be read: {reason}") from None
        return {split: _split(builder, split, path) for split in splits}


def _hub_csv(builder: Any, path: str, splits: Sequence[str], wanted: Wanted, log: Log) -> dict[str, datasets.Dataset]:
    """Return splits of CSV files on the hub, read by their header as local ones: not with types that are guessed."""
    import datasets

    fetched = datasets.DownloadManager(dataset_name=builder.dataset_name).download_and_extract(
        builder.config.data_files
    )

    def load(split: str) -> Table:
        tables = {}
        for source, file in zip(map(str, builder.config.data_files[split]), fetched[split], strict=True):
            shown = source.rpartition("/")[2]
            table = log.add(read_separated(Path(file), wanted, builder.config.sep or ","), shown)
            tables[source] = Table(table, dict(datasets.Features.from_arrow_schema(table.schema)))
        return merge_tables(tables, {source: source for source in tables}, path, unread=log.unread)

    features = builder.info.features or {}
    classes = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    chosen = _chosen(splits, {str(split): partial(load, split) for split in fetched}, path)
    return {split: as_dataset(_with_classes(table, classes)) for split, table in chosen.items()}


def as_dataset(table: Table) -> datasets.Dataset:
    """Return a table as a data set in memory."""
    import datasets
    from datasets.fingerprint import generate_random_fingerprint

    features = datasets.Features(table.features)
    arrow = table.arrow.select(list(features)).cast(features.arrow_schema.remove_metadata())
    # a fingerprint of its own, else datasets hashes every byte to make one
    return datasets.Dataset(
        arrow, info=datasets.DatasetInfo(features=features), fingerprint=generate_random_fingerprint()
    )


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
def quiet_datasets() -> Iterator[None]:
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
