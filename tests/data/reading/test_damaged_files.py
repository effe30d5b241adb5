"""Files that claim what is not so: each was found by `benchmarks/fuzz.py`, and ended in a crash or a traceback."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsa.data.reading.base import Wanted
from fedsa.data.reading.formats import read_file
from fedsa.drafting.draft import draft_recipe
from fedsa.errors import DataError


def arrow_file(path: Path, offsets: list[int], content: bytes) -> Path:
    """Write a column of two texts, and then other places in memory where they are, which no writer would write."""
    table = pa.table({"text": pa.array(["go", "od"])})
    with pa.ipc.new_stream(path, table.schema) as file:
        file.write_table(table)
    old = path.read_bytes()
    own = struct.pack("<3i", 0, 2, 4)
    assert old.count(own) == 1
    assert old.count(b"good") == 1
    path.write_bytes(old.replace(own, struct.pack("<3i", *offsets)).replace(b"good", content))
    return path


def test_an_arrow_file_of_texts_is_read(tmp_path: Path) -> None:
    assert read_file(arrow_file(tmp_path / "a.arrow", [0, 2, 4], b"good"), Wanted()).table["text"].to_pylist() == [
        "go",
        "od",
    ]


@pytest.mark.parametrize(
    ("offsets", "content"),
    [([0, 2, 10**6], b"good"), ([0, 3, 1], b"good"), ([-9, 2, 4], b"good"), ([0, 2, 4], b"g\x80od")],
)
def test_an_arrow_file_that_points_elsewhere_is_refused(tmp_path: Path, offsets: list[int], content: bytes) -> None:
    """It is another place in this process's memory that it would be read from."""
    with pytest.raises(DataError, match=r"a\.arrow cannot be read"):
        read_file(arrow_file(tmp_path / "a.arrow", offsets, content), Wanted())


@pytest.mark.parametrize("said", [b"{", b"\xb2", b'{"info": {"features": {"text": {"_type": "Nothing"}}}}'])
def test_what_a_parquet_file_says_of_its_types_is_refused_where_it_makes_no_sense(tmp_path: Path, said: bytes) -> None:
    table = pa.table({"text": ["good"]}).replace_schema_metadata({b"huggingface": said})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=True)
    with pytest.raises(DataError, match=r"a\.parquet: what it says of its columns' types cannot be read"):
        read_file(tmp_path / "a.parquet", Wanted())


def test_a_column_whose_name_holds_a_zero_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"te\0xt": "good"}]))
    with pytest.raises(DataError, match=r"a\.json: the name of a column holds a zero character"):
        read_file(tmp_path / "a.json", Wanted())


def test_a_table_of_many_columns_is_looked_at_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask a data set for each of its columns takes time that grows with the square of their number."""
    asked = []
    whole = datasets.Dataset.__getitem__

    def counted(table: datasets.Dataset, key: object) -> object:
        asked.append(key)
        return whole(table, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", counted)
    row = {f"column {number}": None for number in range(150)}
    (tmp_path / "wide.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    with pytest.raises(DataError, match="no task can be made of its columns"):
        draft_recipe(str(tmp_path / "wide.jsonl"))
    assert len(asked) < 10
