"""Extractive question answering: windows, spans, SQuAD's figures, cohorts and alone, exports."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForQuestionAnswering,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
)

import fedsa
from fedsa.client.learner import Learner
from fedsa.client.training import cohort, sequential
from fedsa.client.training.job import Job
from fedsa.cost.plan import plan_run
from fedsa.errors import ConfigError, DataError
from fedsa.federation import Federation
from fedsa.models import AdaptedModel, peft_config_of, with_drawn_layers
from fedsa.models.layout import Layout
from fedsa.recipe import AdapterSettings, TrainingSettings, parse_recipe
from fedsa.runs.export import export
from fedsa.tasks.question_answering import QuestionAnswering
from fedsa.tasks.spans import best_spans
from fedsa.types import Factor, Key, Side
from support.cohorts import largest_difference, moved
from support.federations import figures_of_all, jobs_of
from support.tiny_models import rows_of
from support.tiny_rows import FILLER, WORDS

pytestmark = pytest.mark.run

WINDOW = 24
STRIDE = 6
QUESTION = "was it a film"


def write_rows(path, count=60):
    """Contexts of up to 60 words, in each the words of a mood, which are the answer; others take in the word before."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        before, after = (list(rng.choice(FILLER, size)) for size in rng.integers(1, 1 + [4, 30][number % 2], 2))
        mood = " ".join(rng.choice(WORDS["good"], 1 + number % 2))
        context = " ".join([*before, mood, *after])
        wider = f"{before[-1]} {mood}"
        answers = [mood, wider] if number % 3 else [mood]
        rows.append({
            "context": context,
            "question": QUESTION,
            "answers": {"text": answers, "answer_start": [context.index(answer) for answer in answers]},
            "site": f"site {number % 2}",
        })  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return rows


@pytest.fixture
def recipe(tiny_model_without_dropout, tmp_path):
    AutoModel.from_pretrained(tiny_model_without_dropout, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model_without_dropout).save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")

    def make(task=(), **changes):
        return parse_recipe(
            {
                "rounds": 2,
                "model": {"path": str(tmp_path / "model"), "attn_implementation": "sdpa"},
                "adapter": {"r": 2, "target_modules": ["query", "value"]},
                "task": {"kind": "question_answering", "max_length": WINDOW, "doc_stride": STRIDE, **dict(task)},
                "data": {"path": str(tmp_path / "rows.jsonl"), "partition": {"kind": "column", "column": "site"}},
                "training": {"local_steps": 60, "batch_size": 8, "learning_rate": 2e-2},
                "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
                **changes,
            }
        )

    return make


@pytest.mark.run
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(recipe):
    federation = Federation.from_recipe(recipe())
    assert (federation.recipe.training.trainer, federation.recipe.training.packing) == ("cohort", True)
    for client, figures in figures_of_all(federation, pack=True).items():
        assert figures["examples"] == len(federation.rows.partition.clients[client].train)
    federation.model.model.double()
    jobs = jobs_of(federation, torch.float64)
    settings = TrainingSettings(local_steps=20, batch_size=4, learning_rate=2e-3, trainer="sequential")
    model, task, encoded = federation.model, federation.task, federation.encoded
    ones = Learner(model, task, encoded, settings, 64).train(jobs)
    for job, one in zip(jobs, ones, strict=True):  # the head's bias shifts all logits alike, so it stays where it is
        assert moved([replace(job, keys=job.keys[:-1])], [one]) > 1e-3
    jobs = [replace(job, rows=encoded.windows_of(job.rows)) for job in jobs]
    assert any(job.rows.max() >= len(federation.rows.table) for job in jobs)  # further windows are trained too
    common = {"model": model, "task": task, "encoded": encoded, "settings": settings}
    for pack in (False, True):
        assert largest_difference(ones, cohort.train(jobs, **common, pack=pack)) <= 1e-10


