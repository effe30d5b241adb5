"""Values as integers: no overflow, no clipping, a bound on the error."""

from __future__ import annotations

import math

import pytest
import torch

from fedsa.errors import TrainingError, UserError
from fedsa.secure import LARGEST, FixedPoint, fixed_point_for
from fedsa.types import Factor, Key

KEY = Key("layer", Factor.A)


@pytest.mark.parametrize("value", [LARGEST * 1.001, -2 * LARGEST, math.inf, math.nan])
def test_what_does_not_fit_is_refused_and_not_clipped(value: float) -> None:
    with pytest.raises(TrainingError, match=r"client c: layer:A:default has a value that .* larger than 1,048,576"):
        fixed_point_for(10).encode({KEY: torch.tensor([0.5, value])}, 1, "client c")


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [2600], [2**20] * 100, [2**31, 1]])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_values_of_all_clients_do_not_overflow(weights: list[int], sign: int) -> None:
    point = fixed_point_for(sum(weights))
    total = sum(point.encode({KEY: torch.tensor([sign * LARGEST])}, weight, "c")[KEY] for weight in weights)
    assert point.decode_mean({KEY: total}, sum(weights))[KEY].tolist() == [sign * LARGEST]
    assert abs(int(total)) < 2**62


def test_a_value_is_rounded_to_the_nearest_step() -> None:
    point = FixedPoint(4)
    values = torch.linspace(-3, 3, 1001)
    decoded = point.decode_mean(point.encode({KEY: values}, 3, "c"), 3)[KEY]
    error = (decoded - values.double()).abs()
    assert float(error.max()) <= point.largest_error == 2**-5
    assert float(error.max()) > 0.9 * point.largest_error, "the bound is near"


def test_weights_that_leave_no_bits_are_refused() -> None:
    with pytest.raises(UserError, match="set weighting = 'uniform'"):
        fixed_point_for(2**40)
