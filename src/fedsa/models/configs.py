"""PEFT's description of an adapter: made of a recipe's settings, checked, and changed where a method asks for it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig, VeraConfig
from torch import nn

from fedsa.errors import ModelError, near
from fedsa.models.base import HEADS
from fedsa.models.from_weights import STARTS
from fedsa.models.loading import quiet
from fedsa.recipe import AdapterSettings

__all__ = [
    "check_names",
    "peft_config_of",
    "read_peft_config",
    "scaled",
    "variant_of",
    "with_drawn_layers",
    "with_sorted_names",
]


def with_drawn_layers(config: PeftConfig, drawn: set[str], base: nn.Module) -> PeftConfig:
    """Return a copy of the config that also trains the layers which the checkpoint did not have.

    PEFT finds a head by the kind of task. Where the config names none, the base's head is named here.
    """
    copied: Any = copy.deepcopy(config)
    if copied.task_type is None:
        drawn = drawn | HEADS & {name for name, _ in base.named_children()}
    if drawn:
        copied.modules_to_save = sorted({*(copied.modules_to_save or ()), *drawn})
    result: PeftConfig = copied
    return result


def with_sorted_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return PEFT's JSON with its lists of names sorted: it writes sets, in an order that differs from run to run."""
    lists = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")
    return {
        name: sorted(value) if name in lists and isinstance(value, list) else value for name, value in config.items()
    }


def read_peft_config(table: Mapping[str, Any]) -> PeftConfig:
    """The PEFT config that a table in PEFT's own form describes, ready to be trained.

    Raises:
        ModelError: PEFT cannot make one of it.
    """
    try:
        with quiet():
            made: Any = PeftConfig  # its own function is not annotated
            config: PeftConfig = made.from_peft_type(**copy.deepcopy(table))  # PEFT adds to the lists of its configs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the agreement's adapter.config is none of this version of PEFT: {error}") from None
    config.inference_mode = False
    return config


def peft_config_of(settings: AdapterSettings, *, task_type: str | None, seed: int) -> PeftConfig:
    """Return the PEFT config that a recipe's adapter section describes.

    Args:
        settings: the section.
        task_type: PEFT's, e.g. ``SEQ_CLS``; None: it has none for the task.
        seed: VeRA's frozen projections are drawn from it.
    """
    common: dict[str, Any] = {"target_modules": settings.target_modules, "task_type": task_type}
    if settings.modules_to_save is not None:
        common["modules_to_save"] = list(settings.modules_to_save)
    if settings.variant == "ia3":
        inner = settings.feedforward_modules
        if inner is None and settings.target_modules is not None:
            inner = []
        return IA3Config(**common, feedforward_modules=inner)
    common["r"] = settings.rank
    if settings.variant == "vera":
        return VeraConfig(
            **common, vera_dropout=settings.dropout, projection_prng_key=seed % 2**31, save_projection=True
        )
    if settings.variant == "loha":
        return LoHaConfig(**common, alpha=settings.lora_alpha)
    if settings.variant in STARTS:
        common["init_lora_weights"] = settings.variant
    return LoraConfig(
        **common,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
    )


def variant_of(config: PeftConfig) -> str:
    """Return the adapter variant of a PEFT config.

    Raises:
        ModelError: fedsa cannot federate it; the reason is given.
    """
    if isinstance(config, VeraConfig):
        variant = "vera"
    elif isinstance(config, LoraConfig):
        variant = _lora_variant_of(config)
    elif isinstance(config, LoHaConfig):
        variant = "loha"
        for name in ("rank_dropout", "module_dropout"):
            if getattr(config, name):
                raise ModelError(
                    f"{name} = {getattr(config, name)!r} is not supported: PEFT draws it from one stream for all "
                    "clients; use 0"
                )
    elif isinstance(config, IA3Config):
        variant = "ia3"
        if (config.target_modules is None) is not (config.feedforward_modules is None):
            raise ModelError(
                "target_modules and feedforward_modules go together: give both (the second: those of the first whose "
                "input is scaled, not their output; [] for none), or neither for PEFT's choice"
            )
    else:
        raise ModelError(
            f"adapter type {getattr(config.peft_type, 'value', config.peft_type)!r} is not supported; "
            "supported: LORA (also with use_rslora, use_dora or init_lora_weights 'pissa', 'olora' or 'lora_xs'), "
            "VERA, LOHA and IA3"
        )
    _refuse_unknown(config)
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise ModelError(f"bias = {bias!r} is not supported: it trains biases of the shared base model; use 'none'")
    return variant


