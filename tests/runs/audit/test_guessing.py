"""How good guesses are, and what they prove."""

from __future__ import annotations

import numpy as np
import pytest

from fedsa.runs.audit.guessing import area_of, epsilon_proved, overlap


@pytest.mark.parametrize(
    ("given", "published"),
    [((1000, 100, 75, 1e-4), 0.673), ((100_000, 1510, 1439, 1e-5), 2.675)],
)
def test_the_proved_epsilon_is_the_papers(given: tuple[int, int, int, float], published: float) -> None:
    assert epsilon_proved(*given) == pytest.approx(published, abs=1e-3)  # arXiv:2305.08846, appendix D and section 7


def test_chance_proves_nothing_and_more_right_guesses_prove_more() -> None:
    assert epsilon_proved(200, 100, 50, 1e-5) == 0
    assert epsilon_proved(200, 100, 0, 1e-5) == 0
    proved = [epsilon_proved(200, 100, correct, 1e-5) for correct in (60, 70, 80, 90, 100)]
    assert proved == sorted(proved)
    assert proved[0] > 0
    assert epsilon_proved(200, 100, 100, 1e-2) < proved[-1]  # a larger δ explains more
    with pytest.raises(ValueError, match="at most"):
        epsilon_proved(10, 20, 5, 1e-5)


def test_guesses_of_a_private_answer_prove_no_more_than_its_epsilon() -> None:
    random, epsilon = np.random.default_rng(0), 1.0
    proved = []
    for _ in range(200):
        right = random.random(300) < np.exp(epsilon) / (1 + np.exp(epsilon))  # randomised response is (ε, 0)-private
        proved.append(epsilon_proved(300, 300, int(right.sum()), 0.0))
    assert np.mean(np.array(proved) > epsilon) <= 0.08  # 5 %, and the luck of 200 draws
    assert np.median(proved) > 0.6


def test_the_area_is_of_each_client_by_itself() -> None:
    random = np.random.default_rng(1)
    high, low = random.normal(9, 1, 50), random.normal(0, 1, 50)  # two clients whose rows differ, and tell nothing
    area = area_of([(high[:25], high[25:]), (low[:25], low[25:])], random)
    assert area.low < 0.5 < area.high
    assert area.low < area.value < area.high
    certain = area_of([(np.array([2.0, 3.0]), np.array([0.0, 1.0]))], random)
    assert (certain.value, certain.low, certain.high) == (1, 1, 1)


def test_the_area_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(2)
    members, others = random.integers(0, 5, 40).astype(float), random.integers(0, 4, 30).astype(float)
    expected = roc_auc_score([1] * 40 + [0] * 30, np.concatenate([members, others]))
    assert area_of([(members, others)], random).value == pytest.approx(expected)


def test_bags_of_tokens_overlap_as_often_as_both_have_them() -> None:
    assert overlap([1, 1, 2], [1, 2, 2]) == pytest.approx(2 / 3)
    assert overlap([1, 2], [1, 2]) == 1
    assert overlap([], [1]) == overlap([3], [1]) == 0