def test_windows_share_tokens_and_say_where_the_answer_is(recipe):
    federation = Federation.from_recipe(recipe())
    encoded, table = federation.encoded, federation.rows.table
    tokenizer = AutoTokenizer.from_pretrained(federation.recipe.model.path)
    question = tokenizer(QUESTION)["input_ids"]
    found, absent, windows = 0, 0, 0
    for row in range(len(table)):
        cell, items = table[row], encoded.windows_of(np.array([row]))
        assert items[0] == row
        seen = []
        for item in items:
            batch = encoded.batch([item])
            length = int(batch["attention_mask"].sum())
            ids, segments = (batch[name][0, :length].tolist() for name in ("input_ids", "token_type_ids"))
            assert length <= WINDOW
            assert ids[: len(question)] == question
            assert ids[-1] == tokenizer.sep_token_id
            assert segments == [0] * len(question) + [1] * (length - len(question))
            spans = encoded.spans[encoded.windows.offsets[item] :][:length]
            assert not spans[: len(question)].any()
            assert not spans[-1].any()
            own = spans[len(question) : -1]
            seen.append(own.tolist())
            first, last = batch["labels"][0].tolist()
            start = cell["answers"]["answer_start"][0]
            end = start + len(cell["answers"]["text"][0])
            if own[0, 0] <= start and end <= own[-1, 1]:
                assert cell["context"][spans[first, 0] : spans[last, 1]] == cell["answers"]["text"][0]
                found += 1
            else:
                assert (first, last) == (0, 0)
                absent += 1
        assert all(before[-STRIDE:] == after[:STRIDE] for before, after in pairwise(seen))
        whole = [*seen[0], *(place for own in seen[1:] for place in own[STRIDE:])]
        assert whole == [list(place.span()) for place in re.finditer(r"\w+", cell["context"])]
        windows += len(items)
    assert (encoded.lengths > 0).sum() == windows == found + absent
    assert found >= len(table)
    assert absent > 20
    rows = np.array([5, 0, 3])
    assert encoded.windows_of(rows).tolist() == [
        item for row in rows for item in [row, *range(encoded.first[row], encoded.first[row + 1])]
    ]


@pytest.mark.parametrize(
    ("text", "start", "word"),
    [("great", 17, 4), ("great", 24, 7), ("great", 16, 4), (" great ", 16, 4), (" great", 32, 7), ("great", 15, 4)],
)
def test_an_answer_is_where_it_stands_nearest(recipe, tmp_path, text, start, word):
    context = "we saw it today great film it great"
    write_same(tmp_path / "rows.jsonl", {"text": [text], "answer_start": [start]}, context)
    encoded = Federation.from_recipe(recipe()).encoded
    assert encoded.windows.labels[0].tolist() == [6 + word, 6 + word]  # behind [CLS], the question and [SEP]
    assert encoded.references[0] == (text,)


