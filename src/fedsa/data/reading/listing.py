"""The files of a folder, taken literally: links are followed, names mean nothing but themselves and their split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from fedsa.errors import DataError

__all__ = ["entries_of", "files_of", "splits_of"]

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The splits, and the words for them in names of files and folders, as the hub has them."""

_BETWEEN = "[-._ 0-9]"
_SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}.*\..*")


def entries_of(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones.

    Raises:
        DataError: the folder cannot be read, a link leads nowhere, or something is neither a file nor a folder.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    for entry in entries:
        try:
            usual = entry.is_dir() or entry.is_file()
        except OSError:  # no right to look through a link
            usual = False
        if usual:
            continue
        if entry.is_symlink():
            raise DataError(f"{entry} is a link to {os.readlink(entry)}, which cannot be read: mend or remove the link")  # noqa: PTH115  # as it is written
        raise DataError(f"{entry} is neither a file nor a folder: move it out of {folder}")
    return entries


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted; hidden ones and those in folders like ``__MACOSX`` are left out.

    Raises:
        DataError: as `entries_of`, or a link leads back to a folder above it.
    """
    return list(_walk(folder, (folder.resolve(),)))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    for entry in entries_of(folder):
        if not entry.is_dir():
            yield entry
        elif not entry.name.startswith("__"):
            place = entry.resolve()
            if place in above:
                raise DataError(f"{entry} is a link to a folder that it lies in: remove the link")
            yield from _walk(entry, (*above, place))


def splits_of(names: Sequence[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Return the files of each split, by their names as the hub reads them; all are ``train`` where none says a split.

    Args:
        names: files, relative to the data's folder. First ``data/SPLIT-00000-of-00001.*`` counts, then folders' names
            (``test/``, ``my-test/``), then files' names (``test.csv``, ``test-1.csv``).

    Raises:
        DataError: the name of a file stands for two splits.

    >>> {split: list(map(str, files)) for split, files in splits_of([PurePosixPath("dev.csv")]).items()}
    {'validation': ['dev.csv']}
    """
    shards = {
        name: match["split"]
        for name in names
        if name.parent.name in ("data", "") and (match := _SHARD.fullmatch(name.name))
    }
    if shards:
        known = [*_SPLITS, *sorted(set(shards.values()) - {*_SPLITS})]
        grouped = {split: [name for name in names if shards.get(name) == split] for split in known}
        return {split: files for split, files in grouped.items() if files}
    for within_folders in (True, False):
        found: dict[str, list[PurePosixPath]] = {split: [] for split in _SPLITS}
        for name in names:
            words = name.parent.parts if within_folders else (name.name,)
            own = [split for split in _SPLITS if any(_says(word, split, within_folders) for word in words)]
            if len(own) > 1:
                raise DataError(f"the name of {name} stands for two splits, {own[0]} and {own[1]}: rename it")
            for split in own:
                found[split].append(name)
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    return {"train": list(names)}


def _says(word: str, split: str, whole: bool) -> bool:
    """Return whether a name has a split's word in it; a folder's may end with it, a file's has an ending behind it."""
    end = f"({_BETWEEN}|$)" if whole else _BETWEEN
    return any(re.search(f"(^|{_BETWEEN}){each}{end}", word) for each in _SPLITS[split])
