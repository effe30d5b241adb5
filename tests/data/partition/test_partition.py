"""Laws of partitions, over every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.data.partition import label_counts, partition_columns, partition_rows
from fedsa.data.partition.allotting import apportion, deal
from fedsa.data.partition.plotting import draw_partition
from fedsa.errors import DataError
from fedsa.recipe import PartitionSettings
from support.tiers import first_is_quick

KINDS = ["column", "files", "iid", "dirichlet", "client_dirichlet", "shards", "size"]
SPLITS = ("train", "validation", "test")


def options(kind: str, **more: Any) -> PartitionSettings:
    base: dict[str, Any] = {"kind": kind, "min_examples": 3, "dirichlet_alpha": 5.0}
    base |= {"column": "who"} if kind == "column" else {} if kind == "files" else {"clients": 3}
    return PartitionSettings(**(base | more))


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """Rows of 2 to 5 classes with a client, a domain and a group column; groups lie inside one domain."""
    rows = draw(st.integers(90, 200))
    classes = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, classes, rows)
    labels[:2] = [0, 1]
    document = rng.integers(0, rows // 2, rows)
    who = (np.arange(rows) % 4).tolist()
    columns = {"who": who, "client": who, "domain": [f"d{d % 2}" for d in document], "document": document.tolist()}
    return labels, columns


def rows_of(partition: Any) -> np.ndarray:
    return np.concatenate([part for rows in partition.clients.values() for part in rows])


@pytest.mark.parametrize("kind", KINDS)
@given(table=tables(), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_complete_disjoint_and_mixed_alike(kind: str, table: Any, seed: int) -> None:
    labels, columns = table
    chosen = options(kind)
    partition = partition_rows(chosen, labels=labels, columns=columns, seed=seed)
    assert sorted(rows_of(partition)) == list(range(len(labels)))
    assert list(partition.clients) == sorted(partition.clients)
    for rows in partition.clients.values():
        total = np.bincount(labels[np.concatenate(list(rows))], minlength=5)
        for part, fraction in zip(rows, (0.65, 0.15, 0.2), strict=True):
            assert len(part)
            assert (np.diff(part) > 0).all()
            assert (np.abs(np.bincount(labels[part], minlength=5) - fraction * total) < 1).all()


@pytest.mark.parametrize("kind", KINDS)
@given(table=tables(), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_groups_never_straddle(kind: str, table: Any, seed: int) -> None:
    labels, columns = table
    chosen = options(kind, group="document")
    partition = partition_rows(chosen, labels=labels, columns=columns, seed=seed)
    assert sorted(rows_of(partition)) == list(range(len(labels)))
    group = np.array(columns["document"])
    home: dict[Any, tuple[str, int]] = {}
    for client, rows in partition.clients.items():
        for number, part in enumerate(rows):
            assert len(part)
            for one in set(group[part].tolist()):
                key = (client, one) if kind in ("column", "files") else one
                assert home.setdefault(key, (client, number)) == (client, number)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("column", "files")])
@given(table=tables(), seed=st.integers(0, 100))
@settings(max_examples=8, deadline=None)
def test_within_keeps_values_apart(kind: str, table: Any, seed: int) -> None:
    labels, columns = table
    chosen = options(kind, within="domain", clients={"d0": 2, "d1": 1}, max_examples=20)
    partition = partition_rows(chosen, labels=labels, columns=columns, seed=seed)
    assert list(partition.clients) == ["d0-1", "d0-2", "d1-1"]
    for client, rows in partition.clients.items():
        assert rows.num_examples <= 20
        assert {columns["domain"][row] for part in rows for row in part} == {client[:2]}
    assert len(set(rows_of(partition).tolist())) == len(rows_of(partition))


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides(kind: str) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 150)
    columns = {"who": [row % 3 for row in range(150)], "client": [row % 3 for row in range(150)]}
    first, again, other = (partition_rows(options(kind), labels=labels, columns=columns, seed=s) for s in (1, 1, 2))
    assert first == again
    for client, rows in first.clients.items():
        assert rows != other.clients[client]
    held, elsewhere = (
        [sorted(np.concatenate(list(rows))) for rows in made.clients.values()] for made in (first, other)
    )
    assert (held == elsewhere) == (kind in ("column", "files"))  # who has which row is drawn too, where it is open


@pytest.mark.parametrize("kind", ["column", "files"])
@pytest.mark.parametrize(
    "more",
    [{}, {"group": "document"}, {"max_examples": 15}, {"group": "document", "max_examples": 18}],
    ids=["rows", "groups", "rows, limited", "groups, limited"],
)
@given(table=tables(), seed=st.integers(0, 100), own_test=st.booleans())
@settings(max_examples=10, deadline=None)
def test_a_clients_cut_depends_on_that_client_alone(
    kind: str, more: dict[str, Any], table: Any, seed: int, own_test: bool
) -> None:
    """A site with one client's rows alone cuts them as they are cut among all, not knowing the other classes."""
    labels, columns = table
    chosen, who = options(kind, **more), np.array(columns["who"])
    tested = 60 if own_test else 0  # the first rows stand for a test split that the data has of its own

    def cut(rows: np.ndarray, test_rows: np.ndarray) -> Any:
        classes, numbers = np.unique(labels[rows], return_inverse=True)
        test = {
            "test_labels": np.searchsorted(classes, labels[test_rows]),
            "test_columns": {name: [column[row] for row in test_rows] for name, column in columns.items()},
        }
        own = {name: [column[row] for row in rows] for name, column in columns.items()}
        return partition_rows(chosen, labels=numbers, columns=own, seed=seed, **(test if own_test else {}))

    whole = cut(np.arange(len(labels)), np.arange(tested))
    assert len(whole.clients) == 4
    for client, together in whole.clients.items():
        rows, test_rows = (np.flatnonzero(part == int(client)) for part in (who, who[:tested]))
        (alone,) = cut(rows, test_rows).clients.values()
        tables_of_splits = (rows, rows, test_rows if own_test else rows)
        for numbers, own_numbers, of_client in zip(together, alone, tables_of_splits, strict=True):
            assert numbers.tolist() == of_client[own_numbers].tolist()


