"""Image processors of base models, and how many tokens a model makes of an image."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import transformers

from fedsa.errors import ModelError
from fedsa.models.loading import location_of, not_loadable, quiet
from fedsa.models.opening import own_code
from fedsa.recipe import ModelSettings
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

__all__ = ["image_side", "image_tokens", "load_image_processor", "with_image_size"]


def load_image_processor(settings: ModelSettings, *, on_progress: Callable[[str], None] | None = None) -> Any:
    """Return the base model's image processor: the one that works with Pillow, so that all machines do the same.

    Raises:
        ModelError: there is none.
    """
    location = location_of(settings.path, on_progress)
    try:
        with quiet():
            return transformers.AutoImageProcessor.from_pretrained(
                location, revision=settings.revision or "main", backend="pil", **own_code()
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise not_loadable(settings, error, "image processor") from error


def with_image_size(processor: Any, side: int | None) -> Any:
    """Return a copy of an image processor whose images have a side of so many pixels.

    Where it cuts out the middle of an image, the image around it is scaled with it.

    Args:
        processor: transformers'.
        side: in pixels; None: as it is.
    """
    made = copy.deepcopy(processor)
    if side is None:
        return made
    square = {"height": side, "width": side}
    if getattr(made, "do_center_crop", None):
        scale = side / dict(made.crop_size)["height"]
        made.size = type(made.size)(
            **{name: round(value * scale) for name, value in dict(made.size).items() if value is not None}
        )
        made.crop_size = type(made.crop_size)(**square)
    else:
        made.size = type(made.size)(**square)
    return made


def image_side(processor: Any) -> int:
    """Return the side in pixels of the images that a processor makes.

    Raises:
        ModelError: they are not square, or of one size.
    """
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    height, width = (dict(size).get(name) for name in ("height", "width"))
    if height is None or height != width:
        raise ModelError(
            f"the model's image processor makes images of size {dict(size)}, and here they must be square and of one "
            "size: set task.image_size"
        )
    return int(height)


@torch.no_grad()
def image_tokens(model: PreTrainedModel, side: int) -> int:
    """Return how many tokens a model's layers have for an image, what stands beside the patches included.

    One image is passed through it, which on the device ``meta`` costs nothing. A model whose last layer does not have a
    vector for each token counts as one with a single token.

    Args:
        model: the base model.
        side: of the image in pixels.

    Raises:
        ModelError: the model does not take such images.
    """
    channels = getattr(model.config, "num_channels", 3)
    if channels != 3:
        raise ModelError(f"{type(model).__name__} takes images of {counted(channels, 'channel')}, and these have 3")
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device)
    try:
        hidden = getattr(model.base_model(pixel_values=image), "last_hidden_state", None)
    except AttributeError as error:  # a model asks its layer for what an adapter around it does not have
        raise ModelError(
            f"{type(model).__name__} does not work with an adapter in these layers ({error}): name others in "
            "adapter.target_modules"
        ) from error
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} does not take images of {side} × {side} pixels ({str(error).splitlines()[0]}): "
            "mend task.image_size, or leave it out"
        ) from error
    return int(hidden.shape[1]) if hidden is not None and hidden.dim() == 3 else 1
