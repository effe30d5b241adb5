"""The base model of a federation, and what comes with it: loaded by name, or taken as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from fedsa.adapters.factors import key_of
from fedsa.errors import ModelError
from fedsa.models import load_base, load_image_processor, load_tokenizer, resolve_compute, with_image_size
from fedsa.recipe import ComputeSettings, ModelSettings
from fedsa.seeds import derive_seed
from fedsa.tasks.base import Task
from fedsa.tasks.chat import with_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fresh_base", "load_named_base", "load_processor", "own_copy", "refuse_adapted"]


def load_named_base(
    settings: ModelSettings,
    compute: ComputeSettings,
    seed: int,
    task: Task,
    tell: Callable[[str], None],
    notes: list[str] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """The base model that a recipe names, and the names of its layers that the checkpoint does not have.

    Args:
        settings: the recipe's ``[model]``.
        compute: its ``[compute]``.
        seed: of the run.
        task: decides the model's class and head.
        tell: told what is fetched.
        notes: added to where a user should know something of the model.

    Raises:
        UserError: the model cannot be loaded.
    """
    return load_base(
        settings,
        auto_model=task.auto_model,
        options=task.model_options(),
        seed=derive_seed(seed, "init"),
        compute=resolve_compute(compute),
        on_progress=tell,
        notes=notes,
    )


def load_processor(settings: ModelSettings, task: Task, image_size: int | None = None) -> Any:
    """Load a base model's tokenizer, or its image processor; for conversations the tokenizer has a chat template.

    Args:
        settings: the recipe's ``[model]``.
        task: says whether rows are images.
        image_size: of images, pixels of the side; None: what the model's own processor says.

    Raises:
        ModelError: there is none.
    """
    if task.takes_images:
        return with_image_size(load_image_processor(settings), image_size)
    tokenizer = load_tokenizer(settings)
    return with_template(tokenizer) if task.chats else tokenizer


def fresh_base(model: PreTrainedModel) -> PreTrainedModel:
    """Return a loaded model, ready to be adapted: the same object, in fp32 and in evaluation mode.

    Raises:
        ModelError: it has an adapter already, or is quantised.
    """
    refuse_adapted(model)
    try:
        model.float()
    except ValueError as error:  # transformers refuses it for a quantised model
        raise ModelError(f"the model cannot be cast to fp32: {error}; load it unquantised") from None
    model.eval()
    return model


def own_copy(base: PreTrainedModel | Callable[[], PreTrainedModel] | None) -> PreTrainedModel | None:
    """Return a base model that is nobody else's, of a loaded one or of a function that loads it; None: of none."""
    if base is None:
        return None
    made: Any = copy.deepcopy(base) if isinstance(base, nn.Module) else base()  # a model can be called too
    return cast("PreTrainedModel", made)


def refuse_adapted(model: PreTrainedModel) -> None:
    """Refuse a model that has an adapter.

    Raises:
        ModelError: it has one already.
    """
    names = (name for name, _ in model.named_parameters())
    if hasattr(model, "peft_config") or any(key_of(name, trained=False) for name in names):
        raise ModelError("the model has an adapter already: load it afresh for each federation")
