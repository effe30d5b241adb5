"""Base models: loading one, and its layers that the checkpoint does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers

from fedsa.errors import ModelError, UserError
from fedsa.models.class_order import names_of, turn_head
from fedsa.models.described import check_sizes, described
from fedsa.models.loading import location_of, not_loadable, quiet
from fedsa.models.opening import check_files, no_pickle, own_code
from fedsa.models.quantized import HEADS, quantized, settle
from fedsa.recipe import ComputeSettings, ModelSettings
from fedsa.seeds import seed_torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["HEADS", "drawn_layers", "layers_outside_the_base", "load_base"]


def load_base(
    settings: ModelSettings,
    *,
    auto_model: str,
    options: Mapping[str, Any],
    seed: int,
    compute: ComputeSettings | None = None,
    on_progress: Callable[[str], None] | None = None,
    notes: list[str] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Return the base model in fp32 on the CPU, in evaluation mode, and its layers that the checkpoint does not have.

    Such layers (a new head, a pooler) have random values, so they must be trained and go with the adapter.

    With ``settings.quantization`` and ``compute`` its linear layers are of 4 or 8 bits, and it is where it computes.

    Args:
        settings: where it is.
        auto_model: the transformers class that loads it.
        options: what its config must know of the task.
        seed: of the head's initial values, where the checkpoint has no head.
        compute: without ``auto``; needed for ``settings.quantization``. None: the base in full.
        on_progress: told what is fetched.
        notes: added to where a user should know something of the model.

    Raises:
        ModelError: there is no such model, transformers cannot load it for this task, or it must not be opened.
        MissingExtraError: what quantises is not installed.
    """
    expected = None if settings.config is None else described(settings.config, options)
    location = location_of(settings.path, on_progress)
    check_files(settings.path, location, settings.revision)
    extra: dict[str, Any] = (
        {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    )
    if settings.quantization and compute is not None:
        extra |= quantized(settings.quantization, compute)
    seed_torch(seed)
    try:
        with quiet(), no_pickle(settings.path):
            loaded: tuple[PreTrainedModel, dict[str, Any]] = getattr(transformers, auto_model).from_pretrained(
                location,
                revision=settings.revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **own_code(),
                **options,
                **extra,
            )
    except UserError:
        raise
    except Exception as error:  # whatever a model's own code says to files that it was not written for
        raise not_loadable(settings, error) from error
    model, report = loaded
    if expected is not None:
        check_sizes(settings, expected, model.config)
    model.eval()
    settle(model)
    drawn = drawn_layers(settings, model, report["missing_keys"])
    _refuse_few_bits(settings, model, drawn)
    if "id2label" in options and not _lacks_head(model, report["missing_keys"]):
        known = names_of(_config(settings, location))
        told = turn_head(model, known, list(options["id2label"].values()))
        if told and notes is not None:
            notes.append(told)
    return model, drawn


def _lacks_head(model: PreTrainedModel, missing: Iterable[str]) -> bool:
    """Whether a checkpoint lacks something outside the base, so that the head has random values."""
    return any(not name.startswith(f"{model.base_model_prefix}.") for name in missing)


def _config(settings: ModelSettings, location: str) -> PretrainedConfig:
    """Return a checkpoint's config as it is, without what the task says."""
    with quiet():
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            location, revision=settings.revision or "main", **own_code()
        )
    return config


def drawn_layers(settings: ModelSettings, model: PreTrainedModel, missing: Iterable[str]) -> set[str]:
    """Return the layers that a checkpoint does not have, but for the head.

    Raises:
        ModelError: it lacks too much to be one of this model.
    """
    drawn = {name.rpartition(".")[0] for name in missing}
    layers = {name for name, module in model.named_modules() if name and not list(module.children())}
    if len(drawn) > max(4, len(layers) // 10) or drawn - layers:
        raise ModelError(
            f"model.path = {settings.path!r}: the checkpoint lacks more of {type(model).__name__} than a head or a "
            f"pooler ({', '.join(sorted(missing)[:3])}, ...): take one of this architecture"
        )
    return {name for name in drawn if not HEADS & set(name.split("."))}


def _refuse_few_bits(settings: ModelSettings, model: PreTrainedModel, drawn: Iterable[str]) -> None:
    """Refuse a model whose layers that are to be trained in full are of few bits.

    Raises:
        ModelError: with their names.
    """
    names = [name for name in sorted(drawn) if type(model.get_submodule(name)).__module__.startswith("bitsandbytes.")]
    if names:
        raise ModelError(
            f"model.quantization = {settings.quantization!r}: the checkpoint of {settings.path!r} lacks "
            f"{', '.join(names)}, which would be trained in 4 or 8 bits: use a checkpoint that has them, or remove "
            "model.quantization"
        )


def layers_outside_the_base(model: PreTrainedModel) -> set[str]:
    """Return a model's layers outside its base, which its checkpoint may lack; PEFT finds the usual heads by itself."""
    prefix = model.base_model_prefix
    if not prefix or not hasattr(model, prefix):
        return set()
    vocabulary = model.get_output_embeddings()  # a decoder's: it has been trained with the base
    return {
        name
        for name, layer in model.named_modules()
        if name != prefix
        and layer is not vocabulary
        and not name.startswith(f"{prefix}.")
        and not list(layer.children())
        and any(True for _ in layer.parameters())
        and not HEADS & set(name.split("."))
    }