def test_a_long_question_leaves_room_for_the_context(recipe, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    rows[1]["question"] = " ".join(FILLER * 10)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    encoded = Federation.from_recipe(recipe()).encoded
    spans = encoded.spans[encoded.windows.offsets[1] : encoded.windows.offsets[2]]
    assert np.count_nonzero(spans[:, 1]) == 2 * STRIDE
    with pytest.raises(DataError, match="windows of 6 tokens have no room for question and context"):
        Federation.from_recipe(recipe({"max_length": 6}))


def test_the_loss_is_transformers_own(recipe):
    """Of each window by itself, without padding: padding has a part in theirs, and none in ours."""
    federation = Federation.from_recipe(recipe())
    encoded, model = federation.encoded, federation.model
    model.write(jobs_of(federation)[0].tensors)
    items = encoded.windows_of(np.array([1, 2, 7]))
    batch = encoded.batch(items)
    with torch.no_grad():
        model.streams.begin(Layout(batch["attention_mask"], [len(items)]))
        sums, counts = federation.task.losses(model.model, batch)
        for item, total, count in zip(items, sums, counts, strict=True):
            one = encoded.batch([item])
            length = int(one["attention_mask"].sum())
            inputs = {name: value[:, :length] for name, value in one.items() if name != "labels"}
            model.streams.begin(Layout(inputs["attention_mask"], [1]))
            first, last = one["labels"].T
            expected = model.model.get_base_model()(**inputs, start_positions=first, end_positions=last).loss
            assert float(total / count) == pytest.approx(float(expected), rel=1e-5)


def best_by_trying(starts, ends, allowed, longest):
    """The official scripts' search over all beginnings and ends, of one window."""
    pairs = [(starts[i] + ends[j], j - i, i, j) for i in allowed for j in allowed if i <= j < i + longest]
    return max(pairs, key=lambda pair: (pair[0], -pair[1], -pair[2]), default=(-np.inf, 0, 0, 0))


def test_the_best_span_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    logits = rng.integers(-4, 5, (200, 12, 2)).astype(float)  # with many equal sums
    inside = rng.random((200, 12)) < 0.6
    inside[:3] = False
    for longest in (1, 3, 30):
        scores, firsts, lasts = best_spans(torch.from_numpy(logits), torch.from_numpy(inside), longest=longest)
        for number in range(200):
            score, _, first, last = best_by_trying(*logits[number].T, np.flatnonzero(inside[number]), longest)
            assert (scores[number], firsts[number], lasts[number]) == (score, first, last)


def official(predictions, references):
    """exact_match and f1 in per cent as the script evaluate-v1.1.py of SQuAD computes them."""

    def normalize_answer(s):
        lower = s.lower()
        exclude = set(string.punctuation)
        without = "".join(ch for ch in lower if ch not in exclude)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", without).split())

    def f1_score(prediction, ground_truth):
        prediction_tokens = normalize_answer(prediction).split()
        ground_truth_tokens = normalize_answer(ground_truth).split()
        common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
        num_same = sum(common.values())
        if num_same == 0:
            return 0
        precision = 1.0 * num_same / len(prediction_tokens)
        recall = 1.0 * num_same / len(ground_truth_tokens)
        return (2 * precision * recall) / (precision + recall)

    f1 = exact_match = total = 0
    for prediction, ground_truths in zip(predictions, references, strict=True):
        total += 1
        exact_match += max(normalize_answer(prediction) == normalize_answer(truth) for truth in ground_truths)
        f1 += max(f1_score(prediction, truth) for truth in ground_truths)
    return {"exact_match": 100.0 * exact_match / total, "f1": 100.0 * f1 / total}


def test_figures_are_those_of_the_official_script(recipe):
    federation = Federation.from_recipe(recipe({"max_answer_length": 3}))
    task, encoded, table = federation.task, federation.encoded, federation.rows.table
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(table))[:40]
    items = task.questions(encoded, rows)
    assert len(items) > len(rows)
    outputs = torch.from_numpy(rng.normal(size=(len(items), WINDOW, 2))).float()
    for place, item in enumerate(items):  # some are right: with noise alone hardly any would be
        first, last = encoded.windows.labels[item]
        if first and rng.random() < 0.5:
            outputs[place, first, 0] += 6
            outputs[place, last, 1] += 6
    predictions, place = [], 0
    for row in rows:
        best, text = -np.inf, ""
        for item in encoded.windows_of(np.array([row])):
            spans = encoded.spans[encoded.windows.offsets[item] : encoded.windows.offsets[item + 1]]
            starts, ends = outputs[place].double().numpy()[: len(spans)].T
            score, _, i, j = best_by_trying(starts, ends, np.flatnonzero(spans[:, 1]), 3)
            if score > best:
                best, text = score, table[int(row)]["context"][spans[i, 0] : spans[j, 1]]
            place += 1
        predictions.append(text)
    expected = official(predictions, [table[int(row)]["answers"]["text"] for row in rows])
    figures = task.score(encoded, rows, outputs)
    assert 20 < expected["exact_match"] < expected["f1"] < 90
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value / 100, abs=1e-9)


def write_same(path, answers, context="we saw it today great film", **columns):
    """One row, thirty times."""
    row = {"context": context, "question": QUESTION, "answers": answers, **columns}
    lines = [json.dumps({**row, "site": f"site {number % 2}"}) for number in range(30)]
    path.write_text("\n".join(lines), "utf-8")


