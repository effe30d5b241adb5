"""Models that a recipe describes by a table of their config (``model.config``)."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import transformers

from fedsa.errors import ModelError
from fedsa.models.loading import quiet
from fedsa.recipe import ModelSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["bad_config", "check_sizes", "described"]


def described(table: Mapping[str, Any], options: Mapping[str, Any]) -> PretrainedConfig:
    """Return the transformers config that a recipe's ``model.config`` describes.

    Raises:
        ModelError: transformers knows no such model, or does not take these values.
    """
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    name = table["model_type"]
    if name not in known:
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "take it from the config.json of a model of that kind"
        raise ModelError(f"model.config: transformers has no model_type {name!r}; {hint}")
    try:
        with quiet():
            config: PretrainedConfig = transformers.AutoConfig.for_model(**{**table, **options})
    except Exception as error:  # each model's config checks its values in its own way
        raise bad_config(error) from error
    fields = {*type(config)().to_dict(), *config.attribute_map}
    for key in sorted(set(table) - fields):  # transformers takes any key; old names among them must go through
        close = difflib.get_close_matches(key, fields, n=1, cutoff=0.85)
        if close:
            raise ModelError(f"model.config.{key}: a {name} has no such setting; did you mean {close[0]!r}?")
    return config


def bad_config(error: Exception) -> ModelError:
    """The error where transformers cannot make a model of a recipe's table."""
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
    return ModelError(f"model.config: transformers cannot make a model of it: {text}")


def check_sizes(settings: ModelSettings, expected: PretrainedConfig, loaded: PretrainedConfig) -> None:
    """Refuse weights whose sizes (whole numbers) are not those that the recipe gives."""
    sizes = [key for key, value in (settings.config or {}).items() if type(value) is int and key != "num_labels"]
    wrong = [
        f"{key} = {getattr(expected, key)!r} (the weights have {getattr(loaded, key, None)!r})"
        for key in ("model_type", *sizes)
        if getattr(expected, key) != getattr(loaded, key, None)
    ]
    if wrong:
        raise ModelError(
            f"model.config does not fit the weights of {settings.path!r}: {', '.join(wrong)}; correct it, or leave "
            "model.config out"
        )
