"""Split each client's rows into train, validation and test with one label mix, and thin out large clients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedsa.data.labels import IntArray
from fedsa.data.partition.allotting import Units, apportion

__all__ = ["rows_by_owner", "split_groups", "split_rows", "thin_out"]


def rows_by_owner(owner: IntArray, clients: int) -> list[IntArray]:
    """Each client's rows, ascending.

    Args:
        owner: each row's client, -1 <= owner < clients; -1: nobody's.
        clients: the number of clients.
    """
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(clients + 1))
    return [order[start:end] for start, end in pairwise(edges)]


def split_rows(
    owner: IntArray, labels: IntArray, fractions: NDArray[np.float64], randoms: Sequence[np.random.Generator]
) -> IntArray:
    """Return each row's split (0, 1 or 2), so that in every client the splits hold to the fractions within each class.

    Every count (client, class, split) is its quota rounded down or up, and every split with a fraction has a row.

    Args:
        owner: each row's client, 0 <= owner < clients; each has at least as many rows as there are splits.
        labels: each row's class.
        fractions: of train, validation and test, summing to 1; a split with 0 gets none.
        randoms: each client's source of randomness. With its own, a client's split is the same whoever else is there.

    Cost: a table of clients · classes · 3.
    """
    clients, classes = len(randoms), int(labels.max()) + 1
    run = owner * classes + labels
    totals = np.bincount(run, minlength=clients * classes).reshape(clients, classes)
    cells = apportion(totals, np.broadcast_to(fractions, (clients, classes, 3)))
    wanted = np.flatnonzero(fractions > 0)
    for client in np.flatnonzero((cells.sum(1)[:, wanted] == 0).any(1)):
        _fill_empty(cells[client], totals[client][:, None] * fractions, wanted)
    shuffled = zip(rows_by_owner(owner, clients), randoms, strict=True)
    order = np.concatenate([random.permutation(rows) for rows, random in shuffled])
    order = order[np.argsort(run[order], kind="stable")]
    ends = np.cumsum(cells.reshape(-1, 3), axis=1)[run[order]]
    place = _places(run[order])
    split = np.empty(len(owner), np.int64)
    split[order] = (place >= ends[:, 0]).astype(np.int64) + (place >= ends[:, 1])
    return split


def _fill_empty(cells: IntArray, quota: NDArray[np.float64], wanted: IntArray) -> None:
    """Move one row into each empty split, from the cell that rounding favoured most in a split with rows to spare."""
    for empty in wanted:
        if cells[:, empty].any():
            continue
        surplus = np.where(cells > 0, cells - quota, -np.inf)
        surplus[:, cells.sum(0) < 2] = -np.inf
        label, donor = np.unravel_index(int(np.argmax(surplus)), cells.shape)
        cells[label, donor] -= 1
        cells[label, empty] += 1


def _places(run: IntArray) -> IntArray:
    """Return each element's place inside its run of equal values."""
    starts = np.flatnonzero(np.diff(run, prepend=run[0] - 1))
    return np.arange(len(run)) - np.repeat(starts, np.diff(np.append(starts, len(run))))


def split_groups(
    labels: IntArray, units: IntArray, fractions: NDArray[np.float64], rng: np.random.Generator
) -> IntArray:
    """Return each row's split for one client, rows of one unit together; mixes hold as well as whole units allow.

    Large units first, each goes where it brings the counts (class, split) nearest to their quotas:
    least Σ (count − quota)²/quota.

    Args:
        labels: each row's class.
        units: each row's unit, any numbers; at least as many units as splits with a fraction.
        fractions: of train, validation and test, summing to 1; a split with 0 gets none.
        rng: the source of randomness: the order of units of one size.

    Cost: units · classes.
    """
    _, unit = np.unique(units, return_inverse=True)
    present, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((unit.max() + 1, len(present)), np.int64)
    np.add.at(counts, (unit, label), 1)
    wanted = np.flatnonzero(fractions > 0)
    quota = fractions[wanted][:, None] * counts.sum(0)
    held = np.zeros(quota.shape)
    order = rng.permutation(len(counts))
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    chosen = np.empty(len(counts), np.int64)
    for one in order:
        count = counts[one]
        cost = (count * (2 * (held - quota) + count) / quota).sum(1)
        chosen[one] = best = int(np.argmin(cost))
        held[best] += count
    for empty in range(len(wanted)):
        if (chosen == empty).any():
            continue
        spare = np.flatnonzero(np.bincount(chosen, minlength=len(wanted))[chosen] > 1)
        chosen[spare[np.argmin(counts.sum(1)[spare])]] = empty
    return wanted[chosen[unit]]


def thin_out(labels: IntArray, units: Units, keep: int, rng: np.random.Generator) -> IntArray:
    """Return the rows (ascending) of a random subset of at most ``keep`` rows with the same label mix.

    Args:
        labels: each row's class.
        units: what stays together; with units of one row exactly ``keep`` rows are kept.
        keep: most rows to keep, fewer than there are.
        rng: the source of randomness.
    """
    rows = np.bincount(units.label, weights=units.size)
    targets = apportion(np.array([keep]), (rows / rows.sum())[None, :])[0]
    order = rng.permutation(len(units.label))
    kept = np.zeros(len(units.label), bool)
    spare = 0
    for label in np.flatnonzero(targets):
        spare += int(targets[label])
        for unit in order[units.label[order] == label]:
            if units.size[unit] <= spare:
                kept[unit] = True
                spare -= int(units.size[unit])
            if not spare:
                break
    return np.flatnonzero(kept[units.of_row])
