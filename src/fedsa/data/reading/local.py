"""Read a local file, or a folder of files in the hub's format.

Local files are read anew each time, by their literal names: nothing is taken from a cache, and no character of a path
has a special meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from fedsa.data.reading.base import PLACE, Log, Wanted, some
from fedsa.data.reading.formats import ENDINGS, NOT_ROWS, describes_data, kind_of, read_file
from fedsa.data.reading.hub_card import configured_files, read_card, stored_classes, with_classes
from fedsa.data.reading.listing import files_of, splits_of
from fedsa.data.reading.pictures import METADATA, is_picture, read_pictures
from fedsa.data.reading.splits import chosen_splits
from fedsa.data.reading.tables import Table, merge_tables
from fedsa.errors import DataError

__all__ = ["load_local"]


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
    if kind_of(place) is None:
        raise DataError(f"{place}: files of this kind are not read; known endings: {ENDINGS}")
    return chosen_splits(splits, {"train": lambda: _load_file(place, wanted, log, shown or place.name)}, str(place))


def _load_file(place: Path, wanted: Wanted, log: Log, shown: str) -> Table:
    import datasets

    rows = read_file(place, wanted)
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
    card = read_card(folder)
    by_split = configured_files(folder, card, name, names) if name or card.get("configs") else None
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
    classes = stored_classes(card, name)
    return {split: with_classes(table, classes) for split, table in chosen_splits(splits, loaders, str(folder)).items()}


def _data_files(folder: Path, names: Sequence[PurePosixPath], log: Log, shown: str | None) -> list[PurePosixPath]:
    """Return the files that hold rows: all tables of one kind, or pictures and what describes them.

    Raises:
        DataError: there are none, or tables of several kinds.
    """
    tables = [each for each in names if kind_of(each) and each.name not in NOT_ROWS]
    pictures = [each for each in names if is_picture(each)]
    if len(pictures) >= len(tables) and pictures:
        data = [*pictures, *(each for each in tables if each.name in METADATA)]
    else:
        data = tables
        kinds = {
            kind: str(next(each for each in tables if kind_of(each) == kind))
            for kind in sorted({kind_of(each) or "" for each in tables})
        }
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} ({example})" for kind, example in kinds.items())
            raise DataError(
                f"{folder} holds tables of several kinds, {listed}, perhaps the same rows twice: keep one kind there"
            )
    others = [str(each) for each in sorted({*names} - {*data}) if not describes_data(each)]
    if not data:
        found = f" (there is {some(others)})" if others else ""
        raise DataError(f"{folder} has no data files{found}; known endings: {ENDINGS}")
    if others:
        log.sentences.append(f"{shown or folder.name}: not read, as other files than the data: {some(others)}.")
    return sorted(data)


def _load_files(
    folder: Path, names: Sequence[PurePosixPath], split: str, wanted: Wanted, log: Log, shown: str | None
) -> Table:
    def title(name: PurePosixPath) -> str:
        return f"{shown}/{name}" if shown else str(name)

    if any(is_picture(name) for name in names):
        return Table(*read_pictures(folder, names, split, wanted, log, title, read_file))
    tables = {str(name): _load_file(folder / name, wanted, log, title(name)) for name in names}
    return merge_tables(tables, {name: name for name in tables}, str(folder), unread=log.unread)
