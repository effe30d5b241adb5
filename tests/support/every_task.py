"""Rows and tiny federations for every kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from peft import LoraConfig

import fedsa
from fedsa.federation import Federation
from fedsa.types import CLASS_NUMBER
from support.tiny_rows import FILLER, WORDS
from support.tiny_vision import CLASSES, picture

__all__ = ["ON", "TASKS", "every_federation", "own_rows", "table_of", "without_answers"]

COLOURS = ["red", "green", "blue"]
_PROMPT = {"prompt": "what is {text} ?", "answer": "{said}", "max_new_tokens": 3}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"label_column": "label"},
    "pair": {"text_columns": ["text", "second"], "label_column": "label"},
    "regression": {"kind": "regression", "answer": "number"},
    "token_classification": {
        "kind": "token_classification", "text_columns": ["words"], "answer": "tags", "labels": ["O", "B-X", "I-X"]
    },
    "question_answering": {
        "kind": "question_answering", "text_columns": ["second", "context"], "max_length": 24, "doc_stride": 6
    },
    "generation": {"kind": "generation", **_PROMPT, "metric": "exact_match"},
    "generation_by_likelihood": {"kind": "generation", **_PROMPT},
    "language_modeling": {"kind": "language_modeling"},
    "multiple_choice": {"kind": "multiple_choice", "prompt": "{text}", "answer": "choice", "choices": ["choices"]},
    "chat": {"kind": "chat", "max_length": 32, "max_new_tokens": 3},
    "dpo": {"kind": "dpo"},
    "image_classification": {"kind": "image_classification", "text_columns": ["image"], "label_column": "shape"},
}  # fmt: skip
"""Settings of each kind, by a name."""
ON = {
    **dict.fromkeys(("classification", "pair", "regression", "token_classification", "question_answering"), "encoder"),
    **dict.fromkeys(("generation", "generation_by_likelihood", "language_modeling", "multiple_choice"), "decoder"),
    **dict.fromkeys(("chat", "dpo"), "decoder"),
    "image_classification": "vision",
}
"""The tiny model that each goes with."""
_ANSWERS = {"label", "number", "tags", "answers", "said", "choice", "shape"}
"""The columns of answers."""
_LAYERS = {"encoder": ["query", "value"], "decoder": ["q_proj", "v_proj"], "vision": ["q_proj", "v_proj"]}


def table_of(name: str, count: int = 40, seed: int = 0) -> datasets.Dataset:
    """Return rows that every task of texts can be made of; of pictures where the task is of them."""
    rng = np.random.default_rng(seed)
    if name == "image_classification":
        labels = [number % 3 for number in range(count)]
        images = [picture(rng, label, (1.0, 0.6, 0.2)) for label in labels]
        shapes = [CLASSES[label] for label in labels]
        features = datasets.Features({"image": datasets.Image(), "shape": datasets.Value("string")})
        return datasets.Dataset.from_dict({"image": images, "shape": shapes}, features=features)
    decodes = ON[name] == "decoder"
    words = ["it", "is", "the", "so", "answer"] if decodes else FILLER
    told = {0: ["red"], 1: ["green"]} if decodes else {0: WORDS["bad"], 1: WORDS["good"]}
    rows = []
    for number in range(count):
        before = [str(word) for word in rng.choice(words, int(rng.integers(1, 5)))]
        word, kind = str(rng.choice(told[number % 2])), number % 2
        after = [
            str(word) for word in rng.choice(words, int(rng.integers(0, 30 if name == "question_answering" else 3)))
        ]
        context = " ".join([*before, word, *after])
        tags = ["O"] * len(before) + ["B-X" if kind else "I-X"] + ["O"] * len(after)
        rows.append({
            "text": " ".join([*before, word]),
            "second": " ".join(words[:2]),
            "context": context,
            "label": f"class {kind}",
            "number": kind + 0.25 * len(before),
            "words": context.split(),
            "tags": tags,
            "answers": {"text": [word], "answer_start": [len(" ".join(before)) + 1]},
            "said": COLOURS[kind],
            "choices": [COLOURS[kind], "blue"] if number % 3 else ["blue", COLOURS[kind]],
            "choice": 0 if number % 3 else 1,
            "messages": [
                {"role": "user", "content": " ".join([*before, word])},
                {"role": "assistant", "content": COLOURS[kind]},
                *([{"role": "user", "content": "so ?"}, {"role": "assistant", "content": "so it is"}] * (number % 2)),
            ],
            "prompt": " ".join([*before, word]),
            "chosen": COLOURS[kind],
            "rejected": "blue",
        })  # fmt: skip
    return datasets.Dataset.from_list(rows)


def every_federation(name: str, model: Path, **settings: Any) -> Federation:
    """Return a federation of two clients for a kind of task, on a tiny model that goes with it."""
    table = table_of(name)
    return fedsa.Federation.from_objects(
        str(model),
        LoraConfig(r=2, lora_alpha=4, target_modules=_LAYERS[ON[name]]),
        {"north": table.shard(2, 0, contiguous=True), "south": table.shard(2, 1, contiguous=True)},
        **{
            "rounds": 2,
            "algorithm": "fedsa",
            "task": TASKS[name],
            "training": {"learning_rate": 0.05, "local_steps": 20, "batch_size": 8, "trainer": "sequential"},
            "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
            **settings,
        },
    )


def own_rows(result: fedsa.RunResult, client: str) -> datasets.Dataset:
    """Return a client's test rows of a run."""
    rows = result._federation.rows
    return rows.table.select(rows.partition.clients[client].test)


def without_answers(table: datasets.Dataset) -> datasets.Dataset:
    """Return rows as they are asked: without what is to be said of them."""
    return table.remove_columns([name for name in table.column_names if name in _ANSWERS | {CLASS_NUMBER}])
