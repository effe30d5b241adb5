"""Classification: rows to batches, loss and accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, log_loss
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from fedsa.tasks.classification import Classification, TokenRows
from fedsa.types import CLASS_NUMBER

TEXTS = ["the film was great", "dull", "we saw it today very very lovely", "a poor product", "happy"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def table() -> Dataset:
    seconds = ["very sad", "the film", "it was", "fine", "great today"]
    return Dataset.from_dict({"text": TEXTS, "second": seconds, CLASS_NUMBER: [1, 0, 1, 0, 1]})


def test_a_batch_is_what_the_tokenizer_gives(table: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    task = Classification(("text",), ("bad", "good"))
    encoded = task.encode(table, np.array([2, 0, 4]), tokenizer)  # in any order
    batch = encoded.batch([4, 2])
    plain = tokenizer([TEXTS[4], TEXTS[2]], padding=True, pad_to_multiple_of=8, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], plain[name])
    assert batch["labels"].tolist() == [1, 1]
    assert encoded.lengths.tolist() == [6, 0, 9, 0, 3]


def test_pairs_keep_their_segments_and_are_cut(table: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    task = Classification(("text", "second"), ("bad", "good"), max_length=8)
    batch = task.encode(table, np.arange(5), tokenizer).batch([0, 2])
    plain = tokenizer(
        [TEXTS[0], TEXTS[2]], table["second"][:3:2], truncation=True, max_length=8, padding="max_length",
        return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert torch.equal(batch["token_type_ids"], plain["token_type_ids"])


def test_width_never_passes_the_models_positions() -> None:
    rows = TokenRows(np.arange(13, dtype=np.int32), None, np.array([0, 0, 13]), np.array([0, 1]), pad=9, widest=13)
    assert rows.batch([1])["input_ids"].shape == (1, 13)
    assert rows.batch([0])["input_ids"].tolist() == [[9] * 8]  # an empty text is not an empty row


def test_left_padding() -> None:
    rows = TokenRows(np.array([1, 2, 3, 4, 5], np.int32), None, np.array([0, 2, 5]), np.array([0, 1]), pad=9, left=True)
    batch = rows.batch([0, 1])
    assert batch["input_ids"].tolist() == [[9, 9, 9, 9, 9, 9, 1, 2], [9, 9, 9, 9, 9, 3, 4, 5]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 3]
    assert "token_type_ids" not in batch


def test_loss_is_the_models_own_and_padding_changes_nothing(
    table: Dataset, tokenizer: PreTrainedTokenizerBase, tiny_model: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).eval()
    task = Classification(("text",), ("bad", "good"))
    encoded = task.encode(table, np.arange(5), tokenizer)
    batch = encoded.batch(np.arange(5))
    sums, counts = task.losses(model, batch)
    assert sums.shape == counts.shape == (5,)
    torch.testing.assert_close(sums.sum() / counts.sum(), model(**batch).loss)
    each = [model(**encoded.batch([row])).loss for row in range(5)]
    torch.testing.assert_close(sums / counts, torch.stack(each))
    alone = torch.cat([task.outputs(model, encoded.batch([row])) for row in range(5)])
    torch.testing.assert_close(task.outputs(model, batch), alone)


def test_score_by_hand(table: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    task = Classification(("text",), ("bad", "good"))
    encoded = task.encode(table, np.arange(5), tokenizer)
    # rows 0, 1, 3 have classes 1, 0, 0; the second is wrong. Cross-entropy: log(1+e^-2), log(1+e^1), log(1+e^-3).
    outputs = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    score = task.score(encoded, np.array([0, 1, 3]), outputs)
    assert score["accuracy"] == pytest.approx(2 / 3)
    assert score["loss"] == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(1)) + np.log1p(np.exp(-3))) / 3)


def test_scores_are_scikit_learns(table: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    rng = np.random.default_rng(0)
    task = Classification(("text",), ("bad", "good"))
    encoded = task.encode(table, np.arange(5), tokenizer)
    rows = rng.integers(0, 5, 80)
    outputs = torch.from_numpy(rng.normal(size=(len(rows), 2)))
    score = task.score(encoded, rows, outputs)
    labels = encoded.labels[rows]
    assert score["accuracy"] == pytest.approx(accuracy_score(labels, outputs.argmax(dim=1).numpy()), abs=1e-9)
    assert score["loss"] == pytest.approx(log_loss(labels, outputs.softmax(dim=1).numpy(), labels=[0, 1]), abs=1e-9)
