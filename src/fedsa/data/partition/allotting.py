"""Deal units (a row, or a group of rows that stays together) to clients. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsa.data.labels import IntArray
from fedsa.recipe import PartitionSettings

__all__ = ["Units", "allot", "apportion", "deal", "deal_alike", "make_units"]

_TINY = 1e-9


@dataclass(frozen=True)
class Units:
    """What is dealt as a whole.

    Attributes:
        of_row: each row's unit, int64 (rows,).
        label: each unit's most frequent class, the lowest of equals; int64 (units,).
        size: each unit's number of rows; int64 (units,).
    """

    of_row: IntArray
    label: IntArray
    size: IntArray


def make_units(labels: IntArray, groups: IntArray | None) -> Units:
    """Return the units of rows with these class numbers: each row, or each set of rows with one group number."""
    if groups is None:
        return Units(np.arange(len(labels)), labels, np.ones(len(labels), np.int64))
    _, of_row = np.unique(groups, return_inverse=True)
    span = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(of_row * span + labels, return_counts=True)
    unit, label = np.divmod(pairs, span)
    order = np.lexsort((label, -counts, unit))
    first = np.unique(unit[order], return_index=True)[1]
    return Units(of_row, label[order][first], np.bincount(of_row).astype(np.int64))


def apportion(totals: IntArray, shares: NDArray[np.float64]) -> IntArray:
    """Return whole numbers near ``totals · shares`` that sum to ``totals`` over the last axis.

    Each number is its quota rounded down or up. What rounding owes a receiver is carried from one label to the next,
    so that its sum over labels is right too, also when every label has a row or two only.

    Args:
        totals: rows of each label, (..., labels).
        shares: each label's shares, non-negative, summing to 1 over the last axis, (..., labels, receivers).

    Returns:
        int64, the shape of ``shares``.

    >>> apportion(np.array([3, 3]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    array([[2, 1],
           [1, 2]])
    """
    quota = totals[..., None] * shares
    cells = np.floor(quota + _TINY).astype(np.int64)
    debt = np.zeros((*totals.shape[:-1], shares.shape[-1]))
    for label in range(totals.shape[-1]):
        fraction = quota[..., label, :] - cells[..., label, :]
        debt += fraction
        left = totals[..., label] - cells[..., label, :].sum(-1)
        order = np.argsort(np.where(fraction > _TINY, -debt, np.inf), axis=-1, kind="stable")
        extra = np.argsort(order, axis=-1, kind="stable") < left[..., None]
        cells[..., label, :] += extra
        debt -= extra
    return cells


def deal(sizes: IntArray, targets: IntArray) -> IntArray:
    """Return the receiver of each unit, dealt in the given order until each receiver has its target of rows.

    Exact for units of one row; a larger unit goes to whoever has the place of its middle row.

    Args:
        sizes: each unit's rows, in the order of dealing.
        targets: each receiver's rows; they sum to that of ``sizes``.
    """
    middle = np.cumsum(sizes) - sizes / 2
    return np.searchsorted(np.cumsum(targets), middle, side="right").astype(np.int64)


def allot(
    settings: PartitionSettings, units: Units, members: IntArray, clients: int, rng: np.random.Generator
) -> IntArray:
    """Return a client number for each of some units, by one draw of the partition's kind.

    iid: shuffled and cut into equal parts. dirichlet: each class's shares over clients ~ Dirichlet(α), α small: few
    clients have it. client_dirichlet: equal sizes; each client in turn draws its label mix ~ Dirichlet(α), and its rows
    by it from what is left (a class that is used up drops out of the mix). size: one share for all classes ~
    Dirichlet(α). shards: units sorted by class, cut into
    ``clients · shards_per_client`` equal shards, dealt at random.

    Args:
        settings: of a kind that makes clients.
        units: all units.
        members: the units to deal, as numbers of ``units``.
        clients: the number of clients.
        rng: the source of randomness.

    Source: client_dirichlet: Hsu et al., arXiv:1909.06335; dirichlet: per class, as in NIID-Bench, arXiv:2102.02079;
    shards: McMahan et
    al., arXiv:1602.05629, section 3.
    """
    order = members[rng.permutation(len(members))]
    concentration = np.full(clients, settings.dirichlet_alpha)
    match settings.kind:
        case "iid":
            client = deal(units.size[order], _equal(units.size[order].sum(), clients))
        case "shards":
            order = order[np.argsort(units.label[order], kind="stable")]
            shards = clients * settings.shards_per_client
            shard = deal(units.size[order], _equal(units.size[order].sum(), shards))
            client = (rng.permutation(shards) // settings.shards_per_client)[shard]
        case "client_dirichlet":
            rows = np.bincount(units.label[order], weights=units.size[order]).astype(np.int64)
            order, client = _by_label(units, order, _mixes(rows, clients, settings.dirichlet_alpha, rng).T)
        case "size":
            rows = np.bincount(units.label[order], weights=units.size[order]).astype(np.int64)
            shares = _dirichlet(rng, concentration)
            order, client = _by_label(units, order, apportion(rows, np.tile(shares, (len(rows), 1))))
        case _:
            rows = np.bincount(units.label[order], weights=units.size[order]).astype(np.int64)
            shares = np.stack([_dirichlet(rng, concentration) for _ in rows])
            edges = np.rint(np.cumsum(shares, axis=1) * rows[:, None]).astype(np.int64)
            edges[:, -1] = rows
            order, client = _by_label(units, order, np.diff(edges, axis=1, prepend=0))
    result = np.empty(len(members), np.int64)
    result[np.searchsorted(members, order)] = client
    return result


def deal_alike(
    units: Units, members: IntArray, counts: IntArray, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Return units and their client, each class dealt in proportion to what clients have of it already.

    Args:
        units: all units.
        members: the units to deal; those of a class that no client has are left out.
        counts: rows of each class that each client has, (clients, labels).
        rng: the source of randomness.
    """
    order = members[rng.permutation(len(members))]
    held = counts.sum(0)
    order = order[held[units.label[order]] > 0]
    rows = np.bincount(units.label[order], weights=units.size[order], minlength=len(held)).astype(np.int64)
    luck = rng.permutation(len(counts))  # who wins a tie
    shares = counts.T[:, luck] / np.maximum(held, 1)[:, None]
    order, place = _by_label(units, order, apportion(rows, shares))
    return order, luck[place]


def _by_label(units: Units, order: IntArray, targets: IntArray) -> tuple[IntArray, IntArray]:
    """Deal each label's units by its row of targets; the order is grouped by label."""
    order = order[np.argsort(units.label[order], kind="stable")]
    place = deal(units.size[order], targets.ravel())
    return order, place % targets.shape[1]


def _mixes(rows: IntArray, clients: int, alpha: float, rng: np.random.Generator) -> IntArray:
    """Return how many rows of each label every client draws, shape (clients, labels).

    Args:
        rows: of each label.
        clients: the number of clients.
        alpha: the concentration of a client's label mix.
        rng: the source of randomness.
    """
    left, taken = rows.copy(), np.zeros((clients, len(rows)), np.int64)
    for client, size in zip(rng.permutation(clients), _equal(int(rows.sum()), clients), strict=True):
        mix = _dirichlet(rng, np.full(len(rows), alpha))
        while wanted := int(size - taken[client].sum()):
            still = np.where(left > 0, mix, 0)
            chances = still if still.sum() > 0 else left.astype(np.float64)
            drawn = np.minimum(rng.multinomial(wanted, chances / chances.sum()), left)
            taken[client] += drawn
            left -= drawn
    return taken


def _equal(rows: int, parts: int) -> IntArray:
    return np.diff(np.arange(parts + 1) * int(rows) // parts)


def _dirichlet(rng: np.random.Generator, concentration: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw shares; a concentration so low that the draw underflows gives all to one."""
    shares: NDArray[np.float64] = rng.dirichlet(concentration)
    total = shares.sum()
    if not np.isfinite(total) or total <= 0:
        shares = np.zeros(len(concentration))
        shares[rng.integers(len(concentration))] = total = 1.0
    shares /= total
    return shares
