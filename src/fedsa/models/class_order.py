"""The order of classes in a checkpoint's head, which need not be that of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedsa.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["names_of", "turn_head"]

_UNNAMED = re.compile(r"LABEL_\d+")
_TOLD = 10


def names_of(config: Any) -> list[str]:
    """Return the names of the classes that a model's config has, in order; empty where it has none of its own."""
    table = getattr(config, "id2label", None)
    if not isinstance(table, Mapping) or sorted(map(str, table)) != sorted(map(str, range(len(table)))):
        return []
    by_number = {int(number): str(name) for number, name in table.items()}
    names = [by_number[number] for number in range(len(by_number))]
    return [] if all(_UNNAMED.fullmatch(name) for name in names) else names


def turn_head(model: PreTrainedModel, known: Sequence[str], wanted: Sequence[str]) -> str | None:
    """Put the rows of a head into the order of the data's classes, and return what a user should know of it.

    Names are compared without regard to capitals and outer blanks.

    Args:
        model: with the head; changed in place.
        known: the head's classes, in order, as `names_of` says.
        wanted: the data's.

    Raises:
        ModelError: the names are the same, but which layer gives the classes cannot be told.
    """
    if not known:
        return (
            "The checkpoint has a head, and its classes have no names there: they are taken in the order "
            f"{_shown(wanted)}. If that is another order than the checkpoint was trained with, set task.labels."
        )
    ours, theirs = ([_plain(name) for name in names] for names in (wanted, known))
    if ours == theirs or len(known) != len(wanted):  # another number of classes is refused elsewhere
        return None
    if sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
        return (
            f"The checkpoint's head has the classes {_shown(known)}, and the data has {_shown(wanted)}: they "
            "are taken for each other in this order."
        )
    layers = _output_layers(model, len(wanted))
    if not layers:
        raise ModelError(
            f"the checkpoint's head has the classes in the order {_shown(known)}: set task.labels to these names "
            "in this order"
        )
    order = torch.tensor([theirs.index(name) for name in ours])
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data[order.to(parameter.device)].contiguous()
    model.config.id2label = dict(enumerate(wanted))
    model.config.label2id = {name: number for number, name in enumerate(wanted)}
    return None


def _shown(names: Sequence[str]) -> str:
    told = ", ".join(map(repr, names[:_TOLD]))
    return f"{told} and {len(names) - _TOLD} more" if len(names) > _TOLD else told


def _plain(name: str) -> str:
    return name.strip().casefold()


def _output_layers(model: PreTrainedModel, classes: int) -> list[nn.Module]:
    """Return the last layer with an output for each class of each head: of each part outside the base."""
    prefix = model.base_model_prefix
    last: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        part = name.partition(".")[0]
        sizes = {parameter.shape[0] for parameter in layer.parameters(recurse=False) if parameter.dim()}
        if name and part != prefix and sizes == {classes}:
            last[part] = layer
    return list(last.values())
