"""Token classification: tags at the first token of a word, entities, cohorts and alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

import fedsa
from fedsa.cost.plan import plan_run
from fedsa.errors import ConfigError, DataError
from fedsa.federation import Federation
from fedsa.recipe import parse_recipe
from fedsa.tasks.sequences import IGNORED
from fedsa.tasks.tagging import TokenClassification, entities
from support.federations import check_training, figures_of_all
from support.tiny_rows import FILLER, WORDS

TAGS = ["O", "B-MOOD", "I-MOOD", "B-THING", "I-THING"]


def write_rows(path, count=60):
    """Words with tags, as numbers in some rows and as names in none: moods of one or two words, and things."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        words, tags = [], []
        for _ in range(int(rng.integers(3, 7))):
            kind = int(rng.integers(0, 3))
            found = [[FILLER[0]], WORDS["good"][: 1 + number % 2], ["film"]][kind]
            words += found
            tags += [[0], [1, 2][: len(found)], [3]][kind]
        rows.append({"words": words, "tags": tags, "site": f"site {number % 2}"})
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")


@pytest.fixture
def recipe(tiny_model_without_dropout, tmp_path):
    AutoModel.from_pretrained(tiny_model_without_dropout, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model_without_dropout).save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl")

    def make(**changes):
        return parse_recipe(
            {
                "rounds": 2,
                "model": {"path": str(tmp_path / "model"), "attn_implementation": "sdpa"},
                "adapter": {"r": 2, "target_modules": ["query", "value"]},
                "task": {
                    "kind": "token_classification", "text_columns": ["words"], "answer": "tags", "labels": TAGS
                },
                "data": {"path": str(tmp_path / "rows.jsonl"), "partition": {"kind": "column", "column": "site"}},
                "training": {"local_steps": 15, "batch_size": 8, "learning_rate": 2e-2},
                "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
                **changes,
            }
        )  # fmt: skip

    return make


@pytest.mark.run
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(recipe):
    federation = Federation.from_recipe(recipe())
    assert (federation.recipe.training.trainer, federation.recipe.training.packing) == ("cohort", True)
    figures_of_all(federation, pack=True)
    check_training(federation)


def test_a_tag_stands_at_the_first_token_of_its_word(recipe, tmp_path):
    """A word that the tokenizer cuts has one tag; a word behind the end has none."""
    rows = [{"words": ["great", "film.", "today"], "tags": ["B-MOOD", "B-THING", "O"], "site": f"site {n % 2}"}
            for n in range(30)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    encoded = Federation.from_recipe(recipe()).encoded
    assert encoded.batch([3])["labels"][0, :6].tolist() == [IGNORED, 1, 3, IGNORED, 0, IGNORED]
    task = recipe().task.model_dump() | {"max_length": 4}
    short = Federation.from_recipe(recipe(task=task)).encoded
    assert short.batch([3])["labels"][0, :4].tolist() == [IGNORED, 1, 3, IGNORED]


@pytest.mark.run
def test_a_run_learns_and_is_as_planned_and_exported(recipe, tmp_path):
    federation = Federation.from_recipe(recipe())
    result = fedsa.run(federation, tmp_path / "run")
    assert result.summary["test"]["weighted_mean"] > 0.5
    plan = plan_run(recipe(), clients=2)
    for figure in ("trained_parameters", "upload_bytes", "sharing_plan"):
        assert plan[figure] == result.summary[figure]
    result.export(tmp_path / "adapter", client="site 0")
    card = (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert 'AutoModelForTokenClassification.from_pretrained("base")' in card
    base = AutoModelForTokenClassification.from_pretrained(tmp_path / "adapter" / "base")
    assert base.config.num_labels == 5
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    right = given = common = 0
    for row in federation.rows.partition.clients["site 0"].test:
        cell = federation.rows.table[int(row)]
        found = model(**tokenizer(" ".join(cell["words"]), return_tensors="pt")).logits[0, 1:-1].argmax(dim=1)
        wanted, own = (entities([TAGS[tag] for tag in tags]) for tags in (cell["tags"], found.tolist()))
        right, given, common = right + len(wanted), given + len(own), common + len(wanted & own)
    f1 = result.summary["per_client"]["site 0"]["test"]["f1"]
    assert 2 * common / (right + given) == pytest.approx(f1, abs=1e-9)


def test_entities_are_those_of_seqeval():
    rng = np.random.default_rng(0)
    for _ in range(300):
        tags = [str(tag) for tag in rng.choice(["O", "B-A", "I-A", "B-B", "I-B"], 12)]
        assert entities(tags) == {(kind, start, end + 1) for kind, start, end in get_entities(tags)}


def test_figures_of_entities(recipe):
    federation = Federation.from_recipe(recipe())
    task, encoded = federation.task, federation.encoded
    assert isinstance(task, TokenClassification)
    rows = np.array([0, 1])
    outputs = torch.zeros(2, 128, 5)
    right = {row: federation.rows.table[int(row)]["tags"] for row in rows}
    for place, row in enumerate(rows):
        for word, tag in enumerate(right[row]):
            outputs[place, word + 1, tag] = 5  # behind [CLS]; every word is one token
    assert task.score(encoded, rows, outputs)["f1"] == 1
    wanted = [entities([TAGS[tag] for tag in right[row]]) for row in rows]
    outputs[0] = 0  # the first class: O
    figures = task.score(encoded, rows, outputs)
    recall = len(wanted[1]) / sum(map(len, wanted))
    assert (figures["precision"], figures["recall"]) == (1, pytest.approx(recall, abs=1e-9))
    assert figures["f1"] == pytest.approx(2 * recall / (1 + recall), abs=1e-9)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O B-B", {("A", 0, 2), ("B", 3, 4)}),
        ("I-A I-A B-A I-B O", {("A", 0, 2), ("A", 2, 3), ("B", 3, 4)}),
        ("O I-B O B-B B-B", {("B", 1, 2), ("B", 3, 4), ("B", 4, 5)}),
        ("B-A I-B I-B I-A", {("A", 0, 1), ("B", 1, 3), ("A", 3, 4)}),
        ("O O", set()),
    ],
)
def test_where_entities_begin_and_end(tags, found):
    assert entities(tags.split()) == found


def test_rows_and_settings_that_do_not_fit(recipe):
    task = recipe().task.model_dump()
    with pytest.raises(DataError, match=r"has the tag 3; task.labels names O, B-MOOD"):
        Federation.from_recipe(recipe(task=task | {"labels": TAGS[:3]}))
    with pytest.raises(DataError, match=r"must be lists, as many words as tags"):
        Federation.from_recipe(recipe(task=task | {"answer": "site"}))
    with pytest.raises(ConfigError, match=r"a tag is O, B-KIND or I-KIND \(got 'MOOD'\)"):
        recipe(task=task | {"labels": ["O", "MOOD"]})