def test_clients_of_equal_rows_are_cut_differently() -> None:
    labels = np.arange(80) % 2
    partition = partition_rows(options("column"), labels=labels, columns={"who": ["a"] * 40 + ["b"] * 40}, seed=0)
    assert partition.clients["a"].test.tolist() != (partition.clients["b"].test - 40).tolist()


def test_of_clients_of_equal_rows_other_rows_are_kept() -> None:
    labels = np.arange(80) % 2
    chosen, columns = options("column", max_examples=20), {"who": ["a"] * 40 + ["b"] * 40}
    clients = partition_rows(chosen, labels=labels, columns=columns, seed=0).clients
    kept = {client: set(np.concatenate(list(clients[client])) - first) for client, first in (("a", 0), ("b", 40))}
    assert len(kept["a"]) == len(kept["b"]) == 20
    assert kept["a"] != kept["b"]


def test_a_client_that_is_left_out_changes_nobodys_cut() -> None:
    labels = np.arange(70) % 2
    who = np.array(["a"] * 30 + ["b"] * 5 + ["c"] * 35)
    chosen = options("column", min_examples=10, leave_out_small=True)
    whole = partition_rows(chosen, labels=labels, columns={"who": who.tolist()}, seed=0)
    assert list(whole.left_out) == ["b"]
    kept = np.flatnonzero(who != "b")
    without = partition_rows(chosen, labels=labels[kept], columns={"who": who[kept].tolist()}, seed=0)
    for client, rows in whole.clients.items():
        for part, same in zip(rows, without.clients[client], strict=True):
            assert part.tolist() == kept[same].tolist()


def test_lower_alpha_is_more_uneven() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 2000)

    def spread(kind: str, alpha: float) -> float:
        """Mean over seeds: for dirichlet of label shares over clients, for size of client sizes."""
        found = []
        for seed in range(5):
            chosen = options(kind, clients=8, dirichlet_alpha=alpha)
            counts = label_counts(partition_rows(chosen, labels=labels, columns={}, seed=seed), labels, 4, "train")
            table = np.array(list(counts.values()))
            mix = table / table.sum(1, keepdims=True)
            found.append(mix.std(0).mean() if kind == "dirichlet" else table.sum(1).std())
        return float(np.mean(found))

    for kind in ("dirichlet", "size"):
        uneven = [spread(kind, alpha) for alpha in (0.3, 2.0, 100.0)]
        assert uneven[0] > uneven[1] > uneven[2]


def test_a_clients_own_label_mix() -> None:
    """Equal sizes; the lower the concentration, the fewer labels hold most of a client's rows. CIFAR-100's numbers."""
    labels = np.repeat(np.arange(20), 2500)

    def labels_of_most_rows(alpha: float) -> float:
        chosen = options("client_dirichlet", clients=100, dirichlet_alpha=alpha)
        partition = partition_rows(chosen, labels=labels, columns={}, seed=0)
        rows = [np.concatenate(list(parts)) for parts in partition.clients.values()]
        counts = np.array([np.bincount(labels[own], minlength=20) for own in rows])
        assert (counts.sum(axis=1) == 500).all()
        assert (counts.sum(axis=0) == 2500).all()
        largest = np.sort(counts, axis=1)[:, ::-1].cumsum(axis=1)
        return float(np.median((largest < 450).sum(axis=1) + 1))

    assert labels_of_most_rows(0.05) == 2
    assert 6 < labels_of_most_rows(0.3) < labels_of_most_rows(100.0)


