"""Clustered: A is averaged over all clients, B over those whose B's are alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.similarity import clusters
from fedsa.algorithms.base import Algorithm, ServerState, weighted_mean
from fedsa.types import Key, Side, State, Update

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Clustered(Algorithm):
    """Group clients by their B's, and share B inside a group; the head stays unless it is shared.

    The idea that CF-LoRA and the cluster tier of HiLoRA have in common, in its plainest form. At the end of round
    ``group_after`` the clients that trained in it are grouped by the cosine of their B's (average linkage); up to then
    nobody receives a B. Who was not there in that round begins its next from the mean B of all, and then joins the
    group whose B is nearest. The server sees every B. With as many groups as clients it is FedSA, with one group FedIT
    with a local head.

    Attributes:
        groups: their number, or as many as there are clients if these are fewer.
        group_after: the round.
    """

    groups: int = 2
    group_after: int = 1

    source: ClassVar[str] = "arXiv:2603.02785"

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_after < 1:
            raise ValueError("groups and group_after must be at least 1")

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """Return what is newer; of B the values of the client's group, and nothing before there are groups."""
        newer, group = super().broadcast(state, client, round, version), state.groups.get(client)
        if round <= self.group_after:
            return {key: value for key, value in newer.items() if key.factor.side is not Side.B}
        return {
            key: state.slots.get(_slot(group, key), value) if key.factor.side is Side.B else value
            for key, value in newer.items()
        }

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """Return the averages over all clients, and those of B over groups."""
        sent = list(updates)
        after = super().aggregate(state, sent, round)
        if round < self.group_after or not sent:
            return after
        ours = {update.client: _b_side(update.tensors) for update, _ in sent}
        groups = dict(state.groups) or _groups(ours, self.groups)
        for client, tensors in ours.items():
            if client not in groups:
                groups[client] = _nearest(tensors, state.slots, set(groups.values()))
        slots = dict(state.slots)
        for group in sorted({groups[client] for client in ours}):
            mean = weighted_mean((ours[update.client], w) for update, w in sent if groups[update.client] == group)
            slots |= {_slot(group, key): value.to(state.tensors[key].dtype) for key, value in mean.items()}
        return replace(after, groups=groups, slots=slots)


def _slot(group: str | None, key: Key) -> str:
    return f"group|{group}|{key}"


def _b_side(tensors: State) -> dict[Key, Tensor]:
    return {key: value for key, value in tensors.items() if key.factor.side is Side.B}


def _flat(tensors: State) -> Tensor:
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])


def _groups(by_client: Mapping[str, State], number: int) -> dict[str, str]:
    """Return each client's group by the cosine of its B's, average linkage."""
    clients = sorted(by_client)
    labels = clusters(torch.stack([_flat(by_client[client]) for client in clients]), number)
    return {client: str(label) for client, label in zip(clients, labels, strict=True)}


def _nearest(tensors: State, slots: Mapping[str, Tensor], groups: set[str]) -> str:
    """Return the group whose B's are nearest by cosine."""
    own, likeness = _flat(tensors), {}
    for group in sorted(groups):
        theirs = _flat({key: slots[_slot(group, key)] for key in tensors})
        likeness[group] = float(torch.nn.functional.cosine_similarity(own, theirs, dim=0))
    return max(likeness, key=lambda group: likeness[group])
