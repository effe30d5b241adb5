"""How frequent each class is at a client: what is added to its head, and that it is taken off again."""

from __future__ import annotations

import math

import pytest
import torch

from fedsa.adapters.heads import bias_of_classes
from fedsa.algorithms import make_algorithm
from fedsa.client.class_prior import ClassPriors, class_priors
from fedsa.types import Factor, Key, State

B, WEIGHT, BIAS = Key("layer", Factor.B), Key("classifier.weight", Factor.HEAD), Key("classifier.bias", Factor.HEAD)


def tensors(classes: int = 3) -> dict[Key, torch.Tensor]:
    return {B: torch.zeros(classes), WEIGHT: torch.zeros(classes, 4), BIAS: torch.tensor([0.5, -1.0, 0.25][:classes])}


def test_scores_of_classes_are_raised_by_the_logarithm_of_their_frequency():
    priors = ClassPriors(BIAS, {"one": [7, 0, 1], "two": [4, 4, 4]})
    before = tensors()
    after = priors.added("one", before)
    moved = after[BIAS] - before[BIAS]
    chances = (moved.double().exp() / moved.double().exp().sum()).tolist()
    assert chances == pytest.approx([8 / 11, 1 / 11, 2 / 11])
    assert float(moved.sum()) == pytest.approx(0, abs=1e-6)
    assert all(after[key] is before[key] for key in (B, WEIGHT))
    assert torch.equal(priors.added("two", before)[BIAS], before[BIAS])
    assert before[BIAS].tolist() == [0.5, -1.0, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_added_is_taken_off(dtype: torch.dtype):
    priors = ClassPriors(BIAS, {"one": [700, 0, 1]})
    before = {key: value.to(dtype) for key, value in tensors().items()}
    after = priors.taken_off("one", priors.added("one", before))
    assert after[BIAS].dtype == dtype
    torch.testing.assert_close(after[BIAS], before[BIAS], rtol=0, atol=1e-6 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        (tensors(), 3, BIAS),
        (tensors(), 4, None),
        ({WEIGHT: torch.zeros(3, 4)}, 3, None),
        ({**tensors(), Key("dense.bias", Factor.HEAD): torch.zeros(4)}, 3, BIAS),
        ({**tensors(), Key("dense.bias", Factor.HEAD): torch.zeros(3)}, 3, None),
        ({BIAS: torch.zeros(1)}, 1, None),
    ],
    ids=["one", "of another size", "no bias", "two layers", "two that fit", "one class"],
)
def test_a_bias_with_a_number_for_each_class(given: State, classes: int, expected: Key | None):
    assert bias_of_classes(given, classes) == expected


def test_there_are_none_where_the_method_or_the_rows_have_no_use_for_them():
    using, plain = (make_algorithm("fedsa", {"class_prior": chosen}) for chosen in (True, False))
    counts = {"one": [1, 2, 3]}
    assert class_priors(using, tensors(), counts) == ClassPriors(BIAS, counts)
    assert class_priors(plain, tensors(), counts) is None
    assert class_priors(using, tensors(), {}) is class_priors(using, tensors(), None) is None
    assert class_priors(using, {B: torch.zeros(3)}, counts) is None


def test_no_class_is_impossible():
    (value,) = (each[BIAS] for each in [ClassPriors(BIAS, {"one": [0, 0]}).added("one", {BIAS: torch.zeros(2)})])
    assert value.tolist() == [0, 0]
    rare = ClassPriors(BIAS, {"one": [9, 0]}).added("one", {BIAS: torch.zeros(2)})[BIAS]
    assert float(rare[0] - rare[1]) == pytest.approx(math.log(10))
