"""What a client has inside fedsa, and what its exported model gives outside: logits of the same few texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedsa.federation import Federation
from fedsa.runs.export import personal_state
from fedsa.store import RunFolder

TEXTS = ["the film was great today", "a dull product", "we saw it very sad and fine", "happy"]
CLIENTS = ["site 0", "site 1", "site 2"]


def inside(federation: Federation, run: Path, client: str, round: str) -> torch.Tensor:
    """Return the logits of fedsa's own model with what the client would use written into it."""
    summary = json.loads((run / "summary.json").read_text())
    number = summary["chosen_round"] if round == "chosen" else summary["rounds"]
    federation.model.write(personal_state(RunFolder.open(run), federation.algorithm, client, number))
    federation.model.model.eval()
    batch = federation.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return federation.model.model(**batch).logits


def outside(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    """Return the logits of a model that fedsa has not touched, on tokens of the tokenizer beside it."""
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", padding=True)
    model.eval()
    with torch.inference_mode():
        return model(**batch).logits


def plain_base(tiny_model: Path) -> Any:
    """Return the tiny model as plain transformers loads it."""
    return AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
