"""Exports as a user loads them: transformers' pipeline and PEFT's own classes, and the card's code as printed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftConfig, VeraConfig
from transformers import AutoModel, AutoTokenizer, pipeline

import fedsa
from fedsa.errors import UserError
from fedsa.runs.export import base_of, card_of, export, write_model
from support.tiny_decoder import WORDS as DECODER_WORDS
from support.tiny_decoder import write_decoder

pytestmark = pytest.mark.run

FILLER = ["the", "film", "was", "a", "product", "we", "saw", "it", "today", "very"]
ADAPTERS = {
    "lora": lambda names: LoraConfig(r=2, target_modules=names),
    "vera": lambda names: VeraConfig(r=4, target_modules=names, projection_prng_key=1, save_projection=True),
}


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("tiny-decoder"))


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without a head: it goes with any number of classes."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def rows(classes: int, words: list[str]) -> dict[str, datasets.Dataset]:
    """Return two clients' rows; a row's class is told by its last word."""
    rng = np.random.default_rng(0)
    labels = [number % classes for number in range(20 * classes)]
    texts = [f"{' '.join(rng.choice(words, int(rng.integers(0, 4))))} {words[label]}".strip() for label in labels]
    table = datasets.Dataset.from_dict({"text": texts, "label": [f"class {label}" for label in labels]})
    return {"north": table.shard(2, 0, contiguous=False), "south": table.shard(2, 1, contiguous=False)}


IN_SHORT = [("encoder", "lora", 3), ("encoder", "vera", 2), ("decoder", "lora", 7), ("decoder", "vera", 3)]
GRID = [
    pytest.param(*each, marks=[] if each in IN_SHORT else pytest.mark.slow)
    for each in itertools.product(["encoder", "decoder"], ["lora", "vera"], [2, 3, 7])
]


@pytest.mark.parametrize(("kind", "variant", "classes"), GRID)
def test_plain_calls_load_an_adapter_with_its_classes(
    tiny_encoder: Path, tiny_decoder: Path, tmp_path: Path, kind: str, variant: str, classes: int
) -> None:
    base, words = (tiny_encoder, FILLER) if kind == "encoder" else (tiny_decoder, DECODER_WORDS)
    names = ["query", "value"] if kind == "encoder" else ["q_proj", "o_proj"]
    federation = fedsa.Federation.from_objects(
        str(base),
        ADAPTERS[variant](names),
        rows(classes, words),
        rounds=1,
        task={"label_column": "label"},
        training={"learning_rate": 0.05},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
    )
    result = fedsa.run(federation, tmp_path / "run")
    north, south = result.export(tmp_path / "all", round="final")
    texts = [" ".join(words[:3]), words[1]]
    expected = {}
    for client, folder in (("north", north), ("south", south)):
        batch = federation.tokenizer(texts, return_tensors="pt", padding=True)
        model = AutoPeftModelForSequenceClassification.from_pretrained(str(folder))
        with torch.inference_mode():
            expected[client] = model(**batch).logits.softmax(dim=-1)
        assert model.config.num_labels == classes
        # PEFT itself refuses to put VeRA into a model that transformers has loaded: there the pipeline is given PEFT's
        given = {"model": str(folder)} if variant == "lora" else {"model": model, "tokenizer": federation.tokenizer}
        shown = pipeline("text-classification", **given, top_k=None)(texts)
        for each, wanted in zip(shown, expected[client], strict=True):
            scores = {entry["label"]: entry["score"] for entry in each}
            assert sorted(scores) == [f"class {number}" for number in range(classes)]
            np.testing.assert_allclose([scores[f"class {number}"] for number in range(classes)], wanted, atol=1e-5)
    assert not torch.equal(expected["north"], expected["south"])


# -- the card's code as printed ---------------------------------------------------------------------------------------

TASKS: dict[str, dict[str, Any]] = {
    "classification": {"label_column": "label"},
    "pair": {"text_columns": ["text", "second"], "label_column": "label"},
    "regression": {"kind": "regression", "text_columns": ["text"], "answer": "number"},
    "token_classification": {
        "kind": "token_classification",
        "text_columns": ["words"],
        "answer": "tags",
        "labels": ["O", "B-X", "I-X"],
    },
    "question_answering": {"kind": "question_answering", "text_columns": ["second", "text"], "max_length": 24,
                           "doc_stride": 4},
    "generation": {"kind": "generation", "prompt": "what is {text} ?", "answer": "{label}", "max_new_tokens": 3},
    "chat": {"kind": "generation", "prompt": "{text}", "answer": "{label}", "chat": True, "max_new_tokens": 3},
    "multiple_choice": {
        "kind": "multiple_choice", "prompt": "{text}", "answer": "label", "labels": ["class 0", "class 1", "class 2"]
    },
    "language_modeling": {"kind": "language_modeling", "text_columns": ["text"]},
    "conversation": {"kind": "chat"},
    "preference": {"kind": "dpo", "prompt": "text", "chosen": "label", "rejected": "second"},
}  # fmt: skip
SHOWN = dict.fromkeys(("conversation", "preference"), "A conversation in the tokenizer's chat template")
ON = [
    *[("encoder", task) for task in list(TASKS)[:5]],
    *[("decoder", task) for task in TASKS if task not in ("token_classification", "question_answering")],
]


def table_for_all_tasks(words: list[str]) -> datasets.Dataset:
    table = rows(3, words)["north"]
    count = len(table)
    return datasets.Dataset.from_dict(
        {
            **table.to_dict(),
            "second": [words[number % len(words)] for number in range(count)],
            "number": [float(number % 5) for number in range(count)],
            "words": [text.split() for text in table["text"]],
            "tags": [["B-X", *["I-X"] * (len(text.split()) - 1)] for text in table["text"]],
            "answers": [{"text": [text.split()[0]], "answer_start": [0]} for text in table["text"]],
            "question": table["text"],
            "answer": table["label"],
        }
    )


def printed_blocks(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def write_untrained(federation: Any, folder: Path, *, merge: bool = False, with_base: bool = True) -> None:
    """Write what a client has before any training: enough for a card and its code."""
    summary = {
        "sharing_plan": [],
        "variant": federation.model.variant,
        "clients": 1,
        "source": "",
        "rounds": 1,
    }
    about = {"train_examples": 1, "validation_examples": 1, "test_examples": 1, "labels": federation.rows.label_names}
    copy = None if with_base and not merge else False
    recipe, task = federation.recipe, federation.task
    base = base_of(recipe.model, recipe.compute, federation.model, task, federation.tokenizer, folder, copy=copy)
    card = card_of(federation.recipe, summary, "one", about, base, folder, history="", score="", merged=merge)
    state = federation.model.initial
    write_model(federation.model, state, federation.tokenizer, card, folder, base=base, merge=merge)


def run_as_printed(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run each block of a card's code in its folder; return what each prints."""
    said, known = [], {}  # type: ignore[var-annotated]
    monkeypatch.chdir(folder)
    capsys.readouterr()
    for block in printed_blocks(folder):
        exec(compile(block, str(folder / "README.md"), "exec"), known)  # noqa: S102 (it is what a user does)
        said.append(capsys.readouterr().out)
    return said


