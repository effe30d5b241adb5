"""The plain PEFT loop that speed.py compares fedsa with; speed_flower.py runs the same training in its clients.

Needs torch, transformers, peft and safetensors only. Each client begins from the same initial tensors and gets the same
rows in the same batches as in fedsa, A is averaged over the clients in memory after every round, B and the head stay
with the client, and every client is evaluated with what it would use next. Nothing is written to disk. Rows come as
token ids, and a batch is padded inside the measured time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

RANK, ALPHA, DROPOUT, TARGETS = 8, 16, 0.05, ("query", "value")
LEARNING_RATE = 2e-3  # AdamW without weight decay; gradients are not clipped
MAX_LENGTH = 128
EVALUATION_BATCH = 64

State = Mapping[str, Tensor]
"""Parameter name to value: A, B and the head."""


@dataclass(frozen=True)
class Loop:
    """One way to run the loop.

    Attributes:
        width: tokens that every batch is padded to; None: to its longest row.
        bf16: forward and backward in bf16 by autocast, else fp32.
        attention: transformers' attention kernel.
        device: cpu, or cuda: where everything is from the start, but the rows.
    """

    width: int | None
    bf16: bool
    attention: str
    device: str = "cpu"


@dataclass(frozen=True)
class Row:
    """A text's token ids and its class."""

    tokens: list[int]
    label: int


@dataclass(frozen=True)
class Work:
    """What is trained on and evaluated.

    Attributes:
        model: the base model's folder.
        pad: the padding token.
        train: client, round, step to the rows of a batch.
        evaluation: client to its rows.
        initial: the tensors that every client begins from.
    """

    model: str
    pad: int
    train: list[list[list[list[Row]]]]
    evaluation: list[list[Row]]
    initial: State


def read_work(folder: Path) -> Work:
    """Return what speed.py has prepared."""
    data = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    return Work(
        model=data["model"],
        pad=data["pad"],
        train=[[[[Row(*row) for row in batch] for batch in steps] for steps in rounds] for rounds in data["train"]],
        evaluation=[[Row(*row) for row in rows] for rows in data["evaluation"]],
        initial=dict(sorted(load_file(folder / "initial.safetensors").items())),  # the library gives them any order
    )


def load_model(work: Work, attention: str) -> PeftModel:
    """Return the base model with a LoRA adapter."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base = AutoModelForSequenceClassification.from_pretrained(
        work.model, num_labels=2, attn_implementation=attention, dtype=torch.float32
    )
    return get_peft_model(
        base,
        LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(TARGETS)),
    )


def trained(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def write(model: PeftModel, tensors: State) -> None:
    """Put values into the model."""
    parameters = trained(model)
    for name, value in tensors.items():
        parameters[name].copy_(value)


def read(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of all that is trained."""
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def split(tensors: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the matrices A, which are averaged, and B and the head, which stay with the client."""
    shared = {name: value for name, value in tensors.items() if ".lora_A." in name}
    return shared, {name: value for name, value in tensors.items() if name not in shared}


def collate(rows: Sequence[Row], pad: int, loop: Loop) -> dict[str, Tensor]:
    """Return a padded batch."""
    width = loop.width or max(len(row.tokens) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row.tokens)] = torch.tensor(row.tokens)
        mask[place, : len(row.tokens)] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row.label for row in rows])}
    return {name: value.to(loop.device) for name, value in batch.items()}


def train(model: PeftModel, batches: Sequence[Sequence[Row]], pad: int, loop: Loop) -> float:
    """Train one client for one round and return its mean loss."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=LEARNING_RATE, weight_decay=0.0)
    model.train()
    losses = []
    for rows in batches:
        batch = collate(rows, pad, loop)
        with torch.autocast(loop.device, torch.bfloat16, enabled=loop.bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def evaluate(model: PeftModel, rows: Sequence[Row], pad: int, loop: Loop) -> int:
    """Return how many rows the model gets right."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=loop.device)
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = collate(rows[start : start + EVALUATION_BATCH], pad, loop)
        with torch.autocast(loop.device, torch.bfloat16, enabled=loop.bf16):
            logits = model(**batch).logits
        right += (logits.argmax(1) == batch["labels"]).sum()
    return int(right)


def run_loop(work: Work, loop: Loop) -> dict[str, Any]:
    """Run all rounds and return each round's seconds, mean loss and accuracy."""
    model, clients = load_model(work, loop.attention).to(loop.device), range(len(work.train))
    shared, first = split({name: value.to(loop.device) for name, value in work.initial.items()})
    torch.manual_seed(0)  # of the dropout
    own: dict[int, State] = {}
    seconds: dict[str, list[float]] = {"train": [], "evaluation": [], "round": []}
    losses, accuracies = [], []
    for number in range(len(work.train[0])):
        started, loss, updates = time.perf_counter(), 0.0, []
        for client in clients:
            write(model, {**own.get(client, first), **shared})
            loss += train(model, work.train[client][number], work.pad, loop) / len(clients)
            update, own[client] = split(read(model))
            updates.append(update)
        shared = {name: torch.stack([update[name] for update in updates]).mean(0) for name in shared}
        trained_at, right = time.perf_counter(), 0
        for client in clients:
            write(model, {**own[client], **shared})
            right += evaluate(model, work.evaluation[client], work.pad, loop)
        ended = time.perf_counter()
        seconds["train"].append(trained_at - started)
        seconds["evaluation"].append(ended - trained_at)
        seconds["round"].append(ended - started)
        losses.append(loss)
        accuracies.append(right / sum(map(len, work.evaluation)))
    return {"seconds": seconds, "loss": losses, "accuracy": accuracies}