_KNOWN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "alpha", "lora_alpha", "lora_dropout", "vera_dropout", "fan_in_fan_out", "bias"),
    *("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("init_lora_weights", "init_weights", "init_ia3_weights", "projection_prng_key", "save_projection", "d_initial"),
    *("rank_dropout", "module_dropout", "use_effective_conv2d"),
}
"""The settings of PEFT's configs that are federated as they are. Others change what an update is, or name code."""


def _refuse_unknown(config: PeftConfig) -> None:
    """Refuse a setting of PEFT's config that is not known here, and not at its default.

    Raises:
        ModelError: with its name.
    """
    usual = type(config)()
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.name not in _KNOWN and value and value != getattr(usual, each.name):
            raise ModelError(f"{each.name} is not supported in the adapter's PEFT config: leave it out")


def _lora_variant_of(config: LoraConfig) -> str:
    """Return the variant of a LoRA config. What scales it, ``use_rslora`` too, goes with each of them."""
    start = config.init_lora_weights
    if start not in (True, "gaussian", *STARTS):
        known = ", ".join(map(repr, ("gaussian", *STARTS)))
        raise ModelError(f"init_lora_weights = {start!r} is not supported; use True or one of {known}")
    if start in STARTS and config.use_dora:
        raise ModelError(f"init_lora_weights = {start!r} does not go with use_dora = True: leave one of them out")
    if start in STARTS:
        return str(start)
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"


def scaled(config: PeftConfig, scaling: Callable[[float, int], float] | None) -> PeftConfig:
    """Return the config with the alpha that makes s what ``scaling`` says, so that PEFT computes it by itself.

    Raises:
        ModelError: layers have ranks or alphas of their own.
    """
    if scaling is None or not isinstance(config, LoraConfig):
        return config
    divisor = math.sqrt(config.r) if config.use_rslora else config.r
    own = config.lora_alpha / divisor
    wanted = scaling(own, config.r)
    if wanted == own:
        return config
    if config.rank_pattern or config.alpha_pattern:
        raise ModelError("the method sets the adapter's scale itself: rank_pattern and alpha_pattern do not go with it")
    copied: Any = copy.deepcopy(config)
    copied.lora_alpha = wanted * divisor
    result: PeftConfig = copied
    return result


def check_names(base: nn.Module, config: PeftConfig) -> None:
    """Refuse a name that matches no layer: PEFT itself only complains when none of the targets matches."""
    known = [name for name, _ in base.named_modules() if name]
    leaves = [name for name, module in base.named_modules() if not list(module.children())]
    linears = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d)]
    linear = {name.rpartition(".")[2] for name in linears}
    tops = {name.partition(".")[0] for name in known} | linear
    problems = []
    for field, places, suggested in (("target_modules", leaves, linear), ("modules_to_save", known, tops)):
        names = getattr(config, field, None)
        for wanted in [] if names is None or isinstance(names, str) else sorted(names):
            by_itself = field == "modules_to_save" and wanted in HEADS  # PEFT adds these, there or not
            if not by_itself and not any(f".{name}".endswith(f".{wanted}") for name in places):
                problems.append(f"adapter.{field}: the model has no layer {wanted!r}; {near(wanted, suggested)}")
    if problems:
        raise ModelError("\n".join(problems))
