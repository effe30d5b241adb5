"""Tiny random models of several kinds, and rows for them: what tests of many clients in one pass run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig, VeraConfig
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from fedsa.models import AdaptedModel
from fedsa.models.layout import Layout
from fedsa.tasks.classification import Classification, TokenRows
from fedsa.types import Key

WORDS = 40
TASK = Classification(("text",), ("a", "b", "c"))
VARIANTS = ("lora", "rslora", "vera", "dora", "pissa", "olora", "loha", "ia3", "lora_xs")

_SIZES = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_COMMON = {"num_labels": 3, "pad_token_id": 0}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def bert(**options: Any) -> PreTrainedModel:
    settings = {"intermediate_size": 32, "max_position_embeddings": 40, **_NO_DROPOUT, **options}
    return BertForSequenceClassification(BertConfig(**{**_SIZES, **_COMMON, **settings}))


def roberta(**options: Any) -> PreTrainedModel:
    settings = {"intermediate_size": 32, "max_position_embeddings": 44, **_NO_DROPOUT, **options}
    return RobertaForSequenceClassification(RobertaConfig(**_SIZES, **_COMMON, **settings))


def distilbert(**options: Any) -> PreTrainedModel:
    settings = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, **options}
    sizes = {"vocab_size": WORDS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    config = DistilBertConfig(**_COMMON, **sizes, max_position_embeddings=40, **settings)
    return DistilBertForSequenceClassification(config)


def llama(**options: Any) -> PreTrainedModel:
    settings = {"intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 40, **options}
    return LlamaForSequenceClassification(LlamaConfig(**_SIZES, **_COMMON, **settings))


def mistral(**options: Any) -> PreTrainedModel:
    settings = {"intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 40, **options}
    return MistralForSequenceClassification(MistralConfig(**_SIZES, **_COMMON, **settings))


def gpt2(**options: Any) -> PreTrainedModel:
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **_ENDS, **options}
    sizes = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    return GPT2ForSequenceClassification(GPT2Config(**_COMMON, **sizes, **settings))


def modernbert(**options: Any) -> PreTrainedModel:
    settings = {"intermediate_size": 32, "max_position_embeddings": 40, "local_attention": 128, **_ENDS, **options}
    config = ModernBertConfig(**_SIZES, **_COMMON, cls_token_id=1, sep_token_id=2, **settings)
    return ModernBertForSequenceClassification(config)


def albert(**options: Any) -> PreTrainedModel:
    """One layer, called twice."""
    settings = {"intermediate_size": 32, "embedding_size": 16, "max_position_embeddings": 40, **_NO_DROPOUT, **options}
    return AlbertForSequenceClassification(AlbertConfig(**_SIZES, **_COMMON, **settings))


def bart(**options: Any) -> PreTrainedModel:
    """An encoder beside a decoder; a row must end in token 2."""
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
    numbers = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    settings = {"dropout": 0.0, "decoder_start_token_id": 2, **_ENDS, **options}
    return BartForSequenceClassification(
        BartConfig(**_COMMON, vocab_size=WORDS, **sizes, **numbers, **heads, **settings)
    )


def xlnet(**options: Any) -> PreTrainedModel:
    """A model whose activations have the tokens in front of the rows."""
    sizes = {"vocab_size": WORDS, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    return XLNetForSequenceClassification(XLNetConfig(**_COMMON, **sizes, dropout=0.0, **_ENDS, **options))


BASES: dict[str, Callable[..., PreTrainedModel]] = {
    each.__name__: each for each in (bert, roberta, distilbert, llama, gpt2, modernbert)
}
TARGETS = {
    bert: ["query", "value"],
    roberta: ["query", "value"],
    distilbert: ["q_lin", "v_lin"],
    llama: ["q_proj", "v_proj"],
    mistral: ["q_proj", "v_proj"],
    gpt2: ["c_attn"],
    modernbert: ["Wqkv"],
    albert: ["query", "value"],
    bart: ["q_proj", "v_proj"],
    xlnet: ["layer_1"],
}


FITTING = [(name, variant) for name in BASES for variant in VARIANTS if (name, variant) != ("gpt2", "loha")]
"""Models and variants that go together: PEFT has no LoHa for GPT-2's transposed layers."""


def peft_config(variant: str, targets: Sequence[str], **options: Any) -> PeftConfig:
    """Return an adapter of rank 4. ``dropout`` is the adapter's, in each variant."""
    dropout = options.pop("dropout", 0.0)
    common: dict[str, Any] = {"r": 4, "target_modules": list(targets), "task_type": "SEQ_CLS", **options}
    if variant == "vera":
        return VeraConfig(**common, vera_dropout=dropout, d_initial=0.5)
    if variant == "loha":
        return LoHaConfig(**common, alpha=8)
    if variant == "ia3":
        del common["r"]
        return IA3Config(**{"feedforward_modules": [], **common})
    if variant in ("pissa", "olora", "lora_xs"):
        common["init_lora_weights"] = variant
    return LoraConfig(
        **common,
        lora_alpha=8,
        lora_dropout=dropout,
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
    )


def adapt(
    make: Callable[..., PreTrainedModel] = bert,
    variant: str = "lora",
    *,
    base: Mapping[str, Any] | None = None,
    scale: float = 8.0,
    dtype: torch.dtype = torch.float64,
    attention: str = "eager",
    precision: str = "fp32",
    method: Mapping[str, Any] | None = None,
    **options: Any,
) -> AdaptedModel:
    """Return a tiny model with an adapter, its weights large, so that every layer matters well above rounding.

    Args:
        make: of the functions above.
        variant: the adapter's.
        base: options of the base model.
        scale: how much larger its weights are than usual.
        dtype: all weights' in the end, with precision fp32.
        attention: its kernel.
        precision: as for `AdaptedModel`.
        method: what else `AdaptedModel` is told: adapters, folds, scaling.
        options: of the adapter.
    """
    torch.manual_seed(0)
    model = make(**(base or {}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.config._attn_implementation = attention
    config = peft_config(variant, options.pop("target_modules", None) or TARGETS[make], **options)
    adapted = AdaptedModel(model.eval(), config, seed=0, precision=precision, **(method or {}))
    if precision == "fp32":
        adapted.model.to(dtype)
    return adapted


def token_rows(count: int = 60, seed: int = 0, *, shortest: int = 3, longest: int = 23) -> TokenRows:
    """Return random rows of random length."""
    rng = np.random.default_rng(seed)
    return rows_of(rng.integers(shortest, longest + 1, count).tolist(), seed)


def rows_of(lengths: Sequence[int], seed: int = 0) -> TokenRows:
    """Return random rows of given lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, WORDS, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return TokenRows(tokens, None, offsets, rng.integers(0, 3, len(lengths)), pad=0)


def client_tensors(model: AdaptedModel, clients: int, *, scale: float = 0.3) -> list[dict[Key, torch.Tensor]]:
    """Return different tensors for each of some clients; what begins at zero is not zero in them."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            key: value + scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for key, value in model.read(model.keys).items()
        }
        for _ in range(clients)
    ]


def begin(model: AdaptedModel, encoded: TokenRows, rows: Sequence[Sequence[int]], *, pack: bool = False) -> Any:
    """Return a batch of several clients' rows, and tell the model of it."""
    batch = encoded.batch(np.concatenate([np.asarray(own, dtype=np.int64) for own in rows]))
    counts = [len(own) for own in rows]
    model.streams.begin(Layout(batch["attention_mask"], counts, pack=pack), list(range(len(rows))), [0] * len(rows))
    return batch
