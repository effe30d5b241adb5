"""A tiny random decoder with a word-level tokenizer, in the hub's own format, and rows for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "user:", "model:"]
NAMES = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=False))
NUMBERS = [str(number) for number in range(20)]
WORDS = ["what", "is", "plus", "equals", "####", "?", "so", "it", "red", "green", "blue", "the", "correct", "answer"]
TURNS = (
    "{% for m in messages %}{{ 'user:' if m['role'] == 'user' else 'model:' }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}model:{% endif %}"
)


def write_decoder(folder: Path) -> Path:
    """Write the model and its tokenizer; its weights are large, so that what it says depends on what it reads."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *NUMBERS, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **NAMES)
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_sums(path: Path, count: int = 60) -> Path:
    """Write rows: a question, an answer in GSM8K's form, choices in several forms, and a site."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            a, b = (int(value) for value in rng.integers(0, 10, 2))
            wrong = (a + b + 1) % 19
            right = int(rng.integers(0, 2))
            choices = [str(wrong), str(wrong)]
            choices[right] = str(a + b)
            row = {
                "question": f"what is {a} plus {b} ?",
                "answer": f"{'so it equals ' * (number % 3)}#### {a + b}",
                "first": choices[0],
                "second": choices[1],
                "both": {"text": choices, "label": ["A", "B"]},
                "right": right + 1,
                "letter": "AB"[right],
                "is_second": bool(right),
                "nothing": [],
                "site": f"site {number % 2}",
            }
            file.write(json.dumps(row) + "\n")
    return path