@pytest.mark.parametrize(("kind", "task"), ON, ids=["-".join(each) for each in ON])
def test_the_code_of_a_card_works_as_printed(
    tiny_encoder: Path,
    tiny_decoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    task: str,
) -> None:
    base, words = (tiny_encoder, FILLER) if kind == "encoder" else (tiny_decoder, DECODER_WORDS)
    names = ["query", "value"] if kind == "encoder" else ["q_proj", "o_proj"]
    settings = {"trainer": "sequential"}

    def federation() -> Any:
        return fedsa.Federation.from_objects(
            {"path": str(base), "attn_implementation": "eager"},
            LoraConfig(r=2, target_modules=names),
            {"one": table_for_all_tasks(words)},
            rounds=1,
            task=TASKS[task],
            training=settings,
            compute={"device": "cpu", "threads": 1, "precision": "fp32"},
        )

    made = federation()
    write_untrained(made, tmp_path / "adapter")
    said = run_as_printed(tmp_path / "adapter", monkeypatch, capsys)
    text = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert str(base) not in text
    assert str(tmp_path) not in text
    assert base.name in text
    columns = TASKS[task].get("text_columns", ["text"])
    if task in ("classification", "pair", "regression", "token_classification", "question_answering"):
        assert all(f"`{column}`" in text for column in columns)
        assert [text.index(f"`{column}`") for column in columns] == sorted(
            text.index(f"`{column}`") for column in columns
        )
    else:
        assert SHOWN.get(task, TASKS[task].get("prompt", "`text`")) in text
    assert f"{made.recipe.task.max_length} tokens" in text
    if task in ("classification", "pair"):
        assert said[0].count("class ") == 2  # two texts at once
        assert "class " in said[1]
    write_untrained(federation(), tmp_path / "whole", merge=True)
    assert run_as_printed(tmp_path / "whole", monkeypatch, capsys)[0] == said[0]
    for file in [*(tmp_path / "whole").iterdir(), *(tmp_path / "adapter").iterdir()]:
        if file.suffix in (".json", ".md", ".txt") and file.name != "adapter_config.json":
            assert str(base) not in file.read_text(encoding="utf-8"), file


