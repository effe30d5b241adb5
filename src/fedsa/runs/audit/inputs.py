"""What an adapted layer of a text model gets for each token at each position, where no other token has a say in it.

That is so in the first layer: its input is the token's embedding, with that of its position, after a norm. An attacker
who has the base model can compute it for every token of the vocabulary. Source: Petrov et al., arXiv:2405.15586.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsa.errors import UserError
from fedsa.models import AdaptedModel
from fedsa.types import Factor

__all__ = ["Inputs", "inputs_of", "most_positions"]

_CHUNK = 1024  # sequences of one pass
_CLOSE = 1e-5  # relative: two inputs are one
_ROOM = 4 * 2**30  # bytes of all inputs


@final
@dataclass(frozen=True)
class Inputs:
    """The inputs of the adapted layers that read single tokens.

    Attributes:
        modules: the layers, which all have the same input.
        values: shape (positions, vocabulary, width), float32: the input of each token at each position; one position
            stands for all where the position makes no difference.
    """

    modules: tuple[str, ...]
    values: Tensor


def inputs_of(model: AdaptedModel, batch: Mapping[str, Tensor], positions: int) -> Inputs:
    """Compute the inputs of every token at each position.

    Args:
        model: the base with its adapter.
        batch: of one row, as the task makes it, without padding.
        positions: from the first.

    Raises:
        UserError: the model does not read tokens, or no adapted layer reads single tokens.
    """
    if "input_ids" not in batch:
        raise UserError("rebuilding text needs a model that reads tokens: leave the attack `rebuilding` out")
    names = sorted({key.module for key in model.keys if key.factor is Factor.A})
    modules = _reading_single_tokens(model, names, batch)
    if not modules:
        raise UserError(
            "no adapted layer reads single tokens (the first layer's query, key or value, say), so texts cannot be "
            "rebuilt from their span: leave the attack `rebuilding` out"
        )
    vocabulary = _vocabulary(model)
    positions = _different(model, batch, positions, modules)
    first = _inputs(model, _repeated(range(1), positions, batch), modules[:1])[0]
    values = torch.empty(positions, vocabulary, first.shape[-1])
    for start in range(0, vocabulary, _CHUNK):
        tokens = range(start, min(start + _CHUNK, vocabulary))
        values[:, start : tokens.stop] = _inputs(model, _repeated(tokens, positions, batch), modules[:1])[0].transpose(
            0, 1
        )
    return Inputs(modules, values)


def most_positions(model: AdaptedModel) -> int:
    """How many positions there is room for."""
    return max(1, _ROOM // (4 * _embeddings(model).numel()))


def _vocabulary(model: AdaptedModel) -> int:
    return int(_embeddings(model).shape[0])


def _embeddings(model: AdaptedModel) -> Tensor:
    layer: Any = model.model.get_input_embeddings()
    weight: Tensor = layer.weight
    return weight


def _different(model: AdaptedModel, batch: Mapping[str, Tensor], positions: int, modules: Sequence[str]) -> int:
    """How many positions have inputs of their own: one, where the position makes no difference to the input."""
    some = _inputs(model, _repeated(range(min(8, _vocabulary(model))), 2, batch), modules[:1])[0]
    return 1 if _alike(some[:, 0], some[:, 1]) else positions


def _reading_single_tokens(model: AdaptedModel, names: Sequence[str], batch: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The layers whose input at a position is that of the token there alone: all with the same input as the first."""
    ids = batch["input_ids"]
    other = ids.clone()
    other[:, 0] = (ids[:, 0] + 1) % _vocabulary(model)
    here, there = (_inputs(model, {**batch, "input_ids": each}, names) for each in (ids, other))
    single = {
        name: one[:, 1:]
        for name, one, two in zip(names, here, there, strict=True)
        if one is not None and two is not None and one.dim() == 3 and _alike(one[:, 1:], two[:, 1:])
    }
    first = next(iter(single.values()), None)
    return tuple(
        name
        for name, value in single.items()
        if first is not None and value.shape == first.shape and _alike(value, first)
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) <= _CLOSE * float(one.norm())


def _repeated(tokens: range, positions: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one sequence for each token, which has nothing but that token."""
    ids = torch.tensor(list(tokens)).unsqueeze(1).expand(-1, positions).contiguous()
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in batch:
        made["token_type_ids"] = torch.zeros_like(ids)
    if "position_ids" in batch:
        made["position_ids"] = torch.arange(positions).expand(len(ids), -1).contiguous()
    return made


def _inputs(model: AdaptedModel, batch: Mapping[str, Tensor], names: Sequence[str]) -> list[Any]:
    """What the named layers get for a batch; None for one that was not reached."""
    seen: dict[str, Tensor] = {}
    given = {name: value for name, value in batch.items() if name != "labels"}
    with _listening(model, names, seen), model.evaluating():
        begun = model.begin(given, [1] * len(given["input_ids"]))
        with suppress(_Enough):
            model.model.get_base_model()(**begun)
    return [seen.get(name) for name in names]


class _Enough(Exception):  # noqa: N818  # it is no error
    """All that was asked for has been seen: the rest of the model need not compute."""


@contextmanager
def _listening(model: AdaptedModel, names: Sequence[str], seen: dict[str, Tensor]) -> Iterator[None]:
    """A context in which the named layers' inputs are kept, and the pass ends with the last of them."""
    layers: dict[str, nn.Module] = dict(model.model.get_base_model().named_modules())

    def keep(name: str, arguments: tuple[Any, ...]) -> None:
        seen[name] = arguments[0].detach().clone().cpu()
        if len(seen) == len(names):
            raise _Enough

    with ExitStack() as stack:
        for name in names:
            handle = layers[name].register_forward_pre_hook(lambda _, given, name=name: keep(name, given))
            stack.callback(handle.remove)
        yield
