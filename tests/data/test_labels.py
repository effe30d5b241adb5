from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsa.data.labels import encode_labels
from fedsa.errors import DataError


@pytest.mark.parametrize(
    ("values", "names", "numbers", "found"),
    [
        (["b", "a", "b"], None, [1, 0, 1], ["a", "b"]),
        (["b", "a"], ["b", "a", "c"], [0, 1], ["b", "a", "c"]),
        ([True, False], None, [1, 0], ["False", "True"]),
        ([True, False], ["no", "yes"], [1, 0], ["no", "yes"]),
        ([True, False], ["True", "False"], [0, 1], ["True", "False"]),
        ([5, 3, 5], None, [1, 0, 1], ["3", "5"]),
        ([10, 9], None, [1, 0], ["9", "10"]),
        ([1, 0], ["no", "yes"], [1, 0], ["no", "yes"]),
        ([1, 3], ["1", "2", "3"], [0, 2], ["1", "2", "3"]),
        ([1.0, 0.0], ["no", "yes"], [1, 0], ["no", "yes"]),
        (np.array([2, 4], np.int32), None, [0, 1], ["2", "4"]),
    ],
)
def test_encoded(values: Any, names: list[str] | None, numbers: list[int], found: list[str]) -> None:
    encoded, classes = encode_labels(values, names, "rows")
    assert encoded.dtype == np.int64
    assert encoded.tolist() == numbers
    assert classes == found


@pytest.mark.parametrize(
    ("values", "names", "text"),
    [
        (["a", None, "", "b", float("nan")], None, r"rows: 3 of 5 rows have a missing label \(row 1: None, row 2: ''"),
        ([0, -1, 1, -1], ["no", "yes"], r"2 of 4 rows have a negative label \(row 1: -1, row 3: -1\)"),
        ([0, -1], None, "negative label"),
        (
            [0, 1, 2],
            ["no", "yes"],
            r"1 of 3 rows have a label out of range \(row 2: 2\); with 2 classes labels run from 0 to 1",
        ),
        ([4, 1], ["1", "2", "3"], r"label out of range \(row 0: 4\); task.labels: 1, 2, 3"),
        (
            ["postive", "negative"],
            ["negative", "positive"],
            r"outside task.labels \(row 0: 'postive'\); did you mean 'positive'\?",
        ),
        ([0.5, 1.0], None, r"1 of 2 rows have a label that is not a whole number \(row 0: 0.5\); .*another task"),
        ([float("inf"), 1.0], None, "not a whole number"),
        ([1, "a", "b"], None, r"labels of several kinds \(2 str, 1 int\)"),
        ([[1], [2]], None, "a label must be a word or a whole number, not list"),
        (["a", "a"], None, "1 class in 2 rows, at least 2 are needed"),
        ([], None, "0 classes in 0 rows"),
        (["a", "b"], ["a", "a", "b"], "task.labels names 'a' twice"),
        (["a", "b"], ["a"], "task.labels names only 1 class"),
        ([9] * 8, ["x", "y"], r"8 of 8 rows .*row 4: 9 and 3 more"),
    ],
)
def test_refused(values: Any, names: list[str] | None, text: str) -> None:
    with pytest.raises(DataError, match=text):
        encode_labels(values, names, "rows")


def test_a_split_for_evaluation_may_have_one_class() -> None:
    assert encode_labels(["a", "a"], ["a", "b"], "rows", min_classes=1)[0].tolist() == [0, 0]
