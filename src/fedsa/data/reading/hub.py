"""Read a data set on the hub, or its copy in the cache. Only formats that can carry no code are read."""

from __future__ import annotations

import contextlib
import gc
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsa.data.reading.base import Log, Wanted
from fedsa.data.reading.formats import ENDINGS, in_shape
from fedsa.data.reading.hub_card import with_classes
from fedsa.data.reading.separated import read_separated
from fedsa.data.reading.splits import chosen_splits, first_reason
from fedsa.data.reading.tables import Table, as_dataset, merge_tables
from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["load_hub", "quiet_datasets"]

_SAFE_BUILDERS = {"csv", "json", "parquet", "arrow", "imagefolder"}


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
            reason = f"the hub could not be reached ({first_reason(error)})"
        folder = Path.cwd()
        raise DataError(
            f"no data set {path!r}: there is no such file or folder in {folder}, and {reason}; "
            "check the name, or give a local file or folder"
        ) from None


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
                raise DataError(f"{path}: files of kind {kind!r} are not read; known endings: {ENDINGS}")
            if kind == "csv":
                return _hub_csv(builder, path, splits, wanted, log)
            builder.download_and_prepare()
        except (DataError, DatasetNotFoundError, ConnectionError):
            raise
        except FileNotFoundError:
            raise DataError(f"{path} has no data files; known endings: {ENDINGS}") from None
        except Exception as error:
            reason = first_reason(error)
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
            rows = in_shape(read_separated(Path(file), wanted, builder.config.sep or ","), wanted, Path(shown))
            table = log.add(rows, shown)
            tables[source] = Table(table, dict(datasets.Features.from_arrow_schema(table.schema)))
        return merge_tables(tables, {source: source for source in tables}, path, unread=log.unread)

    features = builder.info.features or {}
    classes = {column: kind.names for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    chosen = chosen_splits(splits, {str(split): partial(load, split) for split in fetched}, path)
    return {split: as_dataset(with_classes(table, classes)) for split, table in chosen.items()}


def _split(builder: Any, split: str, shown: str) -> datasets.Dataset:
    known = builder.info.splits or {}
    if split in known and not known[split].num_examples:
        raise DataError(f"{shown}: split {split!r} has no rows; add rows, or name another split in [data]")
    try:
        return builder.as_dataset(split=split)
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"{shown}: no split {split!r} ({first_reason(error)}); the splits are: {', '.join(known)}"
        ) from None


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
