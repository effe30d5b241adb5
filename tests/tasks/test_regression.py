"""Regression: numbers for texts, in cohorts and alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from transformers import AutoConfig, AutoModel, AutoTokenizer

import fedsa
from fedsa.cost.plan import plan_run
from fedsa.errors import ConfigError, DataError
from fedsa.federation import Federation
from fedsa.recipe import parse_recipe
from fedsa.tasks.classification import TokenRows
from fedsa.tasks.regression import NumberRows, Regression
from support.federations import check_training
from support.tiny_rows import FILLER, WORDS


@pytest.fixture
def recipe(tiny_model_without_dropout, tmp_path):
    AutoModel.from_pretrained(tiny_model_without_dropout).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model_without_dropout).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    good, bad = WORDS["good"][0], WORDS["bad"][0]
    words = [good, bad, *FILLER[:4]]
    rows = []
    for number in range(400):
        said = [words[int(word)] for word in rng.integers(0, len(words), 6)]
        score = said.count(good) - said.count(bad) + 0.5
        rows.append({"text": " ".join(said), "score": score, "site": f"site {number % 2}"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")

    def make(**changes):
        return parse_recipe(
            {
                "rounds": 4,
                "model": {"path": str(tmp_path / "model"), "attn_implementation": "sdpa"},
                "adapter": {"r": 2, "target_modules": ["query", "value"]},
                "task": {"kind": "regression", "answer": "score"},
                "data": {"path": str(tmp_path / "rows.jsonl"), "partition": {"kind": "column", "column": "site"}},
                "training": {"local_steps": 10, "batch_size": 8, "learning_rate": 1e-2},
                "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
                **changes,
            }
        )

    return make


@pytest.mark.run
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(recipe):
    federation = Federation.from_recipe(recipe())
    assert federation.recipe.training.trainer == "cohort"
    check_training(federation, least=1e-5)


@pytest.mark.run
def test_a_run_learns_and_is_as_planned_and_exported(recipe, tmp_path):
    federation = Federation.from_recipe(recipe())
    result = fedsa.run(federation, tmp_path / "run")
    assert result.summary["metric"] == "spearman"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    first, last = (np.mean([line["validation"]["loss"] for line in lines if line["round"] == at]) for at in (0, 4))
    assert last < first / 2
    plan = plan_run(recipe(), clients=2)
    for figure in ("trained_parameters", "upload_bytes", "sharing_plan"):
        assert plan[figure] == result.summary[figure]
    result.export(tmp_path / "adapter", client="site 0")
    assert 'AutoModelForSequenceClassification.from_pretrained("base")' in (tmp_path / "adapter/README.md").read_text(
        "utf-8"
    )
    assert AutoConfig.from_pretrained(tmp_path / "adapter" / "base").num_labels == 1


def test_figures(recipe):
    wanted, predicted = np.array([0.0, 1.5, 1.5, 3.0, 5.0]), np.array([0.2, 0.1, 2.0, 2.0, 9.0])

    def pearson(a, b):
        a, b = a - a.mean(), b - b.mean()
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    texts = TokenRows(np.zeros(5, np.int32), None, np.arange(6), np.zeros(5, np.int64), 0)
    task, encoded = Regression(("text",), "score"), NumberRows(texts, wanted)
    figures = task.score(encoded, np.arange(5), torch.from_numpy(predicted))
    assert figures["pearson"] == pytest.approx(pearson(wanted, predicted), abs=1e-9)
    assert figures["spearman"] == pytest.approx(pearson(rankdata(wanted), rankdata(predicted)), abs=1e-9)
    assert figures["loss"] == pytest.approx(((wanted - predicted) ** 2).mean(), abs=1e-9)
    assert task.score(encoded, np.arange(5), torch.ones(5))["spearman"] == 0
    assert task.score(encoded, np.arange(1), torch.ones(1))["pearson"] == 0


def test_the_cell_that_is_no_number_is_named_where_it_makes_a_column_one_of_texts(recipe, tmp_path):
    path = tmp_path / "rows.csv"
    cells = ["2.5" if number != 230 else "none" for number in range(240)]
    path.write_text("text,score,site\n" + "".join(f"so,{cell},site {n % 2}\n" for n, cell in enumerate(cells)))
    with pytest.raises(DataError, match="row 230: column 'score' says 'none', which is no number to predict"):
        Federation.from_recipe(recipe(data={"path": str(path), "partition": {"kind": "iid", "clients": 2}}))


def test_what_is_no_number(recipe):
    with pytest.raises(DataError, match="which is no number to predict"):
        Federation.from_recipe(recipe(task={"kind": "regression", "answer": "site"}))
    with pytest.raises(ConfigError, match="needs `answer`"):
        recipe(task={"kind": "regression"})
