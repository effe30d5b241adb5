"""Updates and whose they are."""

from __future__ import annotations

import numpy as np

from fedsa.runs.audit.source import named_right

CLIENTS = [f"client {number}" for number in range(5)]


def rounds(*, own: float, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    marks, common = own * random.normal(size=(5, 40)), 9 * random.normal(size=40)
    return [common + marks + random.normal(size=(5, 40)) for _ in range(6)]


def test_clients_with_a_direction_of_their_own_are_named() -> None:
    assert named_right(rounds(own=3), CLIENTS) == 1


def test_without_one_they_are_guessed() -> None:
    right = [named_right(rounds(own=0, seed=seed), CLIENTS) for seed in range(20)]
    assert abs(np.mean(right) - 1 / 5) < 0.08


def test_names_that_are_shuffled_in_each_round_are_guessed() -> None:
    random = np.random.default_rng(0)
    right = [
        named_right([each[random.permutation(5)] for each in rounds(own=3, seed=seed)], CLIENTS) for seed in range(20)
    ]
    assert abs(np.mean(right) - 1 / 5) < 0.08


def test_a_group_of_clients_has_one_name() -> None:
    groups = ["red", "red", "blue", "blue", "green"]
    random = np.random.default_rng(1)
    marks = {group: 3 * random.normal(size=40) for group in sorted(set(groups))}
    made = [np.stack([marks[group] for group in groups]) + random.normal(size=(5, 40)) for _ in range(4)]
    assert named_right(made, groups) == 1
