"""A portion has some clients' rows and no others'."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from fedsa.data.partition import ClientRows, Partition
from fedsa.data.portions import portion_of, read_portion, write_portion
from fedsa.data.rows import DealtRows
from fedsa.errors import DataError


def dealt() -> DealtRows:
    table = datasets.Dataset.from_dict({"text": [f"row {number:02d}" for number in range(12)]})

    def rows(*parts: list[int]) -> ClientRows:
        return ClientRows(*(np.array(part, dtype=np.int64) for part in parts))

    clients = {
        "a": rows([0, 7], [3], [11]),
        "b": rows([1, 2], [4], [5]),
        "c": rows([6, 10], [8], [9]),
    }
    partition = Partition(clients)
    return DealtRows(table, np.arange(12) % 2, ("no", "yes"), partition, (partition, "all"))


def texts(rows: DealtRows) -> dict[str, list[list[tuple[str, int]]]]:
    """Each client's rows by split: text and class number."""
    return {
        client: [[(rows.table[int(row)]["text"], int(rows.labels[row])) for row in part] for part in parts]
        for client, parts in rows.partition.clients.items()
    }


@pytest.mark.parametrize("clients", [["a"], ["b", "c"], ["a", "b", "c"]])
def test_a_portion_has_its_clients_rows_as_they_were_and_no_others(tmp_path: Path, clients: list[str]) -> None:
    whole = dealt()
    portion = portion_of(whole, clients)
    assert texts(portion) == {client: rows for client, rows in texts(whole).items() if client in clients}
    assert len(portion.table) == 4 * len(clients)
    write_portion(portion, tmp_path / "site")
    back = read_portion(tmp_path / "site")
    assert texts(back) == texts(portion)
    assert back.label_names == whole.label_names
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    own = {text for parts in texts(back).values() for part in parts for text, _ in part}
    for row in whole.table:
        assert (row["text"].encode() in written) == (row["text"] in own), "select alone would write every row"


def test_rows_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the rows there cannot be read"):
        read_portion(tmp_path)
    write_portion(dealt(), tmp_path / "site")
    (tmp_path / "site" / "rows.json").write_text("[]")
    with pytest.raises(DataError, match="was changed after it was written"):
        read_portion(tmp_path / "site")
