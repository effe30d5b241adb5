"""Every recipe of texts: planned from itself alone, and two rounds on a tiny model and a stand-in of its data.

The recipes of images are in tests/tasks/test_images.py.
"""

import json
import shutil

import datasets
import numpy as np
import pytest
from transformers import BertModel

import fedsa
from fedsa import Federation
from fedsa.cost.plan import plan_run
from fedsa.recipe import parse_recipe, read_recipe, recipe_names, task_settings
from support.tiers import one_of_each
from support.tiny_decoder import NUMBERS, write_decoder
from support.tiny_rows import FILLER

pytestmark = pytest.mark.run

COUNTS = {"train": 240, "validation": 24, "validation_matched": 24, "test": 24}
CLIENTS = 3
ENCODERS = ("glue-mnli", "glue-sst2", "glue-qnli", "glue-qqp", "glue-rte", "squad")
DECODERS = (
    *("gsm8k", "gsm8k-33", "gsm8k-small", "glue-mnli-3b", "commonsense", "codesearchnet", "instructions"),
    *("hellaswag", "boolq", "piqa", "siqa", "arc-easy", "arc-challenge", "openbookqa", "winogrande"),
)
SMALL_DECODERS = (  # of gsm8k-small's model
    *("arc-small", "boolq-small", "shakespeare-small", "squad-small", "instructions-small", "dpo-small"),
)
SHAPES = {"conversation": ("instruction", "output"), "preference": ("prompt", "chosen", "rejected")}
SMALL = (
    *("glue-mnli-small", "glue-sst2-small", "glue-qnli-small", "glue-qqp-small", "glue-rte-small"),
    *("newsgroups-small", "clinc150-small"),
)
ELSEWHERE = ("quickstart", "pacs-small", "domainnet", "cifar100-gl-dir", "cifar100-sc-dir", "cifar100-patho")


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


def write_stand_in(recipe, folder, words):
    """Write a small data set that has the columns and splits of a recipe's, in the hub's format: Parquet by split.

    Its texts are of words that the model's tokenizer knows.
    """
    rng = np.random.default_rng(0)
    task = task_settings(recipe["task"])
    by_file = recipe["data"]["partition"]["kind"] == "files"
    place = folder / recipe["data"]["path"].rpartition("/")[2] / recipe["data"].get("name", "")
    place /= "" if by_file else "data"
    place.mkdir(parents=True)

    def text(_=None):
        return " ".join(rng.choice(words, int(rng.integers(2, 6))))

    for split, count in COUNTS.items():
        rows = {name: [text() for _ in range(count)] for name in SHAPES.get(task.shape, task.columns)}
        if task.has_classes:
            rows[task.label_column] = (np.arange(count) % len(task.labels)).tolist()
        if task.kind == "multiple_choice":
            rows |= choices_of(task, rng, count, text)
        if task.kind == "generation" and task.extract != "none":
            rows["answer"] = [f"so it equals #### {number}" for number in rng.integers(0, 19, count)]
        if "answers" in rows:
            rows["answers"] = [{"text": [row.split()[0]], "answer_start": [0]} for row in rows["context"]]
        for key, parts in (("column", CLIENTS), ("group", 24)):
            if key in recipe["data"]["partition"]:
                rows[recipe["data"]["partition"][key]] = [f"{key} {row % parts}" for row in range(count)]
        table = datasets.Dataset.from_dict(rows)
        if task.has_classes:
            table = table.cast_column(task.label_column, datasets.ClassLabel(names=task.labels))
        if by_file:
            for client in range(CLIENTS if split == "train" else 0):
                table.shard(CLIENTS, client).to_parquet(place / f"client {client}.parquet")
            continue
        table.to_parquet(place / f"{split}-00000-of-00001.parquet")


def choices_of(task, rng, count, text):
    """Return the columns of the right answer, and of the choices where they are lists, in the hub's several forms."""
    columns = task.choices or []
    right = rng.integers(0, 4 if len(columns) == 1 else len(columns or task.labels), count).tolist()
    if task.labels:  # yes or no, in BoolQ
        return {task.answer: [bool(number) for number in right]}
    if columns == ["choices"]:  # ARC and OpenBookQA
        lists = [{"text": list(map(text, "ABCD")), "label": list("ABCD")} for _ in right]
        return {"choices": lists, task.answer: ["ABCD"[number] for number in right]}
    lists = {columns[0]: [list(map(text, range(4))) for _ in right]} if len(columns) == 1 else {}  # HellaSwag
    return {**lists, task.answer: [str(number + task.first_choice) for number in right]}


def test_every_recipe_is_checked():
    assert {*ENCODERS, *DECODERS, *SMALL, *SMALL_DECODERS, *ELSEWHERE} == {*recipe_names()}


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS, *SMALL, *SMALL_DECODERS])
def test_a_recipe_runs_on_a_tiny_model_and_a_stand_in_of_its_data(
    tiny_encoder, tiny_llama, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("FEDSA_DATA", str(tmp_path / "data"))
    wanted, _ = read_recipe(name)
    wanted["data"]["path"] = wanted["data"]["path"].replace("part:", "hub/")
    decodes = name in DECODERS + SMALL_DECODERS
    write_stand_in(wanted, tmp_path / "data", NUMBERS if decodes else FILLER)
    wanted["rounds"] = 2
    wanted["model"] = {"path": str(tiny_llama if decodes else tiny_encoder)}
    wanted["compute"] = {"threads": 1, "device": "cpu"}
    wanted["task"]["max_length"] = 30
    if wanted["task"]["kind"] == "generation":
        wanted["task"]["max_new_tokens"] = 4
    wanted["training"] |= {"local_steps": 2, "batch_size": 4}
    partition = wanted["data"]["partition"]
    partition |= {"validation_fraction": 0.15, "test_fraction": 0.2}
    partition |= {} if partition["kind"] in ("column", "files") else {"clients": CLIENTS}
    partition.pop("max_examples", None)
    for name in {"split", "test_split"} & {*wanted["data"]}:
        wanted["data"][name] = wanted["data"][name].partition("[")[0]
    wanted["evaluation"]["evaluate_every"] = 1
    summary = fedsa.run(Federation.from_recipe(parse_recipe(wanted)), tmp_path / "run").summary
    assert summary["clients"] == CLIENTS
    assert np.isfinite(summary["test"]["weighted_mean"])


def planned_alike(name):
    """Tell recipes of one model, adapter and task apart from others; they differ in rows and hyperparameters."""
    recipe, _ = read_recipe(name)
    return json.dumps([recipe["model"], recipe["adapter"], recipe["task"].get("kind")], sort_keys=True)


@pytest.mark.parametrize("name", one_of_each([(name,) for name in (*ENCODERS, *DECODERS)], planned_alike))
def test_a_recipe_is_planned_without_model_and_data(name, monkeypatch):
    monkeypatch.delenv("FEDSA_DATA", raising=False)
    wanted, _ = read_recipe(name)
    wanted["model"].get("config", {})["num_hidden_layers"] = 2  # all are alike: the rest would only take time
    recipe = parse_recipe(wanted)
    plan = plan_run(recipe)
    assert plan["clients"] == recipe.data.partition.clients
    (shared,) = {row["factor"] for row in plan["sharing_plan"] if row["sent"]}
    assert shared == "A"
