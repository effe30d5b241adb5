"""Tokens of many rows are made once, and mapped from disk from then on."""

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from fedsa.tasks import classification
from fedsa.tasks.cache import cached_arrays
from fedsa.tasks.classification import Classification
from fedsa.types import CLASS_NUMBER


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path / "cache"))


def test_arrays_are_made_once_and_cannot_be_changed():
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(5), "b": np.ones(2, dtype=np.uint8)}

    for _ in range(2):
        arrays = cached_arrays("key", make)
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        assert isinstance(arrays["b"], np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            arrays["a"][0] = 7
    assert made == [1]
    cached_arrays("another key", make)
    assert made == [1, 1]


def test_what_fails_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        cached_arrays("key", lambda: {"a": np.arange(3), "b": np.array([object()])})
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    assert cached_arrays("key", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


def test_many_rows_are_tokenised_once_and_others_anew(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(classification, "_CACHED_ROWS", 4)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = ["the film was great", "a dull product", "we saw it", "sad", "very fine today"]
    table = Dataset.from_dict({"text": texts, CLASS_NUMBER: [0, 1, 0, 1, 0]})
    task, rows = Classification(("text",), ("a", "b")), np.arange(5)
    folders = tmp_path / "cache" / "tokens"

    plain = task.encode(table, rows[:3], tokenizer)
    assert not folders.exists()  # few rows
    first, again = task.encode(table, rows, tokenizer), task.encode(table, rows, tokenizer)
    assert isinstance(again.tokens, np.memmap)
    assert len(list(folders.iterdir())) == 1
    assert first.fingerprint() == again.fingerprint()
    assert again.batch([1])["input_ids"].tolist() == plain.batch([1])["input_ids"].tolist()

    other_text = Dataset.from_dict({"text": [*texts[:4], "very fine"], CLASS_NUMBER: [0, 1, 0, 1, 0]})
    assert task.encode(other_text, rows, tokenizer).fingerprint() != again.fingerprint()
    shorter = Classification(("text",), ("a", "b"), max_length=3)
    assert shorter.encode(table, rows, tokenizer).lengths.max() == 3
    assert task.encode(table, rows[1:], tokenizer).lengths.tolist() == [0, *again.lengths[1:]]
    assert len(list(folders.iterdir())) == 4
