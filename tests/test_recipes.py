"""Every recipe of texts: planned from itself alone, and two rounds on a tiny model and a stand-in of its data.

The recipes of images are in tests/tasks/test_images.py.
"""

import shutil

import datasets
import numpy as np
import pytest
from transformers import BertModel

import fedsa
from fedsa import Federation
from fedsa.plan import plan_run
from fedsa.recipe import parse_recipe, read_recipe, recipe_names
from tiny_decoder import NUMBERS, write_decoder

COUNTS = {"train": 240, "validation": 24, "validation_matched": 24, "test": 24}
CLIENTS = 3
ENCODERS = ("glue-mnli", "glue-sst2", "glue-qnli", "glue-qqp", "glue-rte", "squad")
DECODERS = ("gsm8k", "gsm8k-33", "gsm8k-small", "hellaswag", "glue-mnli-3b")
SMALL = ("glue-mnli-small", "glue-sst2-small", "glue-qnli-small", "glue-qqp-small", "glue-rte-small")
ELSEWHERE = (
    "quickstart",
    "squad-small",
    "pacs-small",
    "domainnet",
    "cifar100-gl-dir",
    "cifar100-sc-dir",
    "cifar100-patho",
)


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def tiny_encoder(tiny_model, tmp_path_factory):
    """The tiny BERT without its head."""
    folder = tmp_path_factory.mktemp("tiny-encoder") / "model"
    shutil.copytree(tiny_model, folder)
    BertModel.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def write_stand_in(recipe, folder):
    """Write a small data set that has the columns and splits of a recipe's, in the hub's format: Parquet by split."""
    rng = np.random.default_rng(0)
    task = recipe["task"]
    place = folder / recipe["data"]["path"].rpartition("/")[2] / recipe["data"].get("name", "") / "data"
    place.mkdir(parents=True)

    def text():
        return " ".join(rng.choice(NUMBERS, int(rng.integers(2, 6))))

    for split, count in COUNTS.items():
        rows = {name: [text() for _ in range(count)] for name in task.get("text_columns", [])}
        features = {name: datasets.Value("string") for name in rows}
        if task["kind"] == "classification":
            labels = np.arange(count) % len(task["labels"])
            rows["label"], features["label"] = labels.tolist(), datasets.ClassLabel(names=task["labels"])
        elif task["kind"] == "generation":
            sums = [f"so it equals #### {number}" for number in rng.integers(0, 19, count)]
            rows = {"question": [text() for _ in range(count)], "answer": sums}
            features = dict.fromkeys(rows, datasets.Value("string"))
        elif task["kind"] == "question_answering":
            contexts = [" ".join([text() for _ in range(9)]) for _ in range(count)]
            starts = [context.index(" ", 20) + 1 for context in contexts]
            texts = [context[start:].split()[0] for context, start in zip(contexts, starts, strict=True)]
            lists = {
                "text": datasets.List(datasets.Value("string")),
                "answer_start": datasets.List(datasets.Value("int32")),
            }
            rows = {
                "title": [f"article {number % 24}" for number in range(count)],
                "context": contexts,
                "question": [text() for _ in range(count)],
                "answers": [{"text": [own], "answer_start": [start]} for own, start in zip(texts, starts, strict=True)],
            }
            features = dict.fromkeys(rows, datasets.Value("string")) | {"answers": lists}
        else:
            rows = {
                "activity_label": [text() for _ in range(count)],
                "ctx": [text() for _ in range(count)],
                "endings": [[text() for _ in range(4)] for _ in range(count)],
                "label": [str(number) for number in rng.integers(0, 4, count)],
            }
            features = dict.fromkeys(rows, datasets.Value("string")) | {
                "endings": datasets.List(datasets.Value("string"))
            }
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(place / f"{split}-00000-of-00001.parquet")


def test_every_recipe_is_checked():
    assert {*ENCODERS, *DECODERS, *SMALL, *ELSEWHERE} == {*recipe_names()}


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS, *SMALL])
def test_a_recipe_runs_on_a_tiny_model_and_a_stand_in_of_its_data(
    tiny_encoder, tiny_llama, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("FEDSA_DATA", str(tmp_path / "data"))
    wanted, _ = read_recipe(name)
    write_stand_in(wanted, tmp_path / "data")
    wanted["rounds"] = 2
    wanted["model"] = {"path": str(tiny_llama if name in DECODERS else tiny_encoder)}
    wanted["compute"] = {"threads": 1, "device": "cpu"}
    wanted["task"]["max_length"] = 30
    if wanted["task"]["kind"] == "generation":
        wanted["task"]["max_new_tokens"] = 4
    wanted["training"] |= {"local_steps": 2, "batch_size": 4}
    wanted["data"]["partition"] |= {"clients": CLIENTS, "validation_fraction": 0.15}
    wanted["data"]["partition"].pop("max_examples", None)
    wanted["data"]["test_split"] = wanted["data"]["test_split"].partition("[")[0]
    wanted["evaluation"]["evaluate_every"] = 1
    summary = fedsa.run(Federation.from_recipe(parse_recipe(wanted)), tmp_path / "run").summary
    assert summary["clients"] == CLIENTS
    assert np.isfinite(summary["test"]["weighted_mean"])


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_a_recipe_is_planned_without_model_and_data(name, monkeypatch):
    monkeypatch.delenv("FEDSA_DATA", raising=False)
    recipe = parse_recipe(read_recipe(name)[0])
    plan = plan_run(recipe)
    assert plan["clients"] == recipe.data.partition.clients
    (shared,) = {row["factor"] for row in plan["sharing_plan"] if row["sent"]}
    assert shared == "A"
