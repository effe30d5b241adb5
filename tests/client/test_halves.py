"""A client's training on each half of its rows."""

from __future__ import annotations

import numpy as np
import torch

from fedsa.client.halves import in_halves, mean_of_halves
from fedsa.client.training.job import Job, TrainingResult, dropout_seed
from fedsa.types import Factor, Key

KEY = Key("layer", Factor.B)


def job(rows: int, *, round: int = 1) -> Job:
    return Job("c0", round, 3, 7, {KEY: torch.zeros(2)}, (KEY,), (), {}, np.arange(rows))


def test_the_halves_have_each_row_once_and_chance_of_their_own():
    one, two = in_halves(job(9))
    assert sorted([*one.rows, *two.rows]) == list(range(9))
    assert abs(len(one.rows) - len(two.rows)) == 1
    assert dropout_seed(one) != dropout_seed(two)
    assert not np.array_equal(one.rows, in_halves(job(9, round=2))[0].rows), "they are drawn anew in each round"
    assert [half.rows.tolist() for half in in_halves(job(1))] == [[0], [0]]


def test_their_mean_knows_each():
    one, two = (
        TrainingResult(
            {KEY: torch.full((2,), value)},
            {f"step|{KEY}": torch.tensor(steps), f"exp_avg|{KEY}": torch.full((2,), value)},
            {"loss": value, "steps": steps, "seconds": 1.0},
        )
        for value, steps in ((1.0, 3.0), (2.0, 4.0))
    )
    mean = mean_of_halves(one, two)
    assert mean.tensors[KEY].tolist() == [1.5, 1.5]
    assert mean.optimizer_state[f"step|{KEY}"] == 4
    assert mean.optimizer_state[f"exp_avg|{KEY}"].tolist() == [1.5, 1.5]
    assert mean.metrics == {"loss": 1.5, "steps": 7.0, "seconds": 2.0}
    assert [half[KEY].tolist() for half in mean.halves] == [[1.0, 1.0], [2.0, 2.0]]
