"""Split rows over clients, and each client's rows into train, validation and test. Pure numpy.

The same seed gives the same partition. Rows are dealt to clients with one generator. What is done with one client's
rows has a generator of its own, seeded by the client's id: the cut of a client depends on that client alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedsa.data.labels import IntArray
from fedsa.data.partition.allotting import apportion, make_units
from fedsa.data.partition.clients import ClientRows, Partition
from fedsa.data.partition.dealing import Clients, Columns, Pool, client_column, deal_own, made_clients, natural_clients
from fedsa.data.partition.saved import data_fingerprint, load_partition
from fedsa.data.partition.splitting import rows_by_owner, split_groups, split_rows, thin_out
from fedsa.data.reading.paths import expanded
from fedsa.errors import DataError
from fedsa.recipe import PartitionSettings
from fedsa.seeds import derive_seed
from fedsa.texts.words import counted
from fedsa.types import SPLITS

_SHOWN = 20

__all__ = ["partition_columns", "partition_rows"]


def partition_columns(settings: PartitionSettings) -> list[str]:
    """Return the columns that the partition reads, for ``partition_rows``' ``columns``."""
    names = [client_column(settings), settings.within, settings.group]
    return list(dict.fromkeys(name for name in names if name))


def partition_rows(
    settings: PartitionSettings,
    *,
    labels: IntArray,
    columns: Columns,
    seed: int,
    validation_labels: IntArray | None = None,
    validation_columns: Columns | None = None,
    test_labels: IntArray | None = None,
    test_columns: Columns | None = None,
) -> Partition:
    """Return who has which rows.

    A client's train, validation and test have one label mix: its rows are split class by class. With kinds that take
    the clients as they are (``column``, ``files``), which of its rows are in which split depends on the seed, the
    client's id and its own rows alone: a site that holds nothing else cuts them in the same way. A validation or test
    split that the data has of its own is dealt out instead: by the client column where that split has it, else each
    class in proportion to the clients' rows of it (inside the same ``within`` value where that split has the column).
    Rows of a class that no client has are then left out.
    With ``group``, rows with one value stay in one client and one split, and counts hold only as nearly as whole
    groups allow; natural clients may share a group, each has its part of it. Between ``table`` and splits of their
    own the data itself decides.

    Args:
        settings: the recipe's ``[data.partition]``.
        labels: class number of every row of the table, int64.
        columns: ``partition_columns(settings)`` to their values, one per row.
        seed: the same seed gives the same partition.
        validation_labels: class numbers of the data's own validation split, if it has one.
        validation_columns: those of ``partition_columns(settings)`` that this split has.
        test_labels: likewise for test.
        test_columns: likewise for test.

    Raises:
        DataError: an empty cell in a column that is needed, clients with too few rows (all are listed), values of
            ``within`` that do not fit ``clients``, a group in two ``within`` values, a draw that leaves a client short
            time and again, clients of a split of its own that are not in the table, or a saved partition that does
            not belong to the data.

    Cost: rows · log(rows), and a table of clients · classes.
    """
    own = {"validation": (validation_labels, validation_columns), "test": (test_labels, test_columns)}
    sizes = [None if part is None else len(part) for part in (validation_labels, test_labels)]
    if settings.kind == "saved":
        fingerprint = data_fingerprint(labels, validation_labels, test_labels)
        path = expanded(settings.file or "")
        return load_partition(path, fingerprint, (len(labels), sizes[0], sizes[1]))
    rng = np.random.default_rng(seed)
    fractions = _fractions(settings, validation_labels is not None, test_labels is not None)
    if client_column(settings) is not None:
        table, clients = natural_clients(settings, labels, columns)
    else:
        table, clients = made_clients(settings, labels, columns, int((fractions > 0).sum()), rng)
    pools = {"table": table}
    for name, (own_labels, own_columns) in own.items():
        if own_labels is not None:
            pools[name] = deal_own(settings, name, own_labels, own_columns or {}, table, clients, rng)
    if settings.max_examples is not None:
        pools = _limit(pools, clients.ids, settings.max_examples, seed)
    problems = _problems(settings, pools, clients, fractions)
    if problems and settings.leave_out_small and len(problems) < len(clients.ids):
        pools, clients = _without(pools, clients, problems)
    elif problems:
        raise _refused(settings, problems, len(clients.ids))
    parts = _cut(pools, clients.ids, fractions, seed)
    rows = {client: ClientRows(*(part[number] for part in parts)) for number, client in enumerate(clients.ids)}
    return Partition(
        {client: rows[client] for client in sorted(rows)}, "validation" in pools, "test" in pools, problems
    )


def _fractions(settings: PartitionSettings, own_validation: bool, own_test: bool) -> NDArray[np.float64]:
    validation = 0.0 if own_validation else settings.validation_fraction
    test = 0.0 if own_test else settings.test_fraction
    return np.array([1 - validation - test, validation, test])


def _random(seed: int, purpose: str, client: str) -> np.random.Generator:
    """One client's source of randomness for one purpose, which no other client has a part in."""
    return np.random.default_rng(derive_seed(seed, purpose, client))


