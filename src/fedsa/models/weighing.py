"""What a method needs that weighs a client's adapters row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fedsa.errors import ModelError

if TYPE_CHECKING:
    from fedsa.models.adapted import AdaptedModel

__all__ = ["representations", "require_weighable"]


def require_weighable(model: nn.Module) -> None:
    """Refuse adapters whose updates cannot be weighed row by row.

    Raises:
        ModelError: they are not of linear layers (but of embeddings, say).
    """
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, LoraLinear):
            raise ModelError(
                f"the method weighs adapters row by row, which goes with linear layers only, and "
                f"{path.removeprefix('base_model.model.')} is {type(module).__name__}: leave it out of "
                "the adapter's layers"
            )


def representations(model: AdaptedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the last hidden state of rows, the mean over each row's tokens; shape (rows, width), float32.

    It is of the model as it is now, without its head.

    Raises:
        ModelError: the model has no hidden state to tell.
    """
    unused = {"labels", *(("attention_mask",) if "pixel_values" in batch else ())}
    inputs = {name: value for name, value in batch.items() if name not in unused}
    base: Any = model.model.get_base_model()
    hidden = getattr(base.base_model(**inputs), "last_hidden_state", None)
    mask = batch["attention_mask"][:, :, None]
    if hidden is None or hidden.shape[:2] != mask.shape[:2]:
        raise ModelError(f"{type(base).__name__} tells no last hidden state of each token")
    mean: Tensor = (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)
    return mean
