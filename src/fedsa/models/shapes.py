"""Adapted models without values: for counting what a run takes before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor

from fedsa.errors import ModelError, UserError
from fedsa.models.base import drawn_layers, layers_outside_the_base
from fedsa.models.configs import peft_config_of, with_drawn_layers
from fedsa.models.deltas import empty_deltas
from fedsa.models.described import bad_config, described
from fedsa.models.dropout import Streams
from fedsa.models.gates import with_gates
from fedsa.models.images import image_tokens
from fedsa.models.insertion import by_key, with_adapter, with_further_adapters
from fedsa.models.loading import location_of, not_loadable, quiet
from fedsa.models.opening import check_files, no_pickle, own_code
from fedsa.models.stacked import obstacles
from fedsa.models.tokenizers import positions_of
from fedsa.recipe import AdapterSettings, ModelSettings
from fedsa.types import Gating, Key

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["EmptyModel", "empty_base", "empty_model"]


@final
@dataclass(frozen=True)
class EmptyModel:
    """An adapted model without values, on the device ``meta``: its tensors have shapes and types only.

    Attributes:
        model: the PEFT model.
        parameters: those of the adapters and the head, in the model's order, and what is added to the frozen weights.
        longest: the most tokens that the model takes in one row; None: its config names no limit. Of a model that takes
            images, the tokens of each.
        side: of the images in pixels; None: it takes none.
    """

    model: PeftModel
    parameters: Mapping[Key, Tensor]
    longest: int | None
    side: int | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every tensor of the adapters, the head and what is added to the frozen weights, in the model's order."""
        return tuple(self.parameters)

    def obstacles(self) -> list[str]:
        """Return why many clients cannot go through this model at once, as far as it shows without values."""
        return obstacles(self.model)


def empty_model(
    settings: ModelSettings,
    adapter: AdapterSettings,
    *,
    auto_model: str,
    options: Mapping[str, Any],
    task_type: str | None,
    adapters: Sequence[str] = ("default",),
    folds: bool = False,
    gated: Gating | None = None,
    takes_images: bool = False,
    image_size: int | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> EmptyModel:
    """Return an adapted model without its weights, for counting.

    It is made of ``settings.config``, else of the config at ``settings.path``: of a model on the hub that alone is
    fetched. Of a local checkpoint the header tells which layers it lacks, so that they are trained; elsewhere they are
    taken to be those outside the base.

    Args:
        settings: the base model.
        adapter: as the recipe describes it.
        auto_model: the transformers class that would load the base.
        options: what its config must know of the task.
        task_type: PEFT's, e.g. ``SEQ_CLS``.
        adapters: their names.
        folds: the server adds to the frozen weights.
        gated: each layer has a gate that weighs the adapters, in this way.
        takes_images: the task's rows are images.
        image_size: of them, pixels of the side; None: what the model's config says.
        on_progress: told what is fetched.

    Raises:
        ModelError: there is no such model, transformers cannot make one of its config, or the adapter does not fit.
    """
    base, drawn = _empty_base(settings, auto_model, options, on_progress)
    side = (image_size or _side_of(base.config)) if takes_images else None
    longest = positions_of(base) if side is None else image_tokens(base, side)
    config = with_drawn_layers(peft_config_of(adapter, task_type=task_type, seed=0), drawn, base)
    with torch.device("meta"):
        model = with_adapter(base, config, adapters[0])
        with_further_adapters(model, adapters, seed=0)
        if gated:
            with_gates(model, gated, tuple(adapters), Streams(), seed=0)
    deltas = empty_deltas(model) if folds else {}
    return EmptyModel(model, {**by_key(model), **deltas}, longest, side)


def empty_base(
    settings: ModelSettings,
    *,
    auto_model: str,
    options: Mapping[str, Any],
    on_progress: Callable[[str], None] | None = None,
) -> PreTrainedModel:
    """Return a base model without its weights, on the device ``meta``: its config tells what it takes.

    Args:
        settings: where it is.
        auto_model: the transformers class that would load it.
        options: what its config must know of the task.
        on_progress: told what is fetched.

    Raises:
        ModelError: there is no such model, or transformers cannot make one of its config.
    """
    return _empty_base(settings, auto_model, options, on_progress)[0]


def _side_of(config: PretrainedConfig) -> int:
    """Return the side of the images that a model's config names.

    Raises:
        ModelError: it names none, or they are not square.
    """
    size = getattr(config, "image_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop()
    if sides or not isinstance(side, int):
        raise ModelError(f"the model's config says image_size = {size!r}, no side of a square: set task.image_size")
    return side


def _empty_base(
    settings: ModelSettings, auto_model: str, options: Mapping[str, Any], on_progress: Callable[[str], None] | None
) -> tuple[PreTrainedModel, set[str]]:
    # The flash kernel may be missing on the machine that plans; sdpa computes the same.
    attention = "sdpa" if settings.attn_implementation == "flash_attention_2" else settings.attn_implementation
    extra = {"dtype": torch.float32} | ({"attn_implementation": attention} if attention else {})
    make = getattr(transformers, auto_model).from_config
    if settings.config is not None:
        config = described(settings.config, options)
        try:
            with quiet(), torch.device("meta"):
                base = make(config, **extra)
        except Exception as error:  # whatever a model's own code says to sizes that it was not written for
            raise bad_config(error) from error
        missing = layers_outside_the_base(base)
    else:
        location = location_of(settings.path, on_progress)
        check_files(settings.path, location, settings.revision)
        try:
            with quiet(), no_pickle(settings.path):
                config = transformers.AutoConfig.from_pretrained(
                    location, revision=settings.revision or "main", **own_code(), **options
                )
                with torch.device("meta"):
                    base = make(config, **own_code(), **extra)
                missing = layers_outside_the_base(base)
                header = _header(Path(location))
                if header:  # transformers knows a checkpoint's names by many rules: it is asked, with empty tensors
                    base, report = type(base).from_pretrained(
                        None, config=config, state_dict=header, device_map="meta", output_loading_info=True, **extra
                    )
                    missing = drawn_layers(settings, base, report["missing_keys"])
        except UserError:
            raise
        except Exception as error:  # whatever a model's own code says to files that it was not written for
            raise not_loadable(settings, error) from error
    # fit_padding would take it from the tokenizer; any number does for counting
    if getattr(base.config, "pad_token_id", None) is None:
        base.config.pad_token_id = 0
    return base, missing


def _header(folder: Path) -> dict[str, Tensor]:
    """Return a local checkpoint's tensors without their values; nothing where there is no checkpoint."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    files = [single] if single.is_file() else []
    if not files and index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    tensors = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensors[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
    return tensors
