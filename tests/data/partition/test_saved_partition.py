from __future__ import annotations

import json
import os
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
        ({"clients": 3}, r"is damaged \(clients: Input should be a valid dictionary\)"),
        ({"clients": {"a": {"train": [1]}}}, r"is damaged \(clients\.a\.validation: Field required\)"),
        ({"clients": client([0.5])}, r"is damaged \(clients\.a\.train\.0: Input should be a valid integer"),
        ({"clients": client([0, True])}, r"is damaged \(clients\.a\.train\.1: Input should be a valid integer"),
        ({"clients": client([10**30])}, r"is damaged \(clients\.a\.train\.0: "),
        ({"clients": client([60])}, "row number 60 is outside the table of 60 rows"),
        ({"clients": client([-1])}, r"is damaged \(clients\.a\.train\.0: .* greater than or equal to 0"),
        ({"clients": client([1])}, "rows of the table are given out twice"),
        ({"clients": client([0], [])}, "'a' has no test rows"),
        ({"own_test": True}, "row numbers of a test split of its own, and the data has none"),
        ({"own_test": "yes"}, r"is damaged \(own_test: Input should be a valid boolean"),
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


STRANGE = [None, True, 7, -1, 0.5, float("nan"), float("inf"), 10**400, "", "x" * 10_000, [], [[]], {}, {"a": {}}]
PLACES = [
    *((name,) for name in ("format", "version", "data", "own_validation", "own_test", "clients")),
    ("clients", "client-2"),
    *(("clients", "client-2", split, *more) for split in ("train", "validation", "test") for more in ((), (0,))),
]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_partition(path, PRINT, (60, None, None))
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 1000 + len(str(path))
    return message


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_value_of_another_type_is_told(tmp_path: Path, place: tuple[str | int, ...]) -> None:
    path = write(tmp_path)
    deep: object = []
    for _ in range(400):
        deep = [deep]
    refused = 0
    for value in [*STRANGE, deep]:
        content = json.loads(write(tmp_path).read_text())
        inner = content
        for name in place[:-1]:
            inner = inner[name]
        if inner[place[-1]] == value and type(inner[place[-1]]) is type(value):
            continue
        inner[place[-1]] = value
        path.write_text(json.dumps(content))
        if place[0] in ("own_validation", "own_test") and value is True:
            assert "split of its own" in refusal(path)
        elif isinstance(place[-1], int) and value == 7 and value is not True:
            assert "given out twice" in refusal(path)
        else:
            refusal(path)
        refused += 1
    assert refused >= len(STRANGE)


def test_what_is_no_json_is_told(tmp_path: Path) -> None:
    whole = write(tmp_path).read_bytes()
    path = tmp_path / "damaged.json"
    generator = np.random.default_rng(0)
    contents = [whole[:end] for end in range(0, len(whole), 23)]
    contents += [generator.integers(128, 256, 100, dtype=np.uint8).tobytes(), b"\x00" * 50, b"\xff\xfe" + whole]
    contents += [b"[" * 200_000, b'{"format":' * 200_000, b"1" * 6000, b"NaN", b"null", b"[]"]
    contents += [b'{"a": 1, "format": "fedsa partition", "a": 2}', whole.replace(b'"client-1"', b'"client-2"')]
    contents += [whole.replace(b'"client-1"', rb'"\ud800"')]
    for content in contents:
        path.write_bytes(content)
        refusal(path)
    assert "stands there twice" in refusal_of(path, whole.replace(b'"client-1"', b'"client-2"'))
    assert "nested too deeply" in refusal_of(path, b"[" * 200_000)
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refusal(tmp_path / "pipe")


def refusal_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return refusal(path)


def test_fingerprint_tells_data_apart() -> None:
    other = LABELS.copy()
    other[7] += 1
    assert (
        len({PRINT, data_fingerprint(other), data_fingerprint(LABELS, LABELS), data_fingerprint(LABELS, None, LABELS)})
        == 4
    )
