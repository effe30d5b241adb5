"""Tiny random models of many architectures, as folders that transformers loads, and rows for every kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Image, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from support.tiny_vision import picture

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
NAMES = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token", "mask_token"), SPECIAL, strict=True))
GOOD, BAD = ["works", "shines", "fits"], ["broke", "leaks", "tears"]
WORDS = ["the", "lamp", "train", "bread", "coat", *GOOD, *BAD, "was", "so", "we", "good", "bad", "then"]
CLASSES = ("bad", "good")
SIDE = 32

_TEXT = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_WIDE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_ENCODER = {**_TEXT, **_WIDE, "max_position_embeddings": 48, "type_vocab_size": 2}
_DECODER = {**_TEXT, **_WIDE, "num_key_value_heads": 1, "max_position_embeddings": 48, "head_dim": 8}
_VISION = {**_WIDE, "image_size": SIDE, "patch_size": 8}
_BOTH = {
    **_TEXT,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 48,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": 3,
}


@dataclass(frozen=True)
class Kind:
    """An architecture.

    Attributes:
        sizes: what makes it tiny, for its config.
        targets: layers to adapt.
        task: the kind of task that it is tried on.
        parameters: to adapt by their name alone.
        model_type: transformers' name of it; empty: its name here.
        in_full: layers to train in full.
    """

    sizes: Mapping[str, Any]
    targets: list[str] | str = "all-linear"
    task: str = "classification"
    parameters: list[str] | None = None
    model_type: str = ""
    in_full: list[str] | None = None


_T5 = {**_TEXT, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
_BYTES = {"vocab_size": len(SPECIAL) + 256, "max_position_embeddings": 128}
_EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
_GPT2 = {**_TEXT, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48}
_MOBILE = {"image_size": SIDE, "depth_multiplier": 0.35, "last_hidden_size": 16, "tf_padding": False}

KINDS: dict[str, Kind] = {
    # encoders
    "bert": Kind(_ENCODER),
    "roberta": Kind(_ENCODER),
    "distilbert": Kind({**_TEXT, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}),
    "albert": Kind({**_ENCODER, "embedding_size": 8}),
    "electra": Kind({**_ENCODER, "embedding_size": 8}),
    "deberta-v2": Kind(
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16}
    ),
    "modernbert": Kind({**_TEXT, **_WIDE, "max_position_embeddings": 48, "cls_token_id": 2, "sep_token_id": 3}),
    "mpnet": Kind(_ENCODER),
    "camembert": Kind(_ENCODER),
    "xlnet": Kind({**_TEXT, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}),
    # decoders
    "llama": Kind(_DECODER, task="generation"),
    "llama, tied": Kind({**_DECODER, "tie_word_embeddings": True}, task="generation", model_type="llama"),
    "llama, tied, lm_head": Kind(
        {**_DECODER, "tie_word_embeddings": True}, ["q_proj", "lm_head"], "generation", model_type="llama"
    ),
    "llama, tied, embed_tokens": Kind(
        {**_DECODER, "tie_word_embeddings": True}, ["q_proj", "embed_tokens"], "generation", model_type="llama"
    ),
    "llama, tied, head in full": Kind(
        {**_DECODER, "tie_word_embeddings": True}, ["q_proj"], "generation", model_type="llama", in_full=["lm_head"]
    ),
    "llama, classes": Kind(_DECODER, model_type="llama"),
    "gpt2": Kind(_GPT2, task="generation"),
    "gpt2, lm_head": Kind(_GPT2, ["c_attn", "lm_head"], "generation", model_type="gpt2"),
    "gpt2, wte": Kind(_GPT2, ["c_attn", "wte"], "language_modeling", model_type="gpt2"),
    "gpt2, classes": Kind(_GPT2, model_type="gpt2"),
    "mistral": Kind(_DECODER, task="multiple_choice"),
    "qwen2": Kind({**_DECODER, **_BYTES, "tie_word_embeddings": True}, ["q_proj", "lm_head"], "language_modeling"),
    "qwen3": Kind(_DECODER, task="generation"),
    "gemma2": Kind(_DECODER, task="generation"),
    "gemma3_text": Kind(_DECODER, ["q_proj", "embed_tokens"], "generation"),
    "phi3": Kind(_DECODER, task="multiple_choice"),
    "opt": Kind(
        {**_TEXT, **_WIDE, "ffn_dim": 32, "max_position_embeddings": 48, "word_embed_proj_dim": 16}, task="generation"
    ),
    "gpt_neox": Kind({**_TEXT, **_WIDE, "max_position_embeddings": 48}, task="language_modeling"),
    "bloom": Kind({**_TEXT, "hidden_size": 16, "n_layer": 2, "n_head": 2}, task="generation"),
    "falcon": Kind({**_TEXT, **_WIDE, "alibi": False, "new_decoder_architecture": False}, task="generation"),
    "mixtral, experts": Kind(
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
        ["q_proj"],
        "generation",
        _EXPERTS,
        model_type="mixtral",
    ),
    "qwen3_moe, experts": Kind(
        {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        ["q_proj"],
        "generation",
        _EXPERTS,
        model_type="qwen3_moe",
    ),
    # encoders beside decoders
    "bart": Kind(_BOTH),
    "mbart": Kind(_BOTH),
    "t5": Kind(_T5),
    "t5, shared": Kind(_T5, ["q", "shared"], model_type="t5"),
    # other tasks of encoders
    "bert, tags": Kind(_ENCODER, ["query", "value"], "token_classification", model_type="bert"),
    "roberta, answers": Kind(_ENCODER, ["query", "value"], "question_answering", model_type="roberta"),
    "bert, numbers": Kind(_ENCODER, ["query", "value"], "regression", model_type="bert"),
    # images, without and with batch normalisation
    "vit": Kind(_VISION, task="image_classification"),
    "dinov2": Kind({**_VISION, "mlp_ratio": 2}, task="image_classification"),
    "deit": Kind(_VISION, task="image_classification"),
    "beit": Kind({**_VISION, "use_relative_position_bias": True}, task="image_classification"),
    "swin": Kind(
        {"image_size": SIDE, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
        task="image_classification",
    ),
    "convnext": Kind(
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIDE},
        ["pwconv1", "pwconv2"],
        "image_classification",
    ),
    "convnext, convolutions": Kind(
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIDE},
        ["patch_embeddings"],
        "image_classification",
        model_type="convnext",
    ),
    "resnet": Kind(
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        ["convolution"],
        "image_classification",
    ),
    "regnet": Kind(
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4, "layer_type": "y"},
        ["attention.0", "attention.2"],
        "image_classification",
    ),
    "mobilenet_v2": Kind(_MOBILE, ["expand_1x1.convolution", "reduce_1x1.convolution"], "image_classification"),
    "levit": Kind(
        {
            "image_size": SIDE,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        ["queries_keys_values.linear"],
        "image_classification",
    ),
}

_AUTO = {
    "image_classification": "AutoModelForImageClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "generation": "AutoModelForCausalLM",
    "language_modeling": "AutoModelForCausalLM",
    "multiple_choice": "AutoModelForCausalLM",
}


def auto_model(task: str) -> Any:
    """Return transformers' class for a kind of task."""
    return getattr(transformers, _AUTO.get(task, "AutoModelForSequenceClassification"))


