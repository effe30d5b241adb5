"""Adapters' layers are put into a base model."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil
from peft import PeftConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsa.adapters.factors import key_of
from fedsa.errors import ModelError
from fedsa.models.base import HEADS
from fedsa.models.configs import check_names
from fedsa.models.dropout import AdapterDropout, Streams
from fedsa.models.from_weights import STARTS
from fedsa.models.loading import quiet
from fedsa.models.loha import without_coins
from fedsa.models.lora_xs import with_middles
from fedsa.models.tied import untie
from fedsa.seeds import derive_seed, seed_torch
from fedsa.types import Key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["by_key", "use_own_dropout", "with_adapter", "with_further_adapters"]


def with_adapter(base: PreTrainedModel, config: PeftConfig, name: str = "default") -> PeftModel:
    """Put an adapter into a base model. One that starts from the base weights does not do so here.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    check_names(base, config)
    plain: Any = config
    if str(plain.target_modules).lower() == "all-linear":
        plain = copy.copy(plain)
        plain.target_modules = _linear_layers(base, plain)
    start = getattr(config, "init_lora_weights", True)
    if start in STARTS:
        plain = copy.copy(plain)
        plain.init_lora_weights = True
    try:
        _check_size(base, plain)
        untie(base, plain)
        with quiet():
            model: PeftModel = get_peft_model(base, plain, adapter_name=name)
    except (ValueError, TypeError, RuntimeError, OverflowError, re.error) as error:
        targets = f"adapter.target_modules = {getattr(config, 'target_modules', None)!r}"
        raise ModelError(f"the adapter does not fit the model: {targets}: {error}") from error
    if start in STARTS:
        plain.init_lora_weights = start
    if start == "lora_xs":
        with_middles(model, name)
    without_coins(model)
    return model


def with_further_adapters(model: PeftModel, names: Sequence[str], seed: int) -> None:
    """Put more adapters like the first into a model; the updates of all are added. The head stays the first one's.

    Args:
        model: with an adapter of the first name.
        names: of all adapters.
        seed: the initial values of each are drawn from it.
    """
    for name in names[1:]:
        config: Any = copy.deepcopy(model.peft_config[names[0]])
        config.modules_to_save = None
        start = getattr(config, "init_lora_weights", True)
        if start in STARTS:  # the base is taken apart once
            config.init_lora_weights = True
        seed_torch(derive_seed(seed, "adapter", name))
        with quiet():
            PeftModel.add_adapter(model, name, config)  # the class's own: that of a classifier gives each a head
        if start == "lora_xs":
            with_middles(model, name)
    if len(names) > 1:
        model.base_model.set_adapter(list(names))  # type: ignore[operator]


def use_own_dropout(model: nn.Module, streams: Streams, adapters: Sequence[str]) -> None:
    """Put dropout with a stream for each client in the place of PEFT's, and gates in front of what they weigh."""
    for module in model.modules():
        for name in ("lora_dropout", "vera_dropout"):
            table = getattr(module, name, None) if isinstance(module, BaseTunerLayer) else None
            if isinstance(table, nn.ModuleDict):
                for adapter, dropout in table.items():
                    table[adapter] = own = AdapterDropout(float(getattr(dropout, "p", 0.0)), streams, adapter)
                    gate = getattr(module, "fedsa_gate", None)
                    own.gate = (gate, adapters.index(adapter)) if gate is not None else None


def by_key(model: PeftModel) -> dict[Key, nn.Parameter]:
    """Return the parameters of the adapter and the head, in the model's order."""
    parameters = {}
    for name, parameter in model.named_parameters():
        key = key_of(name, trained=parameter.requires_grad)
        if key is not None:
            parameters[key] = parameter
    return parameters


def _check_size(base: nn.Module, config: Any) -> None:
    """Refuse a rank whose tensors would not fit into memory, before they are made.

    Raises:
        ModelError: with what they would take.
    """
    rank = max([getattr(config, "r", 0), *(getattr(config, "rank_pattern", None) or {}).values()])
    named = config.target_modules not in (None, "all-linear")
    layers = [
        layer.weight
        for path, layer in base.named_modules()
        if (check_target_module_exists(config, path) if named else isinstance(layer, nn.Linear))
        and isinstance(getattr(layer, "weight", None), Tensor)
    ]
    numbers = rank * sum(sum(weight.shape[:2]) for weight in layers)
    if isinstance(config, VeraConfig) and layers:  # one pair of projections for all layers
        numbers = rank * max(sum(weight.shape[:2]) for weight in layers)
    free = psutil.virtual_memory().available
    if not any(weight.is_meta for weight in layers) and _COPIES * 4 * numbers > free:
        raise ModelError(
            f"adapter.r = {rank}: the adapter's tensors would take {4 * numbers / 2**30:,.0f} GiB, {_COPIES} copies of "
            f"them are needed, and {free / 2**30:,.1f} GiB of memory are free: take a smaller r"
        )


_COPIES = 3
"""Of an adapter's tensors in memory at least: the model's, the initial ones, the server's."""


def _linear_layers(base: PreTrainedModel, config: PeftConfig) -> set[str]:
    """Return the linear layers that ``all-linear`` stands for: all but the output layer, and what is trained in full.

    PEFT leaves out the head of a sequence classifier alone; a head that it also trains in full, it then refuses.
    """
    full = {*HEADS, *(getattr(config, "modules_to_save", None) or ())}
    vocabulary = base.get_output_embeddings()
    return {
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and layer is not vocabulary
        and not any(name == each or f".{each}." in f".{name}." for each in full)
    }
