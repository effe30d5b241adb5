"""Clustered: A is averaged over all clients, B only over clients with similar B's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

import torch

from fedsa.adapters.means import weighted_mean
from fedsa.adapters.similarity import clusters
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.types import Key, Side, State, Update

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Clustered(Algorithm):
    """Group clients by their B's, and share B inside a group; the head stays unless it is shared.

        A ← Σ pᵢ·Aᵢ over all clients,  B of group g ← Σ pᵢ·Bᵢ / Σ pᵢ over the clients of g

    This is the idea that CF-LoRA and the cluster tier of HiLoRA have in common, in its simplest form. At the end of
    round ``group_after`` the clients that trained in it are grouped by the cosine of their B's (average linkage). Until
    then no client receives a B. A client that did not train in that round begins its next round from the mean B of all
    clients, and then joins the group with the nearest B. The server sees every B. With as many groups as clients it is
    FedSA; with one group it is FedIT with a local head.

    Attributes:
        groups: number of groups; at most the number of clients that are grouped.
        group_after: the round at whose end clients are grouped.
    """

    groups: int = 2
    group_after: int = 1

    source: ClassVar[str] = "arXiv:2603.02785"

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_after < 1:
            raise ValueError("groups and group_after must be at least 1")

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """The newer tensors; B is that of the client's group, and is not sent before there are groups."""
        newer, group = super().broadcast(state, client, round, version), state.groups.get(client)
        if round <= self.group_after:
            return {key: value for key, value in newer.items() if key.factor.side is not Side.B}
        return {
            key: state.slots.get(_slot(group, key), value) if key.factor.side is Side.B else value
            for key, value in newer.items()
        }

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the means over all clients, and with the mean B of each group."""
        sent = list(updates)
        after = super().aggregate(state, sent, round)
        if round < self.group_after or not sent:
            return after
        b_sides = {update.client: _b_side(update.tensors) for update, _ in sent}
        groups = dict(state.groups) or _groups(b_sides, self.groups)
        for client, tensors in b_sides.items():
            if client not in groups:
                groups[client] = _nearest(tensors, state.slots, set(groups.values()))
        slots = dict(state.slots)
        for group in sorted({groups[client] for client in b_sides}):
            mean = weighted_mean((b_sides[update.client], w) for update, w in sent if groups[update.client] == group)
            slots |= {_slot(group, key): value.to(state.tensors[key].dtype) for key, value in mean.items()}
        return replace(after, groups=groups, slots=slots)


def _slot(group: str | None, key: Key) -> str:
    return f"group|{group}|{key}"


def _b_side(tensors: State) -> dict[Key, Tensor]:
    return {key: value for key, value in tensors.items() if key.factor.side is Side.B}


def _flat(tensors: State) -> Tensor:
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])


def _groups(by_client: Mapping[str, State], number: int) -> dict[str, str]:
    """Each client's group, from the cosine of the B's with average linkage."""
    clients = sorted(by_client)
    labels = clusters(torch.stack([_flat(by_client[client]) for client in clients]), number)
    return {client: str(label) for client, label in zip(clients, labels, strict=True)}


def _nearest(tensors: State, slots: Mapping[str, Tensor], groups: set[str]) -> str:
    """The group with the nearest B's by cosine."""
    vector, similarity = _flat(tensors), {}
    for group in sorted(groups):
        mean = _flat({key: slots[_slot(group, key)] for key in tensors})
        similarity[group] = float(torch.nn.functional.cosine_similarity(vector, mean, dim=0))
    return max(similarity, key=lambda group: similarity[group])
