"""What clients began with that still train for an earlier round, kept with the server's state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsa.algorithms.base import ServerState
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["base_of", "with_bases"]

_SLOT = "base"


def base_of(state: ServerState, version: int) -> State:
    """The sent tensors of an earlier version, which `with_bases` kept.

    Raises:
        KeyError: it was not kept.
    """
    prefix = f"{_SLOT}|{version}|"
    found = {
        Key.parse(name.removeprefix(prefix)): tensor for name, tensor in state.slots.items() if name.startswith(prefix)
    }
    if not found:
        raise KeyError(version)
    return found


def with_bases(
    state: ServerState,
    before: ServerState,
    keys: Collection[Key],
    missing: Mapping[str, int],
    *,
    round: int,
    most: int,
) -> ServerState:
    """The state with the tensors of those versions that clients still train from; others are let go.

    Args:
        state: after the round.
        before: before the round, which is the version ``round - 1``.
        keys: the tensors that clients send.
        missing: clients whose updates have not come, each with the round that it was asked in.
        round: the round that ends.
        most: the rounds by which an update may come late.
    """
    versions = [asked - 1 for asked in missing.values() if round + 1 - asked <= most]
    slots: dict[str, Tensor] = {name: each for name, each in state.slots.items() if not name.startswith(f"{_SLOT}|")}
    for version in sorted(set(versions)):
        base = {key: before.tensors[key] for key in keys} if version == round - 1 else base_of(before, version)
        slots |= {f"{_SLOT}|{version}|{key}": tensor for key, tensor in base.items()}
    return replace(state, slots=slots)
