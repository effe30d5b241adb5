"""The YAML header of a data set's README, in the hub's format: configurations, their files, and names of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fedsa.data.reading.base import some
from fedsa.data.reading.listing import splits_of
from fedsa.data.reading.splits import first_reason
from fedsa.data.reading.tables import Table
from fedsa.errors import DataError, near

__all__ = ["configured_files", "read_card", "stored_classes", "with_classes"]


def read_card(folder: Path) -> dict[str, Any]:
    """The YAML header of a folder's README; empty where the folder or the README has none.

    Raises:
        DataError: the header is not YAML.
    """
    from huggingface_hub import metadata_load

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        found = metadata_load(path)
    except Exception as error:  # whatever the YAML reader finds wrong
        raise DataError(f"{path}: its YAML header cannot be read ({first_reason(error)}): mend or remove it") from None
    return found if isinstance(found, dict) else {}


def configured_files(
    folder: Path, card: Mapping[str, Any], name: str | None, names: Sequence[PurePosixPath]
) -> dict[str, list[PurePosixPath]]:
    """The files of each split, by a configuration of a README's header.

    Args:
        folder: the folder of the README, for messages.
        card: the README's header.
        name: the configuration; None: the only one, or the default one.
        names: all files of the folder.

    Raises:
        DataError: the configuration is unknown or has to be named, or no file fits one of its splits.
    """
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


def stored_classes(card: Mapping[str, Any], name: str | None) -> dict[str, list[str]]:
    """Columns of class numbers and the names of their classes, from the ``dataset_info`` of a README's header.

    Args:
        card: the README's header.
        name: the configuration; None: the first one.
    """
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


def with_classes(table: Table, classes: Mapping[str, list[str]]) -> Table:
    """A table that knows the names of the classes in its columns of class numbers."""
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