def _limit(pools: Mapping[str, Pool], clients: Sequence[str], most: int, seed: int) -> dict[str, Pool]:
    """Take rows from clients with more than ``most``, from each pool in proportion, keeping the label mix."""
    held = {name: rows_by_owner(pool.owner, len(clients)) for name, pool in pools.items()}
    owners = {name: pool.owner.copy() for name, pool in pools.items()}
    for number, client in enumerate(clients):
        sizes = np.array([len(rows[number]) for rows in held.values()])
        if sizes.sum() <= most:
            continue
        quotas = np.maximum(apportion(np.array([most]), (sizes / sizes.sum())[None, :])[0], np.minimum(sizes, 1))
        quotas[np.argmax(quotas)] -= quotas.sum() - most
        random = _random(seed, "max_examples", client)
        for name, quota in zip(pools, quotas, strict=True):
            mine, pool = held[name][number], pools[name]
            if quota < len(mine):
                labels = pool.labels[mine]
                units = make_units(labels, None if pool.groups is None else pool.groups[mine])
                dropped = np.ones(len(mine), bool)
                dropped[thin_out(labels, units, int(quota), random)] = False
                owners[name][mine[dropped]] = -1
    return {name: replace(pool, owner=owners[name]) for name, pool in pools.items()}


def _problems(
    settings: PartitionSettings, pools: Mapping[str, Pool], clients: Clients, fractions: NDArray[np.float64]
) -> dict[str, str]:
    """Return clients that have too few rows, or none for one of their splits, each with what it lacks."""
    count = len(clients.ids)
    rows = {name: np.bincount(pool.owner[pool.owner >= 0], minlength=count) for name, pool in pools.items()}
    total = np.sum(list(rows.values()), axis=0)
    table, splits = pools["table"], int((fractions > 0).sum())
    units = rows["table"]
    if table.groups is not None:
        units = np.bincount(_owners_of_groups(table), minlength=count)
    problems = {}
    for number in sorted(range(count), key=clients.ids.__getitem__):
        client = clients.ids[number]
        empty = [f"no {name} rows" for name in SPLITS if name in rows and not rows[name][number]]
        if total[number] < settings.min_examples:
            problems[client] = (
                f"{counted(int(total[number]), 'row')}, fewer than min_examples = {settings.min_examples}"
            )
        elif units[number] < splits:
            kind = "group" if table.groups is not None else "row"
            problems[client] = f"{counted(int(units[number]), kind)} to make {splits} splits of, one would be empty"
        elif empty:
            problems[client] = ", ".join(empty)
    return problems


def _refused(settings: PartitionSettings, problems: Mapping[str, str], count: int) -> DataError:
    listed = [f"client {client!r}: {problem}" for client, problem in problems.items()]
    shown = listed[:_SHOWN] + ([f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else [])
    leave_out = "" if settings.leave_out_small else "set data.partition.leave_out_small = true to go on without them, "
    return DataError(
        f"{len(problems)} of {counted(count, 'client')} cannot be used:\n  " + "\n  ".join(shown) + "\n"
        f"give them more rows, {leave_out}merge these clients, or change min_examples, max_examples or clients"
    )


def _without(
    pools: Mapping[str, Pool], clients: Clients, left_out: Mapping[str, str]
) -> tuple[dict[str, Pool], Clients]:
    """Return pools and clients without some clients, whose rows are then nobody's."""
    kept = [number for number, client in enumerate(clients.ids) if client not in left_out]
    place = np.full(len(clients.ids) + 1, -1, dtype=np.int64)  # the last: nobody's, -1, stays so
    place[kept] = np.arange(len(kept))
    own = Clients([clients.ids[number] for number in kept], [clients.cells[number] for number in kept])
    return {name: replace(pool, owner=place[pool.owner]) for name, pool in pools.items()}, own


def _owners_of_groups(pool: Pool) -> IntArray:
    """Return each group's owner; groups that nobody has are left out."""
    held = pool.owner >= 0
    groups = pool.groups[held] if pool.groups is not None else np.flatnonzero(held)
    return pool.owner[held][np.unique(groups, return_index=True)[1]]


def _cut(
    pools: Mapping[str, Pool], clients: Sequence[str], fractions: NDArray[np.float64], seed: int
) -> list[list[IntArray]]:
    """Return each split's rows of every client."""
    table = pools["table"]
    held = np.flatnonzero(table.owner >= 0)
    owner, labels = table.owner[held], table.labels[held]
    randoms = [_random(seed, "split", client) for client in clients]
    if table.groups is None:
        split = split_rows(owner, labels, fractions, randoms)
    else:
        split = np.empty(len(held), np.int64)
        groups = table.groups[held]
        for mine, random in zip(rows_by_owner(owner, len(clients)), randoms, strict=True):
            split[mine] = split_groups(labels[mine], groups[mine], fractions, random)
    parts = []
    for number, name in enumerate(SPLITS):
        if name in pools:
            parts.append(rows_by_owner(pools[name].owner, len(clients)))
        else:
            chosen = held[split == number]
            parts.append([chosen[rows] for rows in rows_by_owner(table.owner[chosen], len(clients))])
    return parts
