import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.client.training.job import Job, check_finite, dropout_seed, learning_rate_factor, local_batches
from fedsa.errors import TrainingError
from fedsa.recipe import DEFAULT_LOCAL_STEPS, TrainingSettings
from fedsa.types import Factor, Key

LAW = settings(max_examples=50, deadline=None, database=None, derandomize=True)
LENGTHS = np.tile(np.random.default_rng(0).integers(3, 30, 31), 7)  # of every row; rows 31 apart are alike
DISTINCT = np.random.default_rng(1).permutation(200)


def job(count: int, *, client: str = "c", round: int = 1, rounds: int = 9, seed: int = 0, first: int = 100) -> Job:
    """Return a job without tensors, for a client with the rows first, first + 1, ..."""
    return Job(client, round, rounds, seed, {}, (), (), {}, np.arange(first, first + count))


def flat(steps) -> list[int]:
    return [int(row) for batches in steps for rows in batches for row in rows]


# -- batches ----------------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 60),
    steps=st.integers(1, 6),
    accumulate=st.integers(1, 3),
    rounds=st.integers(1, 5),
)
@LAW
def test_with_local_steps_passes_go_on_over_round_boundaries(count, batch_size, steps, accumulate, rounds):
    given_settings = TrainingSettings(local_steps=steps, batch_size=batch_size, gradient_accumulation_steps=accumulate)
    seen = []
    for round in range(1, rounds + 1):
        batches = local_batches(job(count, round=round), given_settings, LENGTHS)
        assert len(batches) == steps
        assert all(len(group) == accumulate for group in batches)
        assert all(len(rows) == min(batch_size, count) for group in batches for rows in group)
        seen += flat(batches)
    for start in range(0, len(seen), count):
        one_pass = seen[start : start + count]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(100, 100 + count))


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 60),
    epochs=st.integers(1, 3),
    accumulate=st.integers(1, 4),
    round=st.integers(1, 5),
)
@LAW
def test_with_local_epochs_a_round_is_whole_passes(count, batch_size, epochs, accumulate, round):
    batches = local_batches(
        job(count, round=round),
        TrainingSettings(local_epochs=epochs, batch_size=batch_size, gradient_accumulation_steps=accumulate),
        LENGTHS,
    )
    seen = flat(batches)
    assert len(seen) == epochs * count
    for start in range(0, len(seen), count):
        assert sorted(seen[start : start + count]) == list(range(100, 100 + count))
    per_pass = math.ceil(count / min(batch_size, count))
    assert len(batches) == math.ceil(epochs * per_pass / accumulate)
    assert all(len(group) == accumulate for group in batches[:-1])
    assert all(len(rows) <= batch_size for group in batches for rows in group)


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("length", [{"local_steps": 4}, {"local_epochs": 2}])
def test_batches_depend_on_seed_client_and_round_alone(length, group):
    chosen = TrainingSettings(batch_size=5, group_by_length=group, **length)
    rows = np.arange(100, 123)
    plain = flat(local_batches(job(23), chosen, LENGTHS))
    other_tensors = Job("c", 1, 50, 0, {}, ("a",), ("b",), {"step|x": torch.ones(1)}, rows)
    assert flat(local_batches(other_tensors, chosen, LENGTHS)) == plain
    for different in (job(23, client="d"), job(23, round=2), job(23, seed=1)):
        assert flat(local_batches(different, chosen, LENGTHS)) != plain
    assert [row - 100 for row in plain] == [row - 7 for row in flat(local_batches(job(23, first=7), chosen, LENGTHS))]


def test_passes_differ_from_each_other():
    seen = flat(local_batches(job(20), TrainingSettings(local_epochs=2), LENGTHS))
    assert seen[:20] != seen[20:]


def test_a_round_has_ten_steps_unless_told_otherwise():
    assert DEFAULT_LOCAL_STEPS == 10
    assert len(local_batches(job(20), TrainingSettings(), LENGTHS)) == 10


# -- rows of like length ----------------------------------------------------------------------------------------------


def sizes(steps) -> list[int]:
    return sorted(len(rows) for batches in steps for rows in batches)


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 60),
    length=st.sampled_from([{"local_steps": 1}, {"local_steps": 5}, {"local_epochs": 1}, {"local_epochs": 3}]),
    accumulate=st.integers(1, 3),
    round=st.integers(1, 5),
)
@LAW
def test_grouping_by_length_trains_the_same_rows(count, batch_size, length, accumulate, round):
    common = {"batch_size": batch_size, "gradient_accumulation_steps": accumulate, **length}
    plain, grouped = (
        local_batches(job(count, round=round), TrainingSettings(**common, group_by_length=group), LENGTHS)
        for group in (False, True)
    )
    assert sorted(flat(grouped)) == sorted(flat(plain))
    assert [len(batches) for batches in grouped] == [len(batches) for batches in plain]
    assert sizes(grouped) == sizes(plain)
    if "local_epochs" in length:
        for start in range(0, length["local_epochs"] * count, count):
            assert sorted(flat(grouped)[start : start + count]) == list(range(100, 100 + count))


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    accumulate=st.integers(1, 3),
    whole=st.booleans(),
    round=st.integers(1, 5),
)
@LAW
def test_rows_of_a_batch_are_neighbours_in_length(count, batch_size, accumulate, whole, round):
    """In one pass no batch has rows on both sides of a row of another batch."""
    size = min(batch_size, count)
    steps = count // (size * accumulate)  # so that a round is no more than a pass
    length = {"local_epochs": 1} if whole or not steps else {"local_steps": steps}
    chosen = TrainingSettings(
        batch_size=batch_size, gradient_accumulation_steps=accumulate, group_by_length=True, **length
    )
    round = round if "local_epochs" in length else 1
    batches = [rows for group in local_batches(job(count, round=round), chosen, LENGTHS) for rows in group]
    ranges = sorted((int(LENGTHS[rows].min()), int(LENGTHS[rows].max())) for rows in batches)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def test_lengths_are_those_of_the_rows_and_not_of_their_places():
    chosen = TrainingSettings(local_epochs=1, batch_size=10, group_by_length=True)
    steps = local_batches(job(20, first=60), chosen, DISTINCT)
    short, long = sorted(sorted(DISTINCT[rows]) for (rows,) in steps)
    assert short + long == sorted(DISTINCT[60:80])


