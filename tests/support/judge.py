"""The judge of a run's figures: plain transformers and PEFT, one row at a time, without padding.

Rows and their split are the federation's; the model, the tokenizer and the arithmetic are not fedsa's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel
from torch import Tensor

import fedsa
from fedsa.models import quiet
from support.zoo import CLASSES, KINDS, SETTINGS, auto_model, clients_of, write_model

TOLERANCE = 2e-5
NUMBER_OF_CLASSES = {"token_classification": 3, "regression": 1, "classification": 2, "image_classification": 2}


def run(name: str, folder: Path, **settings: Any) -> tuple[fedsa.Federation, fedsa.RunResult]:
    """Run two rounds of an architecture of the zoo below a folder."""
    kind = KINDS[name]
    config = LoraConfig(
        r=2,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=kind.targets,
        target_parameters=kind.parameters,
        modules_to_save=kind.in_full,
    )
    federation = fedsa.Federation.from_objects(
        str(write_model(name, folder / "model")),
        config,
        clients_of(kind.task),
        rounds=2,
        task=SETTINGS[kind.task],
        **{
            "algorithm": "fedsa",
            "training": {
                "local_steps": 6,
                "batch_size": 8,
                "learning_rate": 0.05,
                "head_learning_rate": 0.2,
                "trainer": "sequential",
            },
            "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
            "evaluation": {"batch_size": 3},
            **settings,
        },
    )
    return federation, fedsa.run(federation, folder / "run")


def rows_to_judge(federation: fedsa.Federation, client: str) -> list[dict[str, Any]]:
    """Return a client's test rows, with the names of their classes."""
    rows = federation.rows
    numbers = rows.partition.clients[client].test.tolist()
    return [{"label": rows.label_names[rows.labels[row]], **rows.table[row]} for row in numbers]


def load(task: str, folder: Path, base: Path | None = None) -> Any:
    """Return an exported model: merged, or an adapter on its base."""
    options = {"num_labels": NUMBER_OF_CLASSES[task]} if task in NUMBER_OF_CLASSES and base is not None else {}
    torch.manual_seed(1)  # a head that is drawn here must not be what is measured
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        model = auto_model(task).from_pretrained(base or folder, dtype=torch.float32, **options)
        if base is not None:
            model = PeftModel.from_pretrained(model, folder)
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = 0
    return model.eval()


@torch.inference_mode()
def loss(task: str, settings: Mapping[str, Any], model: Any, folder: Path, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean loss of a client's rows.

    Args:
        task: its kind.
        settings: the recipe's ``[task]``.
        model: as `load` gives it.
        folder: with the tokenizer, or the image processor.
        rows: the client's test rows.
    """
    if task == "image_classification":
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    else:
        processor = transformers.AutoTokenizer.from_pretrained(folder)
    terms = [_terms(task, settings, model, processor, row) for row in rows]
    return float(sum(each for each, _ in terms)) / sum(count for _, count in terms)


Row = Mapping[str, Any]


def _terms(task: str, settings: Row, model: Any, processor: Any, row: Row) -> tuple[float, int]:
    """Return a row's summed loss, and the number of terms in it."""
    if task == "image_classification":
        logits = model(**processor(row["image"].convert("RGB"), return_tensors="pt")).logits
        return _entropy(logits, torch.tensor([CLASSES.index(row["label"])])), 1
    if task == "classification":
        logits = model(**processor(row["text"], return_tensors="pt")).logits
        return _entropy(logits, torch.tensor([CLASSES.index(row["label"])])), 1
    if task == "regression":
        return float((model(**processor(row["text"], return_tensors="pt")).logits[0, 0] - row["number"]) ** 2), 1
    if task == "token_classification":
        logits = model(**processor(" ".join(row["words"]), return_tensors="pt")).logits[0, 1:-1]
        tags = torch.tensor([settings["labels"].index(tag) for tag in row["tags"]])
        return _entropy(logits, tags), len(tags)
    if task == "question_answering":
        encoded = processor(row["question"], row["context"], return_tensors="pt")
        said = model(**encoded)
        first = row["answers"]["answer_start"][0]
        place = encoded.char_to_token(0, first, sequence_index=1)
        last = encoded.char_to_token(0, first + len(row["answers"]["text"][0]) - 1, sequence_index=1)
        return _entropy(said.start_logits, torch.tensor([place])) + _entropy(said.end_logits, torch.tensor([last])), 2
    return _of_a_decoder(task, settings, model, processor, row)


def _of_a_decoder(task: str, settings: Row, model: Any, tokenizer: Any, row: Row) -> tuple[float, int]:
    prompt, answer = {
        "generation": lambda: (settings["prompt"].format_map(row), settings["answer"].format_map(row)),
        "language_modeling": lambda: ("", row["text"]),
        "multiple_choice": lambda: (row["text"], row[settings["choices"][row["right"]]]),
    }[task]()
    front = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id or tokenizer.eos_token_id]
    said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([front + said])
    logits = model(input_ids=ids).logits[0, len(front) - 1 : -1]
    return _entropy(logits, torch.tensor(said)), len(said)


def _entropy(logits: Tensor, wanted: Tensor) -> float:
    return float(F.cross_entropy(logits.float(), wanted, reduction="sum"))
