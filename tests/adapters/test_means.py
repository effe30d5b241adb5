"""Means over clients: exact, one state at a time, and of the rows that each client has."""

from __future__ import annotations

import torch

from fedsa.adapters.means import weighted_mean
from fedsa.types import Factor, Key


def test_weighted_mean_by_hand():
    # (1·[0, 4] + 3·[8, 0]) / 4 = [6, 1]
    key = Key("layer", Factor.A)
    states = [({key: torch.tensor([0.0, 4.0])}, 1), ({key: torch.tensor([8.0, 0.0])}, 3)]
    mean = weighted_mean(iter(states))
    assert mean[key].tolist() == [6.0, 1.0]
    assert mean[key].dtype == torch.float64
    assert states[0][0][key].tolist() == [0.0, 4.0], "nothing is summed up in place of a client's tensor"
    assert weighted_mean([]) == {}


def test_rows_that_no_client_has_stay_as_they_were():
    """Of three rows of A one client has the first, the other two: (1·10 + 3·20)/4, 30, and what was there."""
    a, b = Key("layer", Factor.A), Key("layer", Factor.B)
    before = {a: torch.tensor([[1.0], [2.0], [3.0]]), b: torch.tensor([[1.0, 2.0, 3.0]])}
    states = [({a: torch.tensor([[10.0]]), b: torch.tensor([[10.0]])}, 1)]
    states += [({a: torch.tensor([[20.0], [30.0]]), b: torch.tensor([[20.0, 30.0]])}, 3)]
    means = weighted_mean(iter(states), before)
    assert means[a].tolist() == [[17.5], [30.0], [3.0]]
    assert means[b].tolist() == [[17.5, 30.0, 3.0]]


def test_what_a_mean_in_fp32_would_lose():
    """A thousand clients at 1, one at 2²⁴ with the weight of all others: 2²³ + ½; an fp32 sum sticks at 2²⁴·1000."""
    key = Key("layer", Factor.A)
    states = [({key: torch.tensor([2.0**24])}, 1000), *(({key: torch.ones(1)}, 1) for _ in range(1000))]
    assert weighted_mean(states)[key].tolist() == [2.0**23 + 0.5]
