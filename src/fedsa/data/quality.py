"""Notes for a user on rows: labels that look alike, rows that occur twice, test rows that are also trained on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsa.data.labels import IntArray
from fedsa.data.partition import Partition
from fedsa.data.reading.base import some
from fedsa.texts.words import counted
from fedsa.types import SPLITS

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["client_notes", "label_notes", "repeat_notes", "spelling_notes"]


def label_notes(names: Sequence[str], labels: IntArray) -> list[str]:
    """Return a sentence on classes whose names differ by blanks or capitals alone, if there are some.

    Args:
        names: of the classes, in order of their number.
        labels: each row's class number.

    >>> label_notes(["Good", "bad", "good "], np.array([0, 1, 2, 2]))[0].partition(":")[2]
    " 'Good' (1 row) and 'good ' (2 rows). If they are one class, write them one way."
    """
    counts = np.bincount(labels, minlength=len(names)).tolist()
    return _look_alikes({name: count for name, count in zip(names, counts, strict=True) if count}, "label", "class")


def client_notes(partition: Partition) -> list[str]:
    """Return a sentence on clients whose names differ by blanks or capitals alone, if there are some."""
    sizes = {client: sum(map(len, parts)) for client, parts in partition.clients.items()}
    return _look_alikes(sizes, "client", "client")


def _look_alikes(rows: Mapping[str, int], what: str, each: str) -> list[str]:
    """Return sentences on names that a reader takes for one, and on a name that cannot be seen.

    Args:
        rows: how many rows each name has.
        what: the names are of.
        each: one of them is.
    """
    alike: dict[str, list[str]] = {}
    for name in rows:
        alike.setdefault("".join(filter(_is_seen, unicodedata.normalize("NFKC", name))).casefold(), []).append(name)
    notes = [
        f"The {what} {name!r} ({counted(rows[name], 'row')}) has nothing that can be seen: look at these rows."
        for name in alike.pop("", [])
    ]
    groups = [group for group in alike.values() if len(group) > 1]
    stored = [len({*map(_plain, group)}) < len(group) for group in groups]
    told = [
        " and ".join(f"{ascii(name) if as_stored else repr(name)} ({counted(rows[name], 'row')})" for name in group)
        for group, as_stored in zip(groups, stored, strict=True)
    ]
    if told:
        by = "blanks, capitals or how letters are stored" if any(stored) else "blanks or capitals alone"
        of_their_own = "classes" if each == "class" else f"{each}s"
        notes.append(
            f"{what.capitalize()}s that differ by {by} are {of_their_own} of their own: {some(told)}. If they are one "
            f"{each}, write them one way."
        )
    return notes


def _is_seen(letter: str) -> bool:
    return not letter.isspace() and unicodedata.category(letter) not in ("Cf", "Cc")


def _plain(name: str) -> str:
    """Return a name's letters as a reader sees them."""
    return "".join(each for each in unicodedata.normalize("NFKC", name) if each == " " or _is_seen(each))


def spelling_notes(cells: Sequence[str], column: str) -> list[str]:
    """Return a sentence on numbers that a column writes in two ways, as 3 and 3.0, which are taken as one.

    Args:
        cells: the different texts of the column.
        column: its name.
    """
    ways: dict[str, set[str]] = {}
    for cell in cells:
        if re.fullmatch(r"-?\d+(\.0*)?", cell):
            ways.setdefault(cell.partition(".")[0], set()).add(cell)
    twice = [" and ".join(sorted(each)) for each in ways.values() if len(each) > 1]
    return (
        [f"Column {column!r} writes one number in two ways, which are taken as one class: {some(twice)}."]
        if twice
        else []
    )


def repeat_notes(
    table: datasets.Dataset,
    labels: IntArray,
    partition: Partition,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    group: str | None,
    own_test: bool,
    drawn: bool,
) -> list[str]:
    """Return sentences on rows that stand there more than once, and on texts of the test that were trained on.

    Args:
        table: all rows.
        labels: each row's class number.
        partition: who has which rows.
        inputs: columns that the model is given; equal in all of them is an equal text.
        outputs: columns of what it is to say; rows are equal where these and the labels are too.
        group: the recipe's ``partition.group``.
        own_test: the test rows are a split of the data's own.
        drawn: which client has a row was drawn, so that `group` keeps equal rows in one client.

    Cost: some sorts of the rows; about 3 s for a million.
    """
    if not inputs:
        return []
    client, split = np.full(len(table), -1), np.full(len(table), -1, dtype=np.int8)
    for number, rows in enumerate(partition.clients.values()):
        for place, numbers in enumerate(rows):
            client[numbers], split[numbers] = number, place
    used = np.flatnonzero(client >= 0)
    texts = _codes(table, inputs)
    whole = _paired(texts, labels)
    for name in outputs:
        whole = _paired(whole, _codes(table, [name]))
    client, split, texts, whole = client[used], split[used], texts[used], whole[used]
    columns = " and ".join(map(repr, [*inputs, *outputs]))
    notes = []
    pairs = _paired(whole, client)
    within = len(used) - len(np.unique(pairs))
    owners = np.bincount(np.unique(np.stack([whole, client]), axis=1)[0], minlength=int(whole.max()) + 1)
    across = int((owners[whole] > 1).sum())
    if within or across:
        notes.append(
            f"Equal rows (in {columns}{' and the label' if len(np.unique(labels)) > 1 else ''}): {within:,} of "
            f"{counted(len(used), 'row')} repeat another one of their client, {across:,} stand at several clients."
        )
    trained, tested = split == SPLITS.index("train"), split == SPLITS.index("test")
    known = np.isin(texts[tested], texts[trained])
    if known.any():
        own = _paired(texts, client)
        here = int(np.isin(own[tested], own[trained]).sum())
        if own_test:
            mend = "remove them from one of the splits"
        elif group is not None or not (here or drawn):
            mend = "those are rows of other clients" if here == 0 else "their groups differ"
        else:
            where = "client and one split" if drawn else "split of a client"
            mend = f"data.partition.group = {inputs[0]!r} keeps equal texts in one {where}"
        notes.append(
            f"{int(known.sum()):,} of {counted(int(tested.sum()), 'test row')} have the text of a row that is trained "
            f"on ({here:,} at the same client), so test figures may be too good; {mend}."
        )
    return notes


def _paired(first: IntArray, second: IntArray) -> IntArray:
    """Return a number for each row that is equal where both are."""
    span = int(second.max(initial=0)) + 1
    codes: IntArray = np.unique(first * span + second, return_inverse=True)[1].astype(np.int64)
    return codes


def _codes(table: datasets.Dataset, columns: Sequence[str]) -> IntArray:
    """Return a number for each row that is equal where the columns are; those that cannot be compared do not count."""
    codes = np.zeros(len(table), dtype=np.int64)
    whole: Mapping[str, pa.ChunkedArray] = table.select_columns(list(columns)).with_format("arrow")[:]
    for name in columns:
        found = _encoded(whole[name])
        if found is not None:
            codes = _paired(codes, found)
    return codes


def _encoded(column: pa.ChunkedArray) -> IntArray | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        column = pc.binary_join(column, "\x1f")
    elif pa.types.is_nested(kind):
        return None
    encoded = column.dictionary_encode().unify_dictionaries()
    indices = pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32())
    codes: IntArray = pc.fill_null(indices, -1).to_numpy().astype(np.int64) + 1
    return codes
