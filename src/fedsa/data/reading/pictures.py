"""Folders of pictures: classes and domains are names of folders, or columns of a file ``metadata.*``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fedsa.data.reading.base import PLACE, FileRows, Log, Wanted, some
from fedsa.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DOMAIN", "METADATA", "is_picture", "read_pictures"]

DOMAIN = "domain"
"""The column that names the domain of images that lie in folders DOMAIN/CLASS."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of the files that say more of the pictures beside them: their column ``file_name`` names the picture."""

_IMAGE, _LABEL, _FILE = "image", "label", "file_name"


def is_picture(name: PurePosixPath) -> bool:
    """Return whether a file's ending is one of a picture that can be opened."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return name.suffix.lower() in ImageFolder.EXTENSIONS


def read_pictures(
    folder: Path,
    names: Sequence[PurePosixPath],
    split: str,
    wanted: Wanted,
    log: Log,
    shown: Callable[[PurePosixPath], str],
    read: Callable[[Path, Wanted], FileRows],
) -> tuple[pa.Table, dict[str, object]]:
    """Return a table of pictures, which are not opened, and the types of its columns.

    Without a file ``metadata.*`` the columns are ``image``, ``label`` (the innermost folder's name, where all pictures
    lie in folders of one depth) and ``domain`` (the folder's around that, where there is just one).

    Args:
        folder: the data's.
        names: pictures and metadata files, relative to it.
        split: whose they are: a folder of its name is no class and no domain.
        wanted: what is read of the metadata.
        log: keeps the pictures' names, for messages.
        shown: a name as it stands in messages.
        read: reads a metadata file.

    Raises:
        DataError: a metadata file names a picture that is not there, or none at all.
    """
    import datasets
    import pyarrow as pa

    pictures = [name for name in names if is_picture(name)]
    metadata = [name for name in names if name.name in METADATA]
    columns: dict[str, list[str]] = {}
    if metadata:
        tables = [_described(folder, name, wanted, log, shown, read) for name in metadata]
        table = pa.concat_tables([table for table, _ in tables], promote_options="permissive")
        named = {name for _, own in tables for name in own}
        unnamed = [shown(name) for name in pictures if name not in named]
        if unnamed:
            log.sentences.append(f"Pictures that no {metadata[0].name} names are not read: {some(unnamed)}.")
        features = datasets.Features.from_arrow_schema(table.schema)
        return table, {**{name: features[name] for name in table.column_names}, _IMAGE: datasets.Image()}
    folders = [tuple(part for part in name.parts[:-1]) for name in pictures]
    folders = [each[1:] if each[:1] == (split,) else each for each in folders]
    depths = {len(each) for each in folders}
    if len(depths) == 1 and depths != {0}:
        columns[_LABEL] = [each[-1] for each in folders]
    if depths == {2}:
        columns[DOMAIN] = [each[0] for each in folders]
    codes = [len(log.files) + number << 32 for number in range(len(pictures))]
    log.files += [(shown(name), "") for name in pictures]
    table = pa.table(
        {_IMAGE: _cells([folder / name for name in pictures]), **columns, PLACE: pa.array(codes, pa.int64())}
    )
    types = {name: datasets.Value("string") for name in columns}
    return table, {_IMAGE: datasets.Image(), **types, PLACE: datasets.Value("int64")}


def _cells(paths: Sequence[Path]) -> pa.StructArray:
    """Return pictures as ``datasets`` stores them: by their paths."""
    import pyarrow as pa

    texts = pa.array([str(path) for path in paths], pa.string())
    return pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), texts], names=["bytes", "path"])


def _described(
    folder: Path,
    name: PurePosixPath,
    wanted: Wanted,
    log: Log,
    shown: Callable[[PurePosixPath], str],
    read: Callable[[Path, Wanted], FileRows],
) -> tuple[pa.Table, list[PurePosixPath]]:
    """Return the rows of a metadata file with their pictures, and the pictures' names."""
    columns = None if wanted.columns is None else wanted.columns | {_FILE}
    rows = read(folder / name, replace(wanted, columns=columns, texts=wanted.texts | {_FILE}))
    table = log.add(rows, shown(name))
    if _FILE not in table.column_names:
        raise DataError(f"{folder / name} needs a column {_FILE!r} that names each row's picture")
    named: list[PurePosixPath] = []
    for row, text in enumerate(table[_FILE].to_pylist()):
        picture = name.parent / (text or "")
        if (
            text is None
            or ".." in picture.parts
            or PurePosixPath(text).is_absolute()
            or not (folder / picture).is_file()
        ):
            raise DataError(
                f"{folder / name}, {rows.unit.format(rows.places[row])}: {_FILE} is {text!r}, and there is no "
                f"such picture below {folder / name.parent}: mend or remove the row"
            )
        named.append(picture)
    table = table.drop_columns([_FILE]).append_column(_IMAGE, _cells([folder / picture for picture in named]))
    return table, named
