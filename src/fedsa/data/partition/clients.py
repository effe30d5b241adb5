"""A partition: each client's row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from fedsa.data.labels import IntArray
from fedsa.types import SplitName

__all__ = ["ClientRows", "Partition", "label_counts", "label_totals"]


@dataclass(frozen=True, eq=False)
class ClientRows:
    """One client's row numbers, each ascending and int64, no row twice.

    Attributes:
        train: into ``Rows.table``.
        validation: into ``Rows.validation`` where the data has one, else into ``Rows.table``.
        test: into ``Rows.test`` where the data has one, else into ``Rows.table``.
    """

    train: IntArray
    validation: IntArray
    test: IntArray

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same rows in every split."""
        if not isinstance(other, ClientRows):
            return NotImplemented
        return all(np.array_equal(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))

    def __iter__(self) -> Iterator[IntArray]:
        """Give train, validation and test in turn."""
        return iter((self.train, self.validation, self.test))

    __hash__ = None  # type: ignore[assignment]  # arrays can change, so equal ones must not share a hash

    @property
    def num_examples(self) -> int:
        """Rows in all three splits together."""
        return len(self.train) + len(self.validation) + len(self.test)


@dataclass(frozen=True)
class Partition:
    """Who has which rows.

    Attributes:
        clients: client id to its rows, in the order of the ids.
        own_validation: validation numbers refer to ``Rows.validation``, not to ``Rows.table``.
        own_test: test numbers refer to ``Rows.test``, not to ``Rows.table``.
        left_out: clients that were left out since they have too few rows, each with what it lacks.
    """

    clients: dict[str, ClientRows]
    own_validation: bool = False
    own_test: bool = False
    left_out: dict[str, str] = field(default_factory=dict)


def label_counts(partition: Partition, labels: IntArray, num_labels: int, split: SplitName) -> dict[str, list[int]]:
    """Return how many rows of each class every client has in one split, in client order.

    Args:
        partition: who has which rows.
        labels: class numbers of the table that the split's numbers refer to.
        num_labels: number of classes.
        split: "train", "validation" or "test".
    """
    counts: Mapping[str, IntArray] = {
        client: np.bincount(labels[getattr(rows, split)], minlength=num_labels)
        for client, rows in partition.clients.items()
    }
    return {client: count.tolist() for client, count in counts.items()}


def label_totals(counts: Mapping[SplitName, Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """Return how many rows of each class every client has in all splits together.

    Args:
        counts: each split's `label_counts`.

    >>> label_totals({"train": {"a": [3, 1]}, "validation": {"a": [1, 0]}, "test": {"a": [0, 2]}})
    {'a': [4, 3]}
    """
    first = next(iter(counts.values()))
    return {
        client: [sum(column) for column in zip(*(split[client] for split in counts.values()), strict=True)]
        for client in first
    }
