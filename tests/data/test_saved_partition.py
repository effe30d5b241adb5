from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.data.partition import data_fingerprint, load_partition, partition_rows, save_partition
from fedsa.errors import DataError
from fedsa.recipe import PartitionSettings

LABELS = np.arange(60) % 3
PRINT = data_fingerprint(LABELS)
SAVED = PartitionSettings(kind="iid", clients=3)


@given(seed=st.integers(0, 2**32 - 1), own=st.booleans())
@settings(max_examples=10, deadline=None)
def test_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, seed: int, own: bool) -> None:
    path = tmp_path_factory.mktemp("saved") / "partition.json"
    test = np.arange(30) % 3 if own else None
    partition = partition_rows(SAVED, labels=LABELS, columns={}, seed=seed, test_labels=test)
    save_partition(partition, path, data_fingerprint(LABELS, None, test))
    chosen = PartitionSettings(kind="saved", file=str(path))
    assert partition_rows(chosen, labels=LABELS, columns={}, seed=0, test_labels=test) == partition
    assert [entry.name for entry in path.parent.iterdir()] == ["partition.json"]


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "partition.json"
    save_partition(partition_rows(SAVED, labels=LABELS, columns={}, seed=0), path, PRINT)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def client(train: list[object], test: list[object] | None = None) -> dict[str, object]:
    return {"a": {"train": train, "validation": [1], "test": [2] if test is None else test}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "other"}, "is not a partition file"),
        ({"version": 2}, "has version 2 of the partition format, this fedsa reads 1"),
        ({"data": "table 5"}, r"was made for other data \(table 5; here: table 60, "),
        ({"clients": {}}, "has no clients"),
        ({"clients": 3}, "is damaged"),
        ({"clients": {"a": {"train": [1]}}}, r"is damaged \(KeyError: 'validation'\)"),
        ({"clients": client([0.5])}, "train rows must be whole numbers"),
        ({"clients": client([10**30])}, r"is damaged \(OverflowError"),
        ({"clients": client([60])}, "row numbers outside the table of 60 rows"),
        ({"clients": client([-1])}, "row numbers outside the table of 60 rows"),
        ({"clients": client([1])}, "rows of the table are given out twice"),
        ({"clients": client([0], [])}, "'a' has no test rows"),
        ({"own_test": True}, "row numbers outside the test of None rows"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        load_partition(write(tmp_path, **changes), PRINT, (60, None, None))


def test_missing_unreadable_and_unwritable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no partition file .*write one with: fedsa data RECIPE --save"):
        load_partition(tmp_path / "none.json", PRINT, (60, None, None))
    (tmp_path / "half.json").write_text('{"format": ')
    with pytest.raises(DataError, match=r"cannot read partition .*half\.json"):
        load_partition(tmp_path / "half.json", PRINT, (60, None, None))
    with pytest.raises(DataError, match="cannot write partition"):
        save_partition(partition_rows(SAVED, labels=LABELS, columns={}, seed=0), tmp_path / "no" / "x.json", PRINT)


def test_fingerprint_tells_data_apart() -> None:
    other = LABELS.copy()
    other[7] += 1
    assert (
        len({PRINT, data_fingerprint(other), data_fingerprint(LABELS, LABELS), data_fingerprint(LABELS, None, LABELS)})
        == 4
    )
