"""FedALT: each client's own adapter beside the frozen mean of the other clients' adapters, weighed by a gate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, final

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import LOCAL, RECEIVED, Algorithm, Plan, ServerState
from fedsa.types import Factor, Gating, Key, Side, State, Update

_REST = "rest"


@final
@dataclass(frozen=True, kw_only=True)
class FedALT(Algorithm):
    """Train an own adapter, which is never overwritten, beside the frozen mean of the other clients' adapters.

        A of the others for client i ← Σⱼ pⱼ·Aⱼ / Σⱼ pⱼ over all clients j ≠ i, and B likewise

        y = W·x + s·g₁·Bᵢ·Aᵢ·x + s·g₂·B_others·A_others·x,  (g₁, g₂) = softmax(G·x)

    In each adapted layer the gate weighs the two adapters for each token; G is trained and stays at the client. Clients
    send their own A and B. Each receives the mean of what the others sent in the last round. A and B are averaged
    separately, weighed by rows (the paper weighs all clients equally: weighting = 'uniform'). A client that was not in
    that round receives the mean of all clients that were. The server sees every A and B, and remembers each client's
    mean of the others. The others' adapter starts at zero, and with one client it stays at zero.
    """

    source: ClassVar[str] = "arXiv:2503.11880"
    adapters: ClassVar[tuple[str, ...]] = ("default", _REST)
    gated: ClassVar[Gating] = "token"
    export: ClassVar[str] = "none"
    needs_product: ClassVar[bool] = True
    needs_initial_values: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        """Whether clients train, send and receive a tensor."""
        if key.factor is Factor.GATE:
            return LOCAL
        if key.factor.side not in (Side.A, Side.B):
            return self.rest_plan(key)
        return RECEIVED if key.adapter == _REST else Plan(trained=True, sent=True, received=False)

    def renews(self, key: Key, round: int) -> bool:
        """Whether the server changes a tensor: it is sent, or it belongs to the others' adapter."""
        return key.adapter == _REST or super().renews(key, round)

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """The newer tensors; the others' adapter is the mean without this client."""
        newer = super().broadcast(state, client, round, version)
        return {key: state.slots.get(f"{client}|{key}", value) for key, value in newer.items()}

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The state with the means over all clients that sent, and for each of these the mean of the others."""
        sent = list(updates)
        means = weighted_mean(((update.tensors, weight) for update, weight in sent), state.tensors)
        rest = {key._replace(adapter=_REST): mean for key, mean in means.items() if key.factor.side in (Side.A, Side.B)}
        after = self.renewed(state, {**means, **rest}, round)
        whole, slots = sum(weight for _, weight in sent), {}
        for update, weight in sent:
            for key, mean in rest.items():
                name, own = f"{update.client}|{key}", update.tensors[key._replace(adapter="default")].double()
                if whole > weight:
                    slots[name] = ((mean * whole - own * weight) / (whole - weight)).to(state.tensors[key].dtype)
                else:
                    slots[name] = state.slots.get(name, state.tensors[key])
        return replace(after, slots=slots) if sent else after