def test_without_its_base_no_folder_of_this_machine_is_named(
    tiny_encoder: Path, finished_run: Path, tmp_path: Path
) -> None:
    (alone,) = export(finished_run, tmp_path / "alone", clients=["site 1"], with_base=False)
    assert PeftConfig.from_pretrained(str(alone)).base_model_name_or_path is None
    assert not (alone / "base").exists()
    for file in alone.iterdir():
        assert b"/tiny-bert" not in file.read_bytes(), file


def test_the_copy_of_the_base_is_written_once_and_kept(
    tiny_model: Path, tiny_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    nameless = tmp_path_factory.mktemp("nameless") / "model"  # so that the names of the classes need a copy
    shutil.copytree(tiny_model, nameless)
    config = json.loads((nameless / "config.json").read_text())
    (nameless / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name not in ("id2label", "label2id")})
    )
    finished_run = tiny_run(f"model.path='{nameless.as_posix()}'").folder.path
    folders = export(finished_run, tmp_path / "all")
    assert sorted(path.name for path in tmp_path.rglob("model.safetensors")) == ["model.safetensors"]
    assert {PeftConfig.from_pretrained(str(folder)).base_model_name_or_path for folder in folders} == {
        str(tmp_path / "all" / "base")
    }
    before = (tmp_path / "all" / "base" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(folders[1])
    shutil.move(folders[0], tmp_path / "first")
    shutil.move(folders[2], tmp_path / "third")
    export(finished_run, tmp_path / "all")  # an export that was killed behind the base, say
    assert (tmp_path / "all" / "base" / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "other" / "base").mkdir(parents=True)
    (tmp_path / "other" / "base" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"other/base exists and is not this run's base model: give --to"):
        export(finished_run, tmp_path / "other")
    assert (tmp_path / "other" / "base" / "notes.txt").read_text() == "mine"


TURN_ENDS = (
    "{% for m in messages %}user: {{ m['content'] }} ? {% endfor %}{% if add_generation_prompt %}model: {% endif %}"
)
"""A template whose turns end with another token than the tokenizer's end token."""


@pytest.mark.run
@pytest.mark.parametrize("merge", [False, True])
def test_what_a_card_writes_stops_where_a_turn_ends(
    tiny_decoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    merge: bool,
) -> None:
    base = tmp_path / "model"
    shutil.copytree(tiny_decoder, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TURN_ENDS.replace("user:", "{{ 'user:' if m['role'] == 'user' else 'model:' }}")
    tokenizer.save_pretrained(base)
    federation = fedsa.Federation.from_objects(
        {"path": str(base), "attn_implementation": "eager"},
        LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0),
        {"one": datasets.Dataset.from_dict({"text": ["so", "it"] * 20, "label": ["red", "red"] * 20})},
        rounds=2,
        task={**TASKS["chat"], "max_new_tokens": 6, "metric": "exact_match"},
        training={"learning_rate": 0.05, "local_steps": 20, "trainer": "sequential"},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
    )
    result = fedsa.run(federation, tmp_path / "run")
    assert result.summary["per_client"]["one"]["test_final"]["exact_match"] == 1
    folder = tmp_path / "exported"
    result.export(folder, client="one", merge=merge, round="final")
    (said,) = run_as_printed(folder, monkeypatch, capsys)
    assert said.split().index("?") == len(said.split()) - 1  # nothing behind it, though there is room for six tokens
