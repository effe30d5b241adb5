"""A client's adapter as a folder that PEFT and transformers load by themselves."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, VeraConfig
from peft.tuners.vera.model import _kaiming_init
from safetensors.torch import save_file
from torch import Tensor

from fedsa.adapters.algebra import RANK_DIMENSION
from fedsa.adapters.factors import VARIANTS, key_of
from fedsa.errors import RunFolderError
from fedsa.models import AdaptedModel, plain_state, quiet, with_sorted_names
from fedsa.runs.export.about import About
from fedsa.runs.export.base import Base
from fedsa.runs.export.targets import Journal, written_whole
from fedsa.store import RunFolder
from fedsa.types import Factor, State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["config_of", "projections", "write_model"]


def write_model(
    model: AdaptedModel,
    state: State,
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
    target: Path,
    *,
    base: Base,
    about: About | None = None,
    merge: bool = False,
    journal: Journal | None = None,
) -> None:
    """Write a client's adapter, or the whole model with it, as PEFT and transformers load it.

    Args:
        model: the base with the adapter; it ends with the client's tensors in it, and merging changes its base.
        state: the client's tensors.
        tokenizer: written beside it.
        card: written as ``README.md``.
        target: an empty folder, or none yet.
        base: how the adapter names its base model.
        about: written as ``fedsa.json``.
        merge: write the whole model with the adapter's update added to its weights.
        journal: of an export that can be repeated.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left in it.
    """
    model.write(state)
    with written_whole(target, journal) as staging, quiet():
        if merge:
            model.merge().save_pretrained(staging)
        elif VARIANTS[model.variant].starts_at_zero and _is_whole(model, state):
            named = {**plain_state(model.model), **projections(model)}
            model.model.create_or_update_model_card = _no_card  # type: ignore[assignment, method-assign]
            # not the frozen tables too, where an embedding or the vocabulary has an adapter
            model.model.save_pretrained(str(staging), state_dict=named, save_embedding_layers=False)
            _write_config(staging / "adapter_config.json", model, base)
        else:
            _save_product(model, state, staging)
            _write_config(staging / "adapter_config.json", model, base)
        tokenizer.save_pretrained(staging)
        card.save(staging / "README.md")
        if about is not None:
            about.write(staging)


def config_of(folder: RunFolder) -> PeftConfig:
    """Return PEFT's description of a run's adapter, ready to be trained.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    path = folder.check_file("adapter_config.json")
    try:
        with quiet():
            config: PeftConfig = PeftConfig.from_pretrained(str(folder.path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): put it back as it was from a copy") from error
    config.inference_mode = False
    return config


def _no_card(_: str) -> None:
    """In place of PEFT's card: ours is written."""


def _is_whole(model: AdaptedModel, state: State) -> bool:
    """Say whether the client's adapter is the model's: the only one, of the same ranks, by PEFT's usual name."""
    return model.adapters == ("default",) and all(
        tensor.shape == model.initial[key].shape for key, tensor in state.items()
    )


def _save_product(model: AdaptedModel, state: State, folder: Path) -> None:
    """Write a client's adapters as one LoRA of all their ranks together, with the same s.

    [B₁ B₂]·[A₁; A₂] = B₁A₁ + B₂A₂. Where adapters began with an update that was taken out of the base, that is taken
    off again, by [B, -B₀]·[A; A₀]: what is written goes onto the base as it was before the run.

    Args:
        model: with the adapters in it; it tells PEFT's names.
        state: the client's tensors.
        folder: where to.
    """
    tensors, ranks = {}, {}
    for name, _ in model.model.named_parameters():
        key = key_of(name, trained=False)
        if key is None or key.adapter != model.adapters[0]:
            continue
        value = state[key]
        if key.factor in RANK_DIMENSION:
            parts = [state[key._replace(adapter=adapter)] for adapter in model.adapters]
            if not VARIANTS[model.variant].starts_at_zero:
                parts.append(-model.initial[key] if key.factor is Factor.B else model.initial[key])
            value = torch.cat(parts, dim=RANK_DIMENSION[key.factor])
            ranks[key.module] = value.shape[RANK_DIMENSION[key.factor]]
        tensors[_plain_name(name, key.adapter)] = value.float().contiguous()
    config = _product_config(model, ranks)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(str(folder))


def _plain_name(name: str, adapter: str) -> str:
    """Return a parameter's name in PEFT's files, where the adapter's own name does not stand.

    >>> _plain_name("base_model.model.query.lora_A.default.weight", "default")
    'base_model.model.query.lora_A.weight'
    >>> _plain_name("base_model.model.classifier.modules_to_save.default.bias", "default")
    'base_model.model.classifier.bias'
    """
    saved = f".modules_to_save.{adapter}."
    if saved in name:
        return name.replace(saved, ".")
    before, _, after = name.rpartition(f".{adapter}")
    return before + after


def _product_config(model: AdaptedModel, ranks: Mapping[str, int]) -> Any:
    """Return PEFT's config of an adapter of other ranks, with an alpha that leaves each layer's s as it is."""
    config = copy.deepcopy(model.config)
    alphas = {
        module: model.scaling[module] * (math.sqrt(rank) if config.use_rslora else rank)
        for module, rank in ranks.items()
    }
    (config.r, config.lora_alpha), _ = Counter((ranks[module], alphas[module]) for module in ranks).most_common(1)[0]
    config.rank_pattern = {module: rank for module, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {module: alpha for module, alpha in alphas.items() if alpha != config.lora_alpha}
    config.init_lora_weights, config.inference_mode = True, True
    return config


def _write_config(path: Path, model: AdaptedModel, base: Base) -> None:
    """Write PEFT's config again: in one order (equal states, equal bytes), and with the base as others can load it."""
    config = with_sorted_names(json.loads(path.read_text(encoding="utf-8")))
    if config.get("init_lora_weights") == "lora_xs":  # a name that PEFT does not know: what is written is plain LoRA
        config["init_lora_weights"] = True
    if config["modules_to_save"]:  # PEFT adds the heads again to those that it has read
        config["modules_to_save"] = sorted(set(config["modules_to_save"]))
    config["base_model_name_or_path"], config["revision"] = base.path, base.revision
    if config["task_type"] is None:  # PEFT's AutoPeftModel finds the class of the base by this
        kind = type(model.model.get_base_model())
        config["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def projections(model: AdaptedModel) -> dict[str, Tensor]:
    """Return VeRA's frozen projections in fp32 where the model holds them in bf16: drawn again from their key."""
    if not isinstance(model.config, VeraConfig) or model.precision == "fp32":
        return {}
    generator = torch.Generator("cpu").manual_seed(model.config.projection_prng_key)
    names = ("base_model.vera_A.default", "base_model.vera_B.default")  # PEFT draws them in this order
    return {name: _kaiming_init(tuple(model.model.get_buffer(name).shape), generator) for name in names}