def test_kinds_are_what_they_say() -> None:
    labels = np.repeat(np.arange(10), 100)
    shards = label_counts(
        partition_rows(options("shards", clients=10), labels=labels, columns={}, seed=0), labels, 10, "train"
    )
    assert max(np.count_nonzero(row) for row in shards.values()) <= 3  # a shard may lie across one border
    iid = partition_rows(options("iid", clients=7), labels=labels, columns={}, seed=0)
    assert {rows.num_examples for rows in iid.clients.values()} == {142, 143}
    size = partition_rows(options("size", clients=4, dirichlet_alpha=1.0), labels=labels, columns={}, seed=0)
    counts = np.array([np.bincount(labels[np.concatenate(list(rows))], minlength=10) for rows in size.clients.values()])
    assert (np.ptp(counts, axis=1) <= 1).all()  # one label mix
    assert np.ptp(counts.sum(1)) > 100  # uneven sizes


def test_ids_sort_naturally() -> None:
    labels = np.arange(200) % 2
    partition = partition_rows(options("iid", clients=12), labels=labels, columns={}, seed=0)
    assert list(partition.clients) == [f"client-{number:02}" for number in range(1, 13)]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_own_splits_are_dealt_with_the_clients_mix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, test = rng.integers(0, 3, 400), rng.integers(0, 3, 200)
    domain, test_domain = [f"d{row % 2}" for row in range(400)], [f"d{row % 2}" for row in range(200)]
    partition = partition_rows(
        options("dirichlet", within="domain", clients=2, min_examples=20),
        labels=labels,
        columns={"domain": domain},
        seed=seed,
        test_labels=test,
        test_columns={"domain": test_domain},
    )
    assert partition.own_test
    assert not partition.own_validation
    assert sorted(np.concatenate([rows.test for rows in partition.clients.values()])) == list(range(200))
    for client, rows in partition.clients.items():
        assert {test_domain[row] for row in rows.test} == {client[:2]}
        table = np.bincount(labels[np.concatenate([rows.train, rows.validation])], minlength=3)
        for label in range(3):
            cell = [row for row in range(400) if domain[row] == client[:2] and labels[row] == label]
            own = [row for row in range(200) if test_domain[row] == client[:2] and test[row] == label]
            assert abs((test[rows.test] == label).sum() - len(own) * table[label] / len(cell)) < 1


def test_own_splits_by_client_column_and_cap() -> None:
    labels, own = np.arange(120) % 2, np.arange(40) % 2
    who, own_who = [f"c{row % 3}" for row in range(120)], [f"c{row % 3}" for row in range(40)]
    partition = partition_rows(
        options("column", max_examples=20),
        labels=labels,
        columns={"who": who},
        seed=0,
        validation_labels=own,
        validation_columns={"who": own_who},
        test_labels=own,
        test_columns={"who": own_who},
    )
    for client, rows in partition.clients.items():
        assert rows.num_examples == 20
        assert {own_who[row] for part in (rows.validation, rows.test) for row in part} == {client}
    with pytest.raises(DataError, match=r"test split: clients of column 'who' that have no rows in the table: 'c9'"):
        partition_rows(
            options("column"),
            labels=labels,
            columns={"who": who},
            seed=0,
            test_labels=own,
            test_columns={"who": ["c9", *own_who[1:]]},
        )


def test_max_examples_keeps_mix_and_groups() -> None:
    rng = np.random.default_rng(0)
    document = np.sort(rng.integers(0, 300, 3000))
    labels = (rng.random(300) < 0.3).astype(np.int64)[document]
    chosen = options("iid", clients=2, max_examples=200, group="document")
    partition = partition_rows(chosen, labels=labels, columns={"document": document.tolist()}, seed=0)
    for rows in partition.clients.values():
        assert 185 <= rows.num_examples <= 200
        assert abs(labels[np.concatenate(list(rows))].mean() - labels.mean()) < 0.06
    exact = partition_rows(options("iid", clients=2, max_examples=200), labels=labels, columns={}, seed=0)
    assert [rows.num_examples for rows in exact.clients.values()] == [200, 200]


def test_all_small_clients_are_listed() -> None:
    who = ["big"] * 40 + ["a"] * 4 + ["b"] * 7
    labels = np.arange(51) % 2
    with pytest.raises(DataError) as caught:
        partition_rows(options("column", min_examples=10), labels=labels, columns={"who": who}, seed=0)
    text = str(caught.value)
    assert text.startswith("2 of 3 clients cannot be used:")
    assert "client 'a': 4 rows, fewer than min_examples = 10" in text
    assert "client 'b': 7 rows, fewer than min_examples = 10" in text
    assert "merge these clients" in text


