"""The time that is left: right from the second result on, whatever rounds, clients and evaluations are like."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest

from fedsa.algorithms import make_algorithm
from fedsa.cost.pace import Pace, evaluated_rounds, is_evaluated, passes_on_test, passes_on_validation, trained_rows
from fedsa.recipe import Recipe
from fedsa.server import sample_size


def rows_of(sizes: Sequence[int]) -> dict[str, dict[str, int]]:
    """Return clients with training rows of these numbers, a quarter as many for validation and for test."""
    return {
        f"client {number}": {"train_examples": size, "validation_examples": size // 4, "test_examples": size // 4}
        for number, size in enumerate(sizes)
    }


Events = Iterator[tuple[float, Callable[[Pace], None]]]


def events(recipe: Recipe, rows: dict[str, dict[str, int]], *, trained: float, evaluated: float, last: int) -> Events:
    """Yield the seconds before each event of a run, and the event; ``last``: the chosen round."""
    clients, together = list(rows), max(1, recipe.training.cohort_size)
    draw, algorithm = itertools.cycle(clients), make_algorithm(recipe.algorithm, recipe.algorithm_options)

    def in_groups(names: list[str], seconds: Callable[[str], float], tell: Callable[[Pace, str], None]) -> Events:
        for start in range(0, len(names), together):
            group = names[start : start + together]
            yield sum(map(seconds, group)), lambda pace, name=group[0]: tell(pace, name)
            for name in group[1:]:
                yield 0.0, lambda pace, name=name: tell(pace, name)

    def measured(split: str, round: int, names: list[str]) -> Events:
        return in_groups(
            names, lambda c: evaluated * rows[c][f"{split}_examples"], lambda pace, c: pace.evaluated(c, split, round)
        )

    for round in range(recipe.rounds + 1):
        size = sample_size(recipe.fraction_train, len(clients))
        sampled = sorted(next(draw) for _ in range(size)) if round else []
        yield 0.0, lambda pace, round=round, sampled=sampled: pace.round_begins(round, sampled)
        yield from in_groups(
            sampled,
            lambda c, round=round: trained * trained_rows(recipe, algorithm, round, rows[c]["train_examples"]),
            lambda pace, c: pace.trained(c),
        )
        if is_evaluated(recipe.evaluation, recipe.rounds, round):
            for _ in range(passes_on_validation(recipe.evaluation)):
                yield from measured("validation", round, clients)
    yield from measured("test", 0, clients)
    for _ in range((passes_on_test(recipe.evaluation) - 1) // 2):
        for round in sorted({last, recipe.rounds}):
            yield from measured("test", round, clients)


@pytest.mark.parametrize("last", [5, 10])
@pytest.mark.parametrize("slow_start", [30.0])
@pytest.mark.parametrize("evaluated", [0.01, 0.5], ids=["quick evaluation", "slow evaluation"])
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["training.trainer=cohort", "training.cohort_size=4"],
        ["training={local_epochs=2}"],
        ["fraction_train=0.4", "evaluation.evaluate_every=3"],
        ["evaluation.evaluate_after=both"],
        ["algorithm=partial_pooling", "algorithm_options={own_share='difference', estimate_every=3}"],
        ["training={local_epochs=1, trainer='cohort', cohort_size=2}", "evaluation.evaluate_after=training"],
    ],
    ids=str,
)
def test_the_time_left_is_right_from_the_second_result_on(
    tiny_recipe: Callable[..., Recipe], settings: list[str], evaluated: float, slow_start: float, last: int
) -> None:
    """A made-up run on a made-up clock: what is said to be left is compared with what then passes."""
    recipe = tiny_recipe("rounds=10", *settings)
    rows = rows_of([40, 60, 80, 52])
    story = list(events(recipe, rows, trained=0.03, evaluated=evaluated, last=last))
    first = next(place for place, (seconds, _) in enumerate(story) if seconds)
    story[first] = (story[first][0] + slow_start, story[first][1])
    times = list(itertools.accumulate(seconds for seconds, _ in story))
    now, wrong, passes = 0.0, list[float](), 0
    pace = Pace(recipe, rows, 0, lambda: now)
    for place, (seconds, event) in enumerate(story):
        before = pace.left
        if before is not None and seconds > 0.1:  # it counts down between events
            now += 0.1
            assert pace.left == pytest.approx(before - 0.1, abs=1e-6)
        now = times[place]
        event(pace)
        passes += seconds > 0
        whole = place + 1 == len(story) or story[place + 1][0] > 0  # not between those that came at once
        if pace.left is not None and whole and passes > 4:
            wrong.append(abs(pace.left - (times[-1] - now)) / times[-1])
    assert pace.left == pytest.approx(0, abs=0.01)
    assert pace.part == pytest.approx(1)
    unknown = 0.0  # until the tests, whether the last round is the chosen one, and so measured once
    if last == recipe.rounds:
        unknown = (
            evaluated
            * sum(each["test_examples"] for each in rows.values())
            * (passes_on_test(recipe.evaluation) - 1)
            / 2
        )
    assert max(wrong) < 0.08 + unknown / times[-1]


def test_the_second_result_tells(tiny_recipe: Callable[..., Recipe]) -> None:
    """Loading makes the first of each kind slow; the second is what all are expected to take."""
    rows = rows_of([40] * 5)
    now = 0.0
    pace = Pace(tiny_recipe("rounds=4", "training.local_steps=10"), rows, 0, lambda: now)
    pace.round_begins(0, ())
    for client, seconds in zip(rows, (9.0, 1.0, 1.0, 1.0, 1.0), strict=True):
        now += seconds
        pace.evaluated(client, "validation", 0)
        assert pace.left is None  # of training nothing is known
    pace.round_begins(1, list(rows))
    now += 50
    pace.trained("client 0")
    now += 10
    pace.trained("client 1")
    left = 18 * 10 + (4 * 5 + 3 * 5) * 1  # trainings; validations of four rounds and three tests of each client
    assert pace.left == pytest.approx(left)
    now += 4
    assert pace.left == pytest.approx(left - 4)
    now += 500  # much later than expected: what comes after this round's training is still to come
    assert pace.left == pytest.approx(left - 30)


@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_evaluated_rounds_are_counted(tiny_recipe: Callable[..., Recipe], rounds: int, every: int) -> None:
    recipe = tiny_recipe(f"rounds={rounds}", f"evaluation.evaluate_every={every}")
    for after in range(-1, rounds + 1):
        listed = [
            round for round in range(after + 1, rounds + 1) if is_evaluated(recipe.evaluation, recipe.rounds, round)
        ]
        assert evaluated_rounds(recipe.evaluation, rounds, after) == len(listed)


def test_one_training_on_all_rows_is_that_of_all_clients(tiny_recipe: Callable[..., Recipe]) -> None:
    """Three clients of 40 rows would train 3 steps of 4 rows each; or two passes over their rows."""
    for settings, expected in ((), 36.0), (("training={local_epochs=2, batch_size=4}",), 240.0):
        now = [0.0]
        pace = Pace(tiny_recipe("algorithm=pooled", *settings), rows_of([40, 40, 40]), clock=lambda now=now: now[0])
        for round in (1, 2):
            pace.round_begins(round, ["client 0"])
            now[0] += 2.0
            pace.trained("client 0")
        assert pace.rows_per_second("training") == pytest.approx(expected / 2)
