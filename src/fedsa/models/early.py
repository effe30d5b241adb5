"""What can be told of a model before its weights are fetched or any rows are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from fedsa.errors import MissingExtraError, ModelError
from fedsa.models.configs import check_names, peft_config_of
from fedsa.models.described import described
from fedsa.models.loading import location_of, quiet
from fedsa.models.opening import own_code
from fedsa.packages.parts import PARTS, PREFIX, is_cached
from fedsa.recipe import AdapterSettings, ModelSettings

__all__ = ["check_layer_names", "check_model_extras"]

_READERS = {".gguf": ("gguf", "gguf"), ".onnx": ("onnx", "vision")}
"""Files of packaged models: the package that reads them, and the extra that brings it."""


def check_model_extras(settings: ModelSettings, *, takes_images: bool) -> None:
    """Refuse a model that needs a package which is not installed.

    Raises:
        MissingExtraError: which extra brings it.
    """
    needed = (
        [("bitsandbytes", "bnb", f"model.quantization = {settings.quantization!r}")] if settings.quantization else []
    )
    if takes_images:
        needed.append(("PIL", "vision", "a task of images"))
    part = PARTS.get(settings.path.removeprefix(PREFIX)) if settings.path.startswith(PREFIX) else None
    for member in part.members if part and not is_cached(part.name) else ():
        if Path(member).suffix in _READERS:
            package, extra = _READERS[Path(member).suffix]
            needed.append((package, extra, f"model.path = {settings.path!r}"))
    for package, extra, what in needed:
        if find_spec(package) is None:
            raise MissingExtraError(what, extra)


def check_layer_names(
    settings: ModelSettings, adapter: AdapterSettings, *, auto_model: str, options: Mapping[str, Any]
) -> None:
    """Refuse names of layers that a model does not have, where its config is here: it is made without values.

    A model that is not here, or that cannot be made of its config alone, is not looked at: loading it tells the rest.

    Args:
        settings: the base model.
        adapter: as the recipe describes it.
        auto_model: the transformers class that would load the base.
        options: what its config must know of the task.

    Raises:
        ModelError: with every such name.
    """
    if adapter.target_modules is None and adapter.modules_to_save is None:
        return
    base = _base_of_what_is_here(settings, auto_model, options)
    if base is None:
        return
    check_names(base, peft_config_of(adapter, task_type=None, seed=0))
    pattern = adapter.target_modules
    if not isinstance(pattern, str) or pattern == "all-linear":
        return
    try:
        found = any(re.fullmatch(pattern, name) for name, _ in base.named_modules())
    except re.error as error:
        raise ModelError(f"adapter.target_modules = {pattern!r} is no regular expression: {error}") from None
    if not found:
        raise ModelError(
            f"adapter.target_modules = {pattern!r}: no layer's whole name matches this regular expression; "
            f"for layers by their endings give a list, [{pattern!r}]"
        )


def _base_of_what_is_here(
    settings: ModelSettings, auto_model: str, options: Mapping[str, Any]
) -> transformers.PreTrainedModel | None:
    make = getattr(transformers, auto_model).from_config
    path = settings.path
    if path.startswith(PREFIX) and not is_cached(path.removeprefix(PREFIX)):
        return None
    try:
        with quiet():
            if settings.config is not None:
                config = described(settings.config, options)
            else:
                config = transformers.AutoConfig.from_pretrained(
                    location_of(path, None),
                    revision=settings.revision or "main",
                    local_files_only=True,
                    **own_code(),
                    **options,
                )
            with torch.device("meta"):
                base: transformers.PreTrainedModel = make(config, **own_code())
    except Exception:  # whatever is wrong with it, loading the model tells it better
        return None
    return base
