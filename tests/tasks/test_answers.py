"""Which choice an answer names: one reading for the whole column, and a word where there are two."""

from __future__ import annotations

import numpy as np
import pytest

from fedsa.errors import DataError
from fedsa.tasks.answers import Question, right_places

RNG = np.random.default_rng(0)
NUMBERS = [[str(each) for each in RNG.choice(8, 4, replace=False)] for _ in range(60)]
"""Choices that are numbers themselves."""
LETTERS = [["B", "A", "D", "C"][n % 4 :] + ["B", "A", "D", "C"][: n % 4] for n in range(60)]
WORDS = [["red", "green", "blue", "grey"]] * 60
MEANT = [int(place) for place in RNG.integers(0, 4, 60)]


def read(choices, answers, labels=None, first=0):
    questions = [Question(list(own), list(labels or []), answer) for own, answer in zip(choices, answers, strict=True)]
    return right_places(questions, np.arange(10, 10 + len(questions)), "answer", first)


WRITTEN = {
    "number": lambda own, place: place,
    "number from one": lambda own, place: place + 1,
    "whole float": lambda own, place: float(place),
    "numpy number": lambda own, place: np.int64(place),
    "number as text": lambda own, place: str(place),
    "letter": lambda own, place: "ABCD"[place],
    "small letter": lambda own, place: "abcd"[place],
    "text": lambda own, place: own[place],
    "text with blanks": lambda own, place: f" {own[place]} ",
    "label": lambda own, place: "wxyz"[place],
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("choices", [NUMBERS, LETTERS, WORDS], ids=["numbers", "letters", "words"])
def test_every_way_to_write_an_answer_is_read_as_meant_or_refused(choices, written):
    answers = [WRITTEN[written](own, place) for own, place in zip(choices, MEANT, strict=True)]
    labels = list("wxyz") if written == "label" else None
    first = 1 if written == "number from one" else 0
    ambiguous = choices is LETTERS and written in ("letter", "text", "text with blanks")
    if ambiguous:
        with pytest.raises(DataError, match=r"can be read as the choice's text and as its letter in all of 60 rows"):
            read(choices, answers, labels, first)
    else:
        places, note = read(choices, answers, labels, first)
        assert places.tolist() == MEANT
        assert note is None


@pytest.mark.parametrize(
    ("choices", "right", "wrong"),
    [(["1", "0"], 1, 0), (["no", "yes"], 1, 0), (["True", "False"], 0, 1), (["true", "false"], 0, 1)],
)
@pytest.mark.parametrize("form", [bool, str, lambda value: str(value).lower()], ids=["bool", "True", "true"])
def test_true_and_false(choices, right, wrong, form):
    places, note = read([choices] * 4, [form(value) for value in (True, False, False, True)])
    assert places.tolist() == [right, wrong, wrong, right]
    assert note is None


def test_a_number_that_is_also_a_text_everywhere_is_a_number_and_that_is_said():
    places, note = read([["1", "0"]] * 3, [0, 1, 1])
    assert places.tolist() == [0, 1, 1]
    assert note == (
        "Column 'answer' can be read as the choice's number and as its text in all of 3 rows, and in 3 that is another "
        "choice: it is read as the number."
    )


def test_stars_from_one_to_five_are_texts_where_they_cannot_be_numbers():
    places, note = read([["1", "2", "3", "4", "5"]] * 5, [5, 1, 3, 4, 2])
    assert places.tolist() == [4, 0, 2, 3, 1]
    assert note is None


def test_labels_of_arc_go_before_numbers():
    places, _ = read(WORDS[:3], ["1", "2", "3"], ["1", "2", "3", "4"])
    assert places.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [0, 1, 4],
            r"row 12: column 'answer' says 4 \(read as the choice's number, as in 2 of 3 rows\), which is none",
        ),
        (["red", "green", "gray"], r"row 12: .* says 'gray' \(read as the choice's text"),
        ([0, 1, None], "row 12: column 'answer' says None, which names no choice"),
        ([0.0, 1.0, 1.5], "row 12: column 'answer' says 1.5, which names no choice"),
        ([0, 1, [2]], r"row 12: column 'answer' says \[2\], which names no choice"),
        ([0, 1, "red"], "in several ways: row 10 by a value of type int, row 12 by one of type str"),
        ([True, False, 1], "in several ways: row 10 by a value of type bool, row 12 by one of type int"),
        ([-1, 0, 1], "row 10: column 'answer' says -1"),
        (["x" * 500, "red", "red"], "row 10"),
    ],
)
def test_answers_that_fit_no_reading(answers, message):
    with pytest.raises(DataError, match=message) as refusal:
        read(WORDS[:3], answers)
    assert len(str(refusal.value)) < 400