def test_a_client_of_one_document_is_refused() -> None:
    columns = {"who": ["x"] * 20 + ["y"] * 20, "document": [0] * 20 + list(range(1, 21))}
    with pytest.raises(DataError, match=r"client 'x': 1 group to make 3 splits of, one would be empty"):
        partition_rows(options("column", group="document"), labels=np.arange(40) % 2, columns=columns, seed=0)


def test_a_client_without_rows_of_an_own_split_is_refused() -> None:
    labels = np.arange(40) % 2
    with pytest.raises(DataError, match="client 'b': no test rows"):
        partition_rows(
            options("column"),
            labels=labels,
            columns={"who": ["a"] * 20 + ["b"] * 20},
            seed=0,
            test_labels=labels[:5],
            test_columns={"who": ["a"] * 5},
        )


@pytest.mark.parametrize(
    ("kind", "more", "columns", "text"),
    [
        ("column", {}, {"other": [0] * 60}, r"column 'who' \(the client\) is not in the data; there is: other"),
        (
            "column",
            {},
            {"who": [None, ""] + ["a"] * 58},
            r"column 'who' \(the client\) is empty in 2 of 60 rows, first in row 0",
        ),
        (
            "iid",
            {"group": "g"},
            {"g": [float("nan")] + [1.0] * 59},
            r"column 'g' \(partition.group\) is empty in 1 of 60",
        ),
        ("iid", {"clients": 30}, {}, "60 rows cannot be dealt to 30 clients with at least 3 rows each"),
        ("iid", {"group": "g"}, {"g": [0] * 60}, "60 rows in 1 group cannot be dealt to 3 clients"),
        (
            "iid",
            {"within": "d", "clients": {"x": 2, "z": 1}},
            {"d": ["x", "y"] * 30},
            r"(?s)does not fit the column 'd':\n  'z' is not a value.*'y' is a value of the column without a number",
        ),
        (
            "iid",
            {"within": "d", "group": "g"},
            {"d": ["x", "y"] * 30, "g": [row // 2 for row in range(60)]},
            r"30 groups \(column 'g'\) with rows in several values of 'd'",
        ),
        (
            "dirichlet",
            {"dirichlet_alpha": 0.001, "clients": 5},
            {},
            "in 200 draws of kind 'dirichlet' some client was always left with fewer than 3 .* higher dirichlet_alpha",
        ),
    ],
)
def test_refusals(kind: str, more: dict[str, Any], columns: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        partition_rows(options(kind, **more), labels=np.arange(60) % 2, columns=columns, seed=0)


def test_needed_columns() -> None:
    assert partition_columns(options("column", group="document")) == ["who", "document"]
    assert partition_columns(options("files")) == ["client"]
    assert partition_columns(options("iid", within="d", group="d")) == ["d"]


@given(
    totals=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
)
def test_apportion_rounds_and_carries(totals: list[int], weights: list[float]) -> None:
    shares = np.tile(np.array(weights) / sum(weights), (len(totals), 1))
    cells = apportion(np.array(totals), shares)
    quota = np.array(totals)[:, None] * shares
    assert (cells.sum(1) == totals).all()
    assert (np.abs(cells - quota) < 1).all()
    assert (np.abs(cells.sum(0) - quota.sum(0)) < 2).all()


def test_deal_is_exact_for_rows() -> None:
    assert deal(np.ones(6, np.int64), np.array([2, 0, 3, 1])).tolist() == [0, 0, 2, 2, 2, 3]


@pytest.mark.parametrize(("clients", "classes"), first_is_quick([(3, 2), (40, 12), (41, 2), (200, 3), (5, 77), (1, 1)]))
def test_drawing(clients: int, classes: int) -> None:
    counts = {f"client-{number}": [number] * classes for number in range(clients)}
    figure = draw_partition(counts, [f"class {label}" for label in range(classes)])
    figure.draw_without_rendering()
    assert len(figure.axes) == (1 if clients <= 40 and classes <= 12 else 3)
    assert 0 < len(figure.axes[0].get_yticks()) <= 40


def test_a_tight_cap_leaves_a_row_in_every_split() -> None:
    labels, own = np.zeros(4, np.int64), np.zeros(100, np.int64)
    partition = partition_rows(
        options("column", max_examples=3),
        labels=labels,
        columns={"who": ["a"] * 4},
        seed=0,
        validation_labels=own,
        test_labels=own,
    )
    assert [len(part) for part in partition.clients["a"]] == [1, 1, 1]