def test_of_several_answers_the_best_counts(recipe, tmp_path):
    write_same(tmp_path / "rows.jsonl", {"text": ["great", "today great"], "answer_start": [16, 10]})
    federation = Federation.from_recipe(recipe())
    first, last = federation.encoded.windows.labels[0]
    assert first == last == 1 + 4 + 1 + 4  # [CLS], question, [SEP], and the words before
    figures = []
    for start in (first, first - 1, first - 2):
        outputs = torch.zeros(1, WINDOW, 2)
        outputs[0, start, 0] = outputs[0, last, 1] = 5
        figures.append(federation.task.score(federation.encoded, np.array([0]), outputs))
    assert [(each["exact_match"], each["f1"]) for each in figures] == [(1, 1), (1, 1), (0, pytest.approx(0.8))]


@pytest.mark.run
def test_a_run_learns_and_is_as_planned_and_exported(recipe, tmp_path):
    federation = Federation.from_recipe(recipe())
    result = fedsa.run(federation, tmp_path / "run")
    assert result.summary["metric"] == "f1"
    assert result.summary["test"]["weighted_mean"] > 0.6
    plan = plan_run(recipe(), clients=2)
    for figure in ("trained_parameters", "upload_bytes", "sharing_plan"):
        assert plan[figure] == result.summary[figure]
    (head,) = [entry for entry in result.summary["sharing_plan"] if entry["factor"] == "head"]
    assert (head["parameters"], head["trained"], head["sent"]) == (2 * 16 + 2, True, False)
    result.export(tmp_path / "adapter", client="site 0")
    export(tmp_path / "run", tmp_path / "merged", clients=["site 0"], merge=True)
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert "AutoModelForQuestionAnswering.from_pretrained" in card
    assert "pipeline_tag: question-answering" in card
    base = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model")
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    predictions, references = [], []
    for row in federation.rows.partition.clients["site 0"].test:
        cell = federation.rows.table[int(row)]
        inputs = tokenizer(QUESTION, cell["context"], return_tensors="pt", return_offsets_mapping=True)
        places = inputs.pop("offset_mapping")[0].numpy()
        with torch.no_grad():
            said, same = model(**inputs), merged(**inputs)
        torch.testing.assert_close(said.start_logits, same.start_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(said.end_logits, same.end_logits, atol=1e-5, rtol=0)
        allowed = [number for number, part in enumerate(inputs.sequence_ids(0)) if part == 1]
        _, _, i, j = best_by_trying(said.start_logits[0].numpy(), said.end_logits[0].numpy(), allowed, 30)
        predictions.append(cell["context"][places[i, 0] : places[j, 1]])
        references.append(cell["answers"]["text"])
    assert max(len(tokenizer(each["context"])["input_ids"]) for each in federation.rows.table) > WINDOW
    own = result.summary["per_client"]["site 0"]["test"]
    for name, value in official(predictions, references).items():
        assert own[name] == pytest.approx(value / 100, abs=1e-9)


def test_a_loaded_model_is_trained_with_its_head(recipe, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    tables = {site: Dataset.from_list([row for row in rows if row["site"] == site]) for site in ("site 0", "site 1")}
    federation = Federation.from_objects(
        BertForQuestionAnswering.from_pretrained(tmp_path / "model"),
        LoraConfig(r=2, target_modules=["query", "value"], task_type="QUESTION_ANS"),
        tables,
        rounds=1,
        tokenizer=AutoTokenizer.from_pretrained(tmp_path / "model"),
        task={"kind": "question_answering", "max_length": WINDOW},
        compute={"device": "cpu", "threads": 1},
    )
    assert federation.task.doc_stride == 128  # of which a third of the window is used
    result = fedsa.run(federation, tmp_path / "run")
    assert [entry["parameters"] for entry in result.summary["sharing_plan"] if entry["factor"] == "head"] == [34]
    assert federation.model.config.task_type is None


SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
REST = {"intermediate_size": 32, "max_position_embeddings": 44, "pad_token_id": 0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTILBERT = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0}
DISTILBERT |= {"dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0}
BASES = {
    "roberta": (RobertaConfig(**SIZES, **REST, **NO_DROPOUT), ["query"], "qa_outputs"),
    "modernbert": (ModernBertConfig(**SIZES, **REST, local_attention=128), ["Wqkv"], "classifier"),
    "distilbert": (DistilBertConfig(**DISTILBERT), ["q_lin"], "qa_outputs"),
    "llama": (LlamaConfig(**SIZES, **REST, num_key_value_heads=1), ["q_proj"], "qa_outputs"),
}


@pytest.mark.run
@pytest.mark.parametrize("name", BASES)
def test_other_models_have_their_head_and_take_cohorts(name):
    """Whatever the head is called; llama, which looks back only, has no use for this task but must not be wrong."""
    config, targets, head = BASES[name]
    torch.manual_seed(0)
    base = AutoModelForQuestionAnswering.from_config(config, attn_implementation="sdpa").eval()
    plain = peft_config_of(AdapterSettings(r=2, target_modules=targets, dropout=0.0), task_type=None, seed=0)
    model = AdaptedModel(base, with_drawn_layers(plain, set(), base), seed=0)
    assert {key.module for key in model.keys if key.factor.side is Side.HEAD} == {f"{head}.weight", f"{head}.bias"}
    model.model.double()
    rng = np.random.default_rng(0)
    rows = rows_of(rng.integers(3, 23, 60).tolist())
    windows = replace(rows, labels=rng.integers(0, 3, (60, 2)))
    own = tuple(model.keys)
    generator = torch.Generator().manual_seed(3)
    jobs = [
        Job(f"c{number}", 1, 2, 0, {key: value.double() + 0.3 * torch.randn(value.shape, generator=generator)
                                    for key, value in model.initial.items()},
            own, (), {}, np.arange(20 * number, 20 * number + 20))
        for number in range(3)
    ]  # fmt: skip
    settings = TrainingSettings(local_steps=10, batch_size=4, learning_rate=0.5, optimizer="sgd")
    task = QuestionAnswering("question", "context", "answers")
    common = {"model": model, "task": task, "encoded": windows, "settings": settings}
    ones = [sequential.train(job, **common) for job in jobs]
    for pack in (False, True):
        for job, one, other in zip(jobs, ones, cohort.train(jobs, **common, pack=pack), strict=True):
            moved = {key: float((one.tensors[key] - job.tensors[key]).abs().max()) for key in own}
            # The bias shifts all tokens' logits alike: its gradient is zero.
            assert moved.pop(Key(f"{head}.bias", Factor.HEAD, "default")) < 1e-12
            assert min(moved.values()) > 1e-4
            assert max(float((one.tensors[key] - other.tensors[key]).abs().max()) for key in own) <= 1e-10


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["grand"], "answer_start": [16]}, "the first answer, 'grand', is not in column 'context'"),
        ({"text": [], "answer_start": []}, "has no answer, and every question must have one here"),
        ({"text": ["great"], "answer_start": [16, 16]}, "must have the lists text and answer_start, of one length"),
        (["great"], "must have the lists text and answer_start"),
    ],
)
def test_rows_that_do_not_fit(recipe, tmp_path, answers, message):
    write_same(tmp_path / "rows.jsonl", answers)
    with pytest.raises(DataError, match=message):
        Federation.from_recipe(recipe())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"text_columns": ["question"]}, "two columns in `text_columns`: question and context"),
        ({"metric": "f1"}, "`metric` does not go with kind = 'question_answering'"),
        ({"kind": "generation", "prompt": "x", "answer": "y", "doc_stride": 4}, "`doc_stride` does not go with"),
    ],
)
def test_settings_that_do_not_fit(recipe, task, message):
    with pytest.raises(ConfigError, match=message):
        recipe(task)
