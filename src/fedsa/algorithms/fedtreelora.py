"""FedTreeLoRA: adapters are averaged within groups of a tree of clients, in deeper layers within smaller groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, final

import torch
from pydantic import Field

from fedsa.adapters.means import weighted_mean
from fedsa.adapters.similarity import cut_tree, distances, silhouette
from fedsa.algorithms.base import LOCAL, RECEIVED, Algorithm, Plan, ServerState
from fedsa.types import Factor, Gating, Key, Side, State, Update

if TYPE_CHECKING:
    from torch import Tensor

_EXTERNAL = "external"
_TREE = "tree"
_DEEPEST = 2**31
"""Of a layer without a number."""


@final
@dataclass(frozen=True, kw_only=True)
class FedTreeLoRA(Algorithm):
    """Average A and B over a client's group in a tree of clients; each layer has groups of its own, deep ones small.

        A of group g in layer l ← Σ pᵢ·Aᵢ / Σ pᵢ over the clients of g, and B likewise: the cluster expert
        A outside g in layer l ← Σ pᵢ·Aᵢ / Σ pᵢ over all other clients, and B likewise: the external expert

        y = W·x + s·λ·B_cluster·A_cluster·x + s·(1 - λ)·B_external·A_external·x

    Clients train alone for ``warmup_rounds`` rounds. Then the tree is made, once, by merging the nearest clients
    (average linkage). Their distance is the mean over layers of ‖Bᵢ - Bⱼ‖. Cut into c groups, the tree gives the same
    nested groups in every layer. A layer takes the c with the best silhouette by its own distances ‖Bᵢ - Bⱼ‖, from the
    number that the layer before it has, up to ``window`` - 1 more, and below the number of clients. One group has
    ``threshold`` for its silhouette. So groups that are apart in a layer stay apart in deeper ones. A client trains its
    cluster expert, and λ of each layer, which stays with it. The external expert is frozen.

    The paper's abstract and a summary by others with these formulas were at hand. Decided here, as the summary does not
    tell: the linkage; the values of both options; λ is the first of two shares (a softmax), ½ at the start; clients
    are weighed by rows. A layer is all modules with the same first number in their name; what has no number comes last.
    Where nobody is outside a group, the external expert is zero, as it is at the start. A client that was not there
    when the tree was made begins with the mean of all, and later joins the smallest group whose B's are nearest to its
    own. The server sees every A and B. Two clients are always one group.

    Attributes:
        warmup_rounds: rounds in which clients train alone; at the end of the last the tree is made.
        window: numbers of groups that a layer tries: K in the paper.
        threshold: what one group has for a silhouette, which is from -1 to 1: τ in the paper. Larger: more sharing.
    """

    warmup_rounds: Annotated[int, Field(gt=0)] = 1
    window: Annotated[int, Field(gt=0)] = 3
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.0

    source: ClassVar[str] = "arXiv:2603.13282"
    adapters: ClassVar[tuple[str, ...]] = ("default", _EXTERNAL)
    gated: ClassVar[Gating] = "layer"
    export: ClassVar[str] = "merged model"
    needs_product: ClassVar[bool] = True
    needs_initial_values: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        if key.factor is Factor.GATE:
            return LOCAL
        return RECEIVED if key.adapter == _EXTERNAL else super().plan(key, round)

    def renews(self, key: Key, round: int) -> bool:
        """Whether the server changes a tensor: it is sent, or it belongs to the external expert."""
        return key.adapter == _EXTERNAL or super().renews(key, round)

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """The newer tensors; the experts are those of the client's groups, and are not sent while clients warm up."""
        newer, group = super().broadcast(state, client, round, version), state.groups.get(client)
        if round <= self.warmup_rounds:
            return {key: value for key, value in newer.items() if not _is_expert(key)}
        if group is None:
            return newer
        rows = _rows(state.tensors)
        return {
            key: state.slots.get(_slot(key, state.slots[_TREE][rows[_depth(key)], int(group)]), value)
            if _is_expert(key)
            else value
            for key, value in newer.items()
        }

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the means over all clients, and with both experts of each group in each layer."""
        sent = list(updates)
        after = super().aggregate(state, sent, round)
        if round < self.warmup_rounds or not sent:
            return after
        by_client = {update.client: update.tensors for update, _ in sent}
        groups, tree = dict(state.groups), state.slots.get(_TREE)
        if tree is None:
            groups, tree = self._grown(by_client)
        for client in by_client.keys() - groups.keys():
            groups[client] = _nearest(by_client[client], state.slots, tree)
        slots = {**state.slots, _TREE: tree}
        for depth, row in _rows(state.tensors).items():
            labels = {client: int(tree[row, int(groups[client])]) for client in by_client}
            for group in sorted(set(tree[row].tolist())):
                for adapter in self.adapters:
                    own = [
                        ({key: value for key, value in update.tensors.items() if _is_in(key, depth)}, weight)
                        for update, weight in sent
                        if (labels[update.client] == group) is (adapter != _EXTERNAL)
                    ]
                    for key, mean in weighted_mean(own).items():
                        rounded = mean.to(state.tensors[key].dtype)
                        slots[_slot(key._replace(adapter=adapter), group)] = rounded
        return replace(after, groups=groups, slots=slots)

    def _grown(self, by_client: Mapping[str, State]) -> tuple[dict[str, str], Tensor]:
        """Each client's smallest group, and the tree: of each layer, which group each smallest group is in.

        The tree has shape (layers, smallest groups).
        """
        clients = sorted(by_client)
        by_layer = [
            distances([_b_of(by_client[client], depth) for client in clients]) for depth in _rows(by_client[clients[0]])
        ]
        whole = torch.stack(by_layer).mean(dim=0)
        labels, count = [], 1
        for own in by_layer:
            cuts = {c: cut_tree(whole, c) for c in range(count, min(len(clients), count + self.window))}
            scores = {c: silhouette(own, cut) if c > 1 else self.threshold for c, cut in cuts.items()}
            count = max(scores, key=lambda c: scores[c], default=1)
            labels.append(cuts.get(count, [0]))
        smallest = labels[-1]
        members = [smallest.index(group) for group in range(max(smallest) + 1)]
        tree = torch.tensor([[cut[member] for member in members] for cut in labels])
        return {client: str(group) for client, group in zip(clients, smallest, strict=True)}, tree


def _is_expert(key: Key) -> bool:
    return key.factor.side in (Side.A, Side.B)


def _depth(key: Key) -> int:
    """The layer that a tensor is in: the first number in its module's name."""
    numbers = [int(part) for part in key.module.split(".") if part.isdigit()]
    return numbers[0] if numbers else _DEEPEST


def _is_in(key: Key, depth: int) -> bool:
    return _is_expert(key) and _depth(key) == depth


def _rows(tensors: State) -> dict[int, int]:
    """The tree's row of each layer."""
    return {depth: row for row, depth in enumerate(sorted({_depth(key) for key in tensors if _is_expert(key)}))}


def _b_of(tensors: State, depth: int) -> Tensor:
    """All B's of a layer, as one vector."""
    keys = sorted(key for key in tensors if key.factor.side is Side.B and _depth(key) == depth)
    return torch.cat([tensors[key].double().flatten() for key in keys])


def _slot(key: Key, group: int | Tensor) -> str:
    return f"group|{int(group)}|{key}"


def _nearest(tensors: State, slots: Mapping[str, Tensor], tree: Tensor) -> str:
    """The smallest group whose B's are nearest: by the mean over layers of the distance from its cluster experts."""

    def distance(group: int) -> float:
        total = 0.0
        for depth, row in _rows(tensors).items():
            expert = {key: slots[_slot(key, tree[row, group])] for key in tensors if _is_in(key, depth)}
            total += float((_b_of(tensors, depth) - _b_of(expert, depth)).norm())
        return total

    return str(min(range(tree.shape[1]), key=distance))