def test_batches_of_like_length_come_in_random_order():
    chosen = TrainingSettings(local_epochs=1, batch_size=4, group_by_length=True)

    def order(round: int) -> tuple[int, ...]:
        means = [float(DISTINCT[rows].mean()) for (rows,) in local_batches(job(20, round=round), chosen, DISTINCT)]
        return tuple(np.argsort(np.argsort(means)).tolist())

    orders = [order(round) for round in range(1, 61)]
    assert all(sorted(each) == list(range(5)) for each in orders)
    assert len(set(orders)) > 30  # of 120
    for place in range(5):
        assert {each[place] for each in orders} == set(range(5)), "every length comes at every place"


@pytest.mark.parametrize("count", [8, 16, 40])
def test_a_batch_of_like_length_has_different_rows(count):
    chosen = TrainingSettings(local_steps=10, batch_size=16, group_by_length=True)
    for (rows,) in local_batches(job(count), chosen, DISTINCT):
        assert len(set(rows.tolist())) >= len(rows) / 2


def test_batches_of_like_length_come_in_another_order_in_each_pass():
    chosen = TrainingSettings(local_epochs=3, batch_size=2, group_by_length=True)
    seen = flat(local_batches(job(20), chosen, DISTINCT))
    assert sorted(seen[:20]) == sorted(seen[20:40])
    assert len({tuple(seen[start : start + 20]) for start in (0, 20, 40)}) == 3


def test_rows_of_one_length_are_still_shuffled():
    alike = np.full(200, 7)
    chosen = TrainingSettings(local_epochs=1, batch_size=4, group_by_length=True)
    first, second = ([set(rows) for (rows,) in local_batches(job(20, round=round), chosen, alike)] for round in (1, 2))
    assert not any(batch in second for batch in first)


# -- the learning rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0.0, {0.0: 1, 0.5: 1, 0.99: 1}),
        ("constant", 0.2, {0.0: 0, 0.1: 0.5, 0.2: 1, 0.9: 1}),
        ("linear", 0.0, {0.0: 1, 0.25: 0.75, 0.75: 0.25}),
        ("linear", 0.5, {0.0: 0, 0.25: 0.5, 0.5: 1, 0.75: 0.5}),
        # ½(1 + cos 0) = 1, ½(1 + cos π/3) = ¾, ½(1 + cos π/2) = ½, ½(1 + cos 2π/3) = ¼
        ("cosine", 0.0, {0.0: 1, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25}),
        ("cosine", 0.25, {0.125: 0.5, 0.25: 1, 0.625: 0.5}),
    ],
)
def test_learning_rate_factor(schedule, warmup, factors):
    chosen = TrainingSettings(schedule=schedule, warmup_fraction=warmup)
    for progress, factor in factors.items():
        assert learning_rate_factor(chosen, progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_ends_near_zero(schedule):
    assert learning_rate_factor(TrainingSettings(schedule=schedule, warmup_fraction=0.1), 1 - 1e-4) < 2e-4


# -- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_depends_on_seed_client_and_round_alone():
    jobs = [job(9), job(9, client="d"), job(9, round=2), job(9, seed=1)]
    assert len({dropout_seed(each) for each in jobs}) == 4
    assert dropout_seed(job(5, first=7, rounds=3)) == dropout_seed(job(9))


# -- what is no use ---------------------------------------------------------------------------------------------------

KEY = Key("layer", Factor.A)


@pytest.mark.parametrize(
    ("loss", "value", "fine"),
    [(1.0, 1.0, True), (math.nan, 1.0, False), (math.inf, 1.0, False), (1.0, math.nan, False), (1.0, -math.inf, False)],
)
def test_what_is_not_finite_is_refused(loss, value, fine):
    tensors = {KEY: torch.ones(3), KEY._replace(factor=Factor.B): torch.tensor([1.0, value])}
    if fine:
        check_finite(job(9), loss, tensors, TrainingSettings())
        return
    with pytest.raises(TrainingError, match=r"^client 'c', round 3: the loss is not finite \(mean .*\(now 0\.25\) or"):
        check_finite(job(9, round=3), loss, tensors, TrainingSettings(learning_rate=0.25))
