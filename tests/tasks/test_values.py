"""A cell that is no text is refused with its row and column, whatever it is and in whatever task."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from fedsa.errors import DataError
from fedsa.tasks.classification import Classification
from fedsa.tasks.generation import Generation, LanguageModeling
from fedsa.tasks.multiple_choice import MultipleChoice
from fedsa.tasks.question_answering import QuestionAnswering
from fedsa.tasks.regression import Regression
from fedsa.tasks.tagging import TokenClassification
from fedsa.tasks.values import text_of
from fedsa.types import CLASS_NUMBER
from support.tiny_words import decoder_words, encoder_words

MODEL = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
SQUAD = {"text": ["good"], "answer_start": [13]}
STRANGE = {
    "a list of texts": ["good", "bad"],
    "an empty list": [],
    "a chat": [{"role": "user", "content": "good"}],
    "a table": {"content": "good"},
    "nothing": None,
}
READS = {
    "classification": (Classification(("cell",), ("a", "b")), {}),
    "second text": (Classification(("text", "cell"), ("a", "b")), {"text": "good"}),
    "regression": (Regression(("cell",), "number"), {"number": 1.5}),
    "prompt": (Generation("so {cell}", "{text}"), {"text": "good"}),
    "prompt before a column": (Generation("{text} so {cell}", "{text}"), {"text": "good"}),
    "language modelling": (LanguageModeling("cell"), {}),
    "prompt of choices": (MultipleChoice("{cell}", "number", labels=("a", "b")), {"number": 1}),
    "a column of a choice": (MultipleChoice("so", "number", ("text", "cell")), {"number": 1, "text": "good"}),
    "template of a choice": (
        MultipleChoice("so", "number", labels=("a", "b"), choice_template="{choice} {cell}"), {"number": 1}
    ),
    "question": (QuestionAnswering("cell", "context", "answers"), {"context": "the film was good", "answers": SQUAD}),
    "context": (QuestionAnswering("text", "cell", "answers"), {"text": "what", "answers": SQUAD}),
}  # fmt: skip


def encode(task, row):
    """Encode the second of two equal rows: arrow has one type for a column."""
    table = Dataset.from_dict({name: [cell, cell] for name, cell in row.items()}).add_column(CLASS_NUMBER, [0, 0])
    decodes = isinstance(task, Generation | LanguageModeling | MultipleChoice)
    task = task.fitted(MODEL, None) if isinstance(task, Classification | Regression) else task
    return task.encode(table, np.array([1]), decoder_words() if decodes else encoder_words(), limit=512)


@pytest.mark.parametrize("cell", STRANGE)
@pytest.mark.parametrize("name", READS)
def test_what_is_no_text_is_refused_where_one_is_read(name, cell):
    task, rest = READS[name]
    with pytest.raises(DataError, match=r"^row 1: column 'cell' holds (a list|a table|nothing)") as refusal:
        encode(task, {**rest, "cell": STRANGE[cell]})
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("value", [3, 2.5, True, datetime.date(2024, 5, 1), "None", "n/a", " "])
@pytest.mark.parametrize("name", READS)
def test_numbers_dates_and_all_words_are_texts(name, value):
    task, rest = READS[name]
    row = {**rest, "cell": value}
    if name == "context":
        row |= {"cell": f"the {value}", "answers": {"text": [str(value).strip() or "the"], "answer_start": [4]}}
    if value in (" ", "None", "n/a", 2.5, True) or isinstance(value, datetime.date):
        row |= {"text": "good film"} if "text" in row else {}
    try:
        assert encode(task, row).lengths[1] > 0
    except DataError as refusal:  # of words that these tokenizers do not know; none is about the cell's type
        assert "there is nothing to learn from" in str(refusal)  # noqa: PT017


WORDS = {"words": ["the", "film"], "tags": [0, 1]}
TAGS = TokenClassification("words", "tags", ("O", "B-X", "I-X"))
CHOICES = MultipleChoice("so", "answer", ("choices",))
NESTED = {
    "no words": (TAGS, {**WORDS, "words": [], "tags": []}, "column 'words' has no words"),
    "an empty word": (TAGS, {**WORDS, "words": ["", ""]}, "makes no token of the words"),
    "a null word": (TAGS, {**WORDS, "words": ["the", None]}, "list of words in column 'words' holds nothing"),
    "a text for words": (TAGS, {**WORDS, "words": "ab"}, "must hold a list of words"),
    "a null tag": (TAGS, {**WORDS, "tags": [0, None]}, "has the tag None"),
    "a half tag": (TAGS, {**WORDS, "tags": [0.0, 1.5]}, "has the tag 1.5"),
    "a tag true": (TAGS, {**WORDS, "tags": [True, False]}, "has the tag True"),
    "a tag too high": (TAGS, {**WORDS, "tags": [0, 3]}, "has the tag 3"),
    "a negative tag": (TAGS, {**WORDS, "tags": [0, -1]}, "has the tag -1"),
    "an infinite tag": (TAGS, {**WORDS, "tags": [0.0, float("inf")]}, "has the tag inf"),
    "a text for tags": (TAGS, {**WORDS, "tags": "OO"}, "must be lists, as many words as tags"),
    "a table for tags": (TAGS, {**WORDS, "tags": {"a": 1}}, "must be lists, as many words as tags"),
    "a text for choices": (CHOICES, {"choices": "ABCD", "answer": 1}, "must hold a list of choices"),
    "a null choice": (CHOICES, {"choices": ["a", None], "answer": 0}, "list of choices in column 'choices' holds"),
    "one choice": (CHOICES, {"choices": ["a"], "answer": 0}, "has 1 choice, and two at least"),
    "lists for choices": (CHOICES, {"choices": [["a"], ["b"]], "answer": 0}, "holds a list"),
    "a table without labels": (CHOICES, {"choices": {"text": ["a", "b"]}, "answer": 0}, "or the lists text and label"),
    "a null label": (
        CHOICES, {"choices": {"text": ["a", "b"], "label": ["A", None]}, "answer": "A"}, "list of labels of choices"
    ),
    "labels too few": (
        CHOICES, {"choices": {"text": ["a", "b"], "label": ["A"]}, "answer": "A"}, "has 2 choices and 1 label"
    ),
    "a null answer": (Generation("so", "{text}"), {"text": ["good", None]}, "list of right answers in column 'text'"),
    "tables for answers": (Generation("so", "{text}"), {"text": [{"content": "good"}]}, "holds a table"),
    "a table without a text": (Generation("so", "{text}"), {"text": {"content": "good"}}, "holds a table"),
    "two lists of answers": (Generation("so", "{text} {more}"), {"text": ["a"], "more": ["b"]}, "'more' holds a list"),
    "a number as true": (Regression(("text",), "number"), {"text": "good", "number": True}, "which is no number"),
    "a null answer's text": (
        QuestionAnswering("q", "c", "answers"),
        {"q": "what", "c": "good", "answers": {"text": ["good", None], "answer_start": [0, 0]}}, "list of answers"
    ),
    "a null answer's start": (
        QuestionAnswering("q", "c", "answers"),
        {"q": "what", "c": "good", "answers": {"text": ["good"], "answer_start": [None]}}, "has answer_start None"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_nested_values_that_do_not_fit_are_refused_with_row_and_column(name):
    task, row, message = NESTED[name]
    with pytest.raises(DataError, match=message) as refusal:
        encode(task, row)
    assert str(refusal.value).startswith("row 1: ")


def test_whole_floats_are_tags_and_several_right_answers_are_texts():
    tagged = encode(TAGS, {**WORDS, "tags": [0.0, 1.0]})
    assert tagged.tags[tagged.texts.offsets[1] :].tolist() == [-100, 0, 1, -100]
    generation = Generation("so", "{text}", metric="f1")
    assert encode(generation, {"text": ["good", "bad"]}).references[1] == ("good", "bad")
    assert encode(generation, {"text": {"text": ["good"], "answer_start": [0]}}).references[1] == ("good",)


def test_a_text_is_read_as_it_is():
    assert text_of("007", 0, "x") == "007"
    with pytest.raises(DataError, match="row 3: column 'x' holds nothing where a text is needed: fill it in"):
        text_of(float("nan"), 3, "x")
    with pytest.raises(DataError, match="a value of type bytes"):
        text_of(b"raw", 0, "x")
