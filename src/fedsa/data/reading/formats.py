"""The formats of files, by their endings. A new format is a reader in a file beside this one and a line in `_FORMATS`.

Only formats that can carry no code are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from fedsa.data.reading.base import FileRows, Wanted
from fedsa.data.reading.json_rows import read_json
from fedsa.data.reading.separated import read_separated
from fedsa.data.reading.stored import read_arrow, read_excel, read_parquet
from fedsa.errors import DataError
from fedsa.texts.words import brief

__all__ = ["ENDINGS", "NOT_ROWS", "describes_data", "in_shape", "is_known", "kind_of", "read_file", "without_ending"]

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
ENDINGS = ", ".join(_FORMATS) + "; text formats also with .gz; or a folder of images"
"""The known endings, for messages."""

NOT_ROWS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""Files of the hub's format that hold no rows."""


def kind_of(place: Path | PurePosixPath) -> str | None:
    """The kind of table that a file's ending stands for: CSV, JSON, Parquet, Arrow or Excel; None: unknown."""
    kind = _FORMATS.get(_ending(place), (None,))[0]
    return None if place.suffix.lower() == ".gz" and kind not in _PACKED else kind


def is_known(place: Path) -> bool:
    """Whether a file's name has one of the known endings."""
    return _ending(place) in _FORMATS


def read_file(place: Path, wanted: Wanted) -> FileRows:
    """Read the rows of one file, by the format that its ending names.

    Raises:
        DataError: the file is empty, cannot be opened, or is not what its ending says.
    """
    try:
        if not place.stat().st_size:
            raise DataError(f"{place} is empty; it needs a header and rows")
        rows = _FORMATS[_ending(place)][1](place, wanted)
        cut = [name for name in rows.table.column_names if "\0" in name]  # Arrow ends a name there
        if cut:
            raise DataError(
                f"{place}: the name of a column holds a zero character ({brief(cut[0])}): rename it, or give the right "
                "data.encoding"
            )
        return in_shape(rows, wanted, place)
    except OSError as error:
        raise DataError(f"{place} cannot be read: {error.strerror or error}") from None


def in_shape(rows: FileRows, wanted: Wanted, place: Path) -> FileRows:
    """Return a file's rows in the shape that is wanted, if one is.

    Raises:
        DataError: they do not fit it.
    """
    if wanted.shape is None:
        return rows
    import datasets

    table, unread, what = wanted.shape(
        rows.table, lambda row: f"{place}, {rows.unit.format(rows.places[row])}", str(place), rows.unread
    )
    features = None
    if rows.features is not None:
        known = {name: rows.features[name] for name in table.column_names if name not in wanted.shape.columns}
        features = datasets.Features({**known, **dict.fromkeys(wanted.shape.columns, datasets.Value("string"))})
    return replace(
        rows,
        table=table,
        unread=tuple(dict.fromkeys((*rows.unread, *unread))),
        features=features,
        remarks={**rows.remarks, "shape": what},
    )


def describes_data(name: Path | PurePosixPath) -> bool:
    """Whether a file only describes the data: a README, a licence, the hub's own files."""
    return name.name in NOT_ROWS or (
        kind_of(name) is None and name.name.upper().startswith(("README", "LICENSE", "LICENCE"))
    )


def _ending(place: Path | PurePosixPath) -> str:
    suffixes = place.suffixes
    if suffixes[-1:] == [".gz"]:
        suffixes = suffixes[:-1]
    return suffixes[-1].lower() if suffixes else ""


def without_ending(place: Path) -> str:
    """The name of a file without its endings: ``west`` of ``west.csv.gz``."""
    return Path(place.name.removesuffix(".gz")).stem
