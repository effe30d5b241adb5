"""Weights that are one tensor in several layers of a model: an adapter in one of them must not change the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from fedsa.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["untie"]


def untie(base: PreTrainedModel, config: PeftConfig) -> None:
    """Give each layer a tensor of its own, where one of those that share it gets an adapter or is trained in full.

    Merged into one tensor, an update would change every layer that shares it; nobody measured that. The model is then
    one without tied weights, and is saved as such.

    Args:
        base: changed in place.
        config: tells which layers.

    Raises:
        ModelError: one of them is one layer in several places of the model, so that its adapter would be in one alone.
    """
    for places in _shared(base):
        wanted = [path for path, _, name in places if _is_wanted(config, path, name)]
        if not wanted:
            continue
        if len({id(layer) for _, layer, _ in places}) < len(places):
            others = ", ".join(path for path, _, _ in places if path != wanted[0])
            raise ModelError(
                f"adapter.target_modules: {wanted[0]} is one layer with {others}, and an adapter would be in one of "
                "them alone: leave it out"
            )
        for _, layer, name in places[1:]:
            tensor: Any = getattr(layer, name)
            setattr(layer, name, nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
        for settings in {id(each): each for each in (base.config, base.config.get_text_config())}.values():
            settings.tie_word_embeddings = False
        base.all_tied_weights_keys = {}


def _shared(base: nn.Module) -> list[list[tuple[str, nn.Module, str]]]:
    """Return the places of each weight that is in several: path of the layer, the layer, the weight's name there."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, layer in base.named_modules(remove_duplicate=False):
        for name, tensor in layer.named_parameters(recurse=False):
            places.setdefault(id(tensor), []).append((path, layer, name))
    return [found for found in places.values() if len(found) > 1]


def _is_wanted(config: Any, path: str, name: str) -> bool:
    """Say whether a layer gets an adapter (or its parameter of that name does), or is trained in full."""
    in_full, parameters = config.modules_to_save or (), getattr(config, "target_parameters", None) or ()
    if any(f".{path}.{name}".endswith(f".{parameter}") for parameter in parameters):
        return True
    if any(f".{path}.".endswith(f".{name}.") or f".{name}." in f".{path}." for name in in_full):
        return True
    if config.target_modules in (None, "all-linear"):  # PEFT takes no embeddings and no vocabulary by itself
        return False
    return bool(check_target_module_exists(config, path))
