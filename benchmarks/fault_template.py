"""What a run of the fault suite starts from: a tiny model, rows, and the folders that `fedsa deploy init` writes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsa.deploy.parties import free_port

FEDSA = (sys.executable, "-m", "fedsa")
WORDS = {"bad": ["awful", "dull", "poor", "sad"], "good": ["great", "lovely", "fine", "happy"]}
FILLER = ["the", "film", "was", "a", "product", "we", "saw", "it", "today", "very"]


@dataclass(frozen=True)
class Template:
    """What `fedsa deploy init` has written for some sites and rounds, with rows for each, and how it ends undisturbed.

    Attributes:
        folder: where it lies.
        sites: names.
        rounds: of the run.
        port: of the server.
    """

    folder: Path
    sites: tuple[str, ...]
    rounds: int
    port: int

    @classmethod
    def make(cls, folder: Path, sites: Sequence[str], rounds: int) -> Template:
        """Make a tiny model and rows, and begin a federation."""
        folder.mkdir(parents=True)
        _write_model(folder / "model")
        for number, site in enumerate(sites):
            _write_rows(folder / f"{site}.csv", 120, seed=number)
        port = free_port()
        (folder / "recipe.toml").write_text(
            f"""algorithm = "fedsa"
rounds = {rounds}
model = {{ path = "{folder / "model"}", attn_implementation = "eager" }}
adapter = {{ r = 2, lora_alpha = 4, target_modules = ["query", "value"] }}
task = {{ text_columns = ["text"], label_column = "label", labels = ["bad", "good"] }}
data = {{ path = "rows.csv", partition = {{ kind = "files" }} }}
training = {{ local_steps = 20, batch_size = 4, learning_rate = 1e-2, trainer = "sequential" }}
compute = {{ device = "cpu", threads = 1, precision = "fp32" }}
""",
            encoding="utf-8",
        )
        words = ["deploy", "init", str(folder / "recipe.toml"), "--sites", ",".join(sites), "--port", str(port)]
        done = subprocess.run(
            [*FEDSA, *words, "--to", str(folder / "federation")], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return cls(folder, tuple(sites), rounds, port)


def _write_rows(path: Path, count: int, seed: int) -> None:
    """Write short texts that are good or bad."""
    draw = random.Random(seed)
    lines = ["text,label"]
    for _ in range(count):
        label = draw.choice(list(WORDS))
        words = [*draw.choices(FILLER, k=draw.randint(1, 8)), draw.choice(WORDS[label])]
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_model(folder: Path) -> None:
    """Write a random two-layer BERT of width 16."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *WORDS["bad"], *WORDS["good"]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