def write_model(name: str, folder: Path) -> Path:
    """Write a model of ``KINDS``, without the head that a task would train, and its tokenizer or image processor."""
    kind = KINDS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind.model_type or name, **kind.sizes, architectures=[])
    model = auto_model(kind.task).from_config(config)
    _enlarge(model)
    whole = auto_model(kind.task) is transformers.AutoModelForCausalLM
    (model if whole else model.base_model).save_pretrained(folder)
    if kind.task == "image_classification":
        transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    else:
        _write_tokenizer(folder, of_bytes=config.vocab_size == _BYTES["vocab_size"])
    return folder


@torch.no_grad()
def _enlarge(model: nn.Module) -> None:
    """Give weights a size at which what a model says depends on all of its layers, and running statistics values."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)


def _write_tokenizer(folder: Path, *, of_bytes: bool) -> None:
    """Write a tokenizer of whole words, or of bytes: transformers reads Qwen2's as such, whatever is written."""
    if of_bytes:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        ids = {piece: number for number, piece in enumerate([*SPECIAL, *alphabet])}
        bytewise = Tokenizer(models.BPE(ids, []))
        bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise, **NAMES).save_pretrained(folder)
        return
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = {**NAMES, "cls_token": "<s>", "sep_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, model_input_names=["input_ids", "attention_mask"], model_max_length=48
    )
    tokenizer.save_pretrained(folder)


def _text(rng: np.random.Generator, good: bool) -> list[str]:
    front = rng.choice(WORDS[:5], rng.integers(1, 4)).tolist()
    return [*front, str(rng.choice(GOOD if good else BAD)), *rng.choice(WORDS[11:], rng.integers(0, 4)).tolist()]


def _row(task: str, rng: np.random.Generator, number: int) -> dict[str, Any]:
    good = number % 2
    words = _text(rng, bool(good))
    text, place = " ".join(words), int(rng.integers(0, len(words)))
    if task == "image_classification":
        return {"image": picture(rng, good, (1.0, 0.6, 0.2), SIDE), "label": CLASSES[good]}
    if task == "token_classification":
        return {"words": words, "tags": ["B-WORD" if word in (*GOOD, *BAD) else "O" for word in words]}
    if task == "question_answering":
        start = sum(len(word) + 1 for word in words[:place])
        return {"question": "the lamp", "context": text, "answers": {"text": [words[place]], "answer_start": [start]}}
    if task == "multiple_choice":
        return {"text": words[0], "first": GOOD[number % 3], "second": BAD[number % 3], "right": good}
    if task == "regression":
        return {"text": text, "number": len(words) / 4 - good}
    return {"text": text, "label": CLASSES[good]}


def _rows(task: str, client: int, count: int) -> Dataset:
    rng = np.random.default_rng(client)
    rows = [_row(task, rng, number) for number in range(count)]
    if task != "image_classification":
        return Dataset.from_list(rows)
    return Dataset.from_dict(
        {name: [row[name] for row in rows] for name in rows[0]}, Features({"image": Image(), "label": Value("string")})
    )


def clients_of(task: str, count: int = 24) -> dict[str, Dataset]:
    """Return two clients' rows for a kind of task."""
    return {f"c{client}": _rows(task, client, count) for client in range(2)}


SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {},
    "image_classification": {"kind": "image_classification"},
    "generation": {"kind": "generation", "prompt": "so {label} then", "answer": "{text}"},
    "language_modeling": {"kind": "language_modeling", "text_columns": ["text"]},
    "multiple_choice": {
        "kind": "multiple_choice",
        "prompt": "{text}",
        "choices": ["first", "second"],
        "choice_template": "{choice}",
        "answer": "right",
    },
    "token_classification": {
        "kind": "token_classification",
        "text_columns": ["words"],
        "answer": "tags",
        "labels": ["O", "B-WORD", "I-WORD"],
    },
    "question_answering": {"kind": "question_answering", "max_length": 40, "doc_stride": 8},
    "regression": {"kind": "regression", "text_columns": ["text"], "answer": "number"},
}
"""A recipe's ``[task]`` for each kind."""
