"""The contract of an algorithm: who trains, sends and receives which tensor, and how updates are put together.

An algorithm is one file in this folder: a frozen dataclass whose fields are its options. All of it is pure: state goes
in, state comes out. What it does not say is FedAvg: A and B are trained, sent and received, and the server takes the
weighted mean of what clients sent, one update at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

import torch

from fedsa.adapters.algebra import padded, pairs
from fedsa.adapters.factors import VARIANTS
from fedsa.types import Factor, Key, Side, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FROZEN",
    "LOCAL",
    "RECEIVED",
    "SHARED",
    "Algorithm",
    "Penalty",
    "Plan",
    "ServerState",
    "completed",
    "mean_update",
    "product",
    "weighted_mean",
]

Penalty: TypeAlias = "Callable[[State, State], Tensor | None]"
"""Of a client's trained tensors, and of the same before the training; a scalar."""


class Plan(NamedTuple):
    """What happens to one tensor in one round.

    Attributes:
        trained: the client's optimiser changes it.
        sent: the client sends it to the server after training.
        received: the server's value replaces the client's before training, whenever the server's is newer.
    """

    trained: bool
    sent: bool
    received: bool


SHARED = Plan(trained=True, sent=True, received=True)
LOCAL = Plan(trained=True, sent=False, received=False)
FROZEN = Plan(trained=False, sent=False, received=False)
RECEIVED = Plan(trained=False, sent=False, received=True)


@dataclass(frozen=True)
class ServerState:
    """All that the server knows about tensors.

    Attributes:
        tensors: the server's value of every adapter tensor; of those that are never sent, the initial value.
        versions: the round that last gave a tensor a new value; 0 is the initial value, which every client holds.
        scaling: the module's s in ΔW = s·B·A, of each module that has one. It never changes.
        groups: client id to the group that the server has put it in, for methods that have groups.
        slots: what a server optimiser remembers, named ``slot|key``.
    """

    tensors: State
    versions: Mapping[Key, int]
    scaling: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    slots: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A federated method. Fields are its options.

    Attributes:
        share_head: send and average the classification head too; each method's default is its paper's.
    """

    share_head: bool = False

    source: ClassVar[str]
    """The paper, e.g. ``arXiv:2410.01463``."""
    exact: ClassVar[bool] = False
    """The aggregate's update of the weights is the clients' mean, Σ wᵢ·s·Bᵢ·Aᵢ / Σ wᵢ."""
    export: ClassVar[str] = "adapter"
    """What a client's result can be written as: an ``adapter`` of the rank it was trained with, a ``stacked adapter``
    of the ranks of all its adapters together, only a ``merged model``, or ``none`` of these."""
    adapters: ClassVar[tuple[str, ...]] = ("default",)
    """The PEFT adapters that a client has at once; their updates are added. Tensors of each but the first start from
    values of their own."""
    folds: ClassVar[bool] = False
    """The server adds to the frozen weights. There is then a tensor ``Factor.DELTA`` for each adapted layer, of the
    weight's shape and zero at the start, that the layer's output is computed with."""
    gated: ClassVar[bool] = False
    """Each adapted layer weighs its adapters for each token by softmax(G·x) of its input x. There is then a tensor
    ``Factor.GATE`` for each of them, G of shape (adapters, in), of the first adapter's name."""
    restarts: ClassVar[bool] = False
    """A client begins each round from the initial A's and B's, not from its own."""
    needs_sides: ClassVar[bool] = True
    """The method treats the A side and the B side differently, so the adapter must have both."""
    needs_product: ClassVar[bool] = False
    """The server computes ΔW = s·B·A, so it must be the whole of the adapter's update."""
    needs_initial_values: ClassVar[bool] = False
    """The server computes with the values that clients start from. Else it starts from shapes alone."""
    mixed_ranks: ClassVar[bool] = False
    """Clients may have different ranks: a client's tensors are the first rows of A and columns of B."""

    @property
    def references(self) -> int:
        """How many training rows of its client each row is compared with at inference, for `weights`; 0: none.

        Comparing costs one more forward pass over the rows. The adapter's update must then be s·B·A, zero at the start.
        """
        return 0

    @classmethod
    def is_additive(cls) -> bool:
        """Say whether the server needs no more of the updates than Σ wᵢxᵢ and Σ wᵢ: it has `combine`, no `aggregate`.

        Then the server's memory does not depend on the number of clients, and a protocol that shows it only the sums
        (secure aggregation) is enough.
        """
        return cls.aggregate is Algorithm.aggregate

    def plan(self, key: Key, round: int) -> Plan:
        """Say what happens to the tensor ``key`` in ``round`` (counted from 1). Depends on nothing else.

        By default A and B are trained, sent and received, as in FedAvg; for the rest see `rest_plan`. ``received`` must
        be the same in all rounds: the server knows one version of each client, not one of each tensor.
        """
        return SHARED if key.factor.side in (Side.A, Side.B) else self.rest_plan(key)

    def renews(self, key: Key, round: int) -> bool:
        """Return whether the server gives a tensor a new value at the end of ``round``: what is sent or folded.

        It must depend on nothing else: `fedsa plan` counts bytes by it.
        """
        return self.plan(key, round).sent or key.factor.side is Side.BASE

    def keeps(self, key: Key) -> bool:
        """Return whether a tensor is each client's own: trained there, and never sent or received."""
        plans = [self.plan(key, round) for round in (1, 2)]  # methods that alternate do so from round to round
        return any(plan.trained for plan in plans) and not any(plan.sent or plan.received for plan in plans)

    def sends(self) -> bool:
        """Say whether a client sends anything in some round."""
        factors = {factor for about in VARIANTS.values() for factor in about.factors}
        keys = [Key("layer", factor, adapter) for factor in factors for adapter in self.adapters]
        return any(self.plan(key, round).sent for key in keys for round in (1, 2))

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Return why the method does not go with an adapter variant, or None if it does.

        Args:
            variant: a name in `fedsa.adapters.factors.VARIANTS`.
            mixed_ranks: clients have different ranks.
        """
        about = VARIANTS[variant]
        sides = {factor.side for factor in about.factors}
        if self.needs_sides and not {Side.A, Side.B} <= sides:
            return f"it shares the sides of the update differently, and {variant} has no A side and B side"
        if self.needs_product and not about.is_product:
            return f"the server computes ΔW = s·B·A, which is not {variant}'s whole update"
        if self.folds and not about.is_product:
            return f"the server adds to the frozen weights, which {variant}'s update is not made for"
        if (self.references or self.gated) and not (about.is_product and about.starts_at_zero):
            return f"it weighs updates s·B·A that are zero at the start, which {variant}'s is not"
        if mixed_ranks and not self.mixed_ranks:
            return "it puts tensors together that must have one rank: leave adapter.ranks out"
        if mixed_ranks and not about.is_product:
            return f"{variant} has one rank for all clients: leave adapter.ranks out"
        return None

    def mean_refusal(self) -> str | None:
        """Return why no step can act on the mean of a round's updates, or None if one can."""
        if not self.is_additive():
            return "its server needs each client's update, not their mean"
        return None if self.sends() else "it sends nothing"

    def optimizer_refusal(self) -> str | None:
        """Return why a server optimiser does not go with the method, or None if it does.

        The optimiser takes the step from a tensor's value to the mean of what was sent as its gradient, so each sent
        tensor's new value must be that mean, and its old value what the clients started from.
        """
        reason = self.mean_refusal()
        if reason is not None:
            return reason
        if self.folds:
            return "its server adds to the frozen weights, so a sent tensor does not start from the mean before"
        own = type(self)
        if own.combine is not Algorithm.combine or own.renewed is not Algorithm.renewed:
            return "its server makes other values of what is sent than their mean"
        return None

    def own_start_refusal(self, variant: str) -> str | None:
        """Return why clients cannot draw initial A's of their own, or None if they can.

        Args:
            variant: a name in `fedsa.adapters.factors.VARIANTS`.
        """
        if VARIANTS[variant].fixed_start:
            return f"{variant} has no A to draw: {VARIANTS[variant].fixed_start}"
        if not any(self.keeps(Key("layer", Factor.A, adapter)) for adapter in self.adapters):
            return "no A stays at the client: sent, received or frozen, it is one for all (use local or alora)"
        return None

    def scaling(self, scaling: float, rank: int, clients: int) -> float:
        """Return s in ΔW = s·B·A for all clients.

        Args:
            scaling: the adapter variant's own, α/r or α/√r.
            rank: r.
            clients: that train in a round.
        """
        return scaling

    def init(self, initial: State, scaling: Mapping[str, float] | None = None) -> ServerState:
        """Return the server's first state.

        Args:
            initial: the tensors that every client starts from.
            scaling: s of each module that has one.
        """
        return ServerState(dict(initial), dict.fromkeys(initial, 0), dict(scaling or {}))

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """Return the tensors that a client needs before it trains in ``round``: received ones that are newer.

        Args:
            state: the server's state.
            client: its id.
            round: the round that begins.
            version: the newest version that the client holds; 0 is the initial state.
        """
        return {
            key: tensor
            for key, tensor in state.tensors.items()
            if state.versions[key] > version and self.plan(key, round).received
        }

    def absorb(self, tensors: State, received: State, initial: State) -> State:
        """Return a client's tensors after it took in what the server sent; in fp32 at least.

        Args:
            tensors: the client's own.
            received: the tensors that the server sent, in the dtype of the wire.
            initial: the tensors that every client started from.
        """
        begun = tensors
        if self.restarts:
            begun = {**tensors, **{key: value for key, value in initial.items() if key.factor.side in (Side.A, Side.B)}}
        return {
            **begun,
            **{key: value.to(torch.promote_types(value.dtype, torch.float32)) for key, value in received.items()},
        }

    def after_training(self, before: State, after: State, round: int) -> State:
        """Return what a client keeps and sends of its local training: ``after``, unless the method changes it.

        Args:
            before: the client's tensors as it began to train.
            after: as it ended; of the same shapes. The result may have fewer rows of A and columns of B.
            round: the round.
        """
        return after

    @property
    def penalty(self) -> Penalty | None:
        """A function whose value is added to a client's loss; None: nothing is added.

        Its arguments are the client's trained tensors, as autograd sees them, and the same tensors as they were before
        the training. It may return None: nothing is added then.
        """
        return None

    def weights(self, rows: Tensor, references: Tensor) -> Mapping[str, Tensor]:
        """Return what each adapter's update is multiplied by for each row at inference, shape (rows,).

        1 is as in training; adapters that are not named have it. Training does not depend on it.

        Args:
            rows: what the frozen base, without any adapter, says of each row: its last hidden state, the mean over the
                row's tokens. Shape (rows, width), float32.
            references: the same of as many of the client's training rows as `references` says, at least one.
        """
        return {}

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """Return the server's state after a round. Override it only where the mean of the updates is not enough.

        Args:
            state: the state before.
            updates: each with its weight, a count > 0 of which only the ratios matter; in the order of client ids. They
                come one at a time, each when it is asked for, as the client has trained: whoever needs all of them at
                once calls ``list(updates)``. None at all leaves every value as it was.
            round: the round that ends.
        """
        mean = weighted_mean(((update.tensors, weight) for update, weight in updates), state.tensors)
        return self.combine(state, mean, round)

    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        """Return the server's state after a round, from the mean of what clients sent: that is each tensor's new value.

        Args:
            state: the state before.
            mean: Σ wᵢxᵢ / Σ wᵢ of each tensor that was sent, in float64; empty where no update came.
            round: the round that ends.
        """
        return self.renewed(state, mean, round)

    def renewed(self, state: ServerState, tensors: State, round: int) -> ServerState:
        """Return the state with new values of some tensors, in the state's dtypes, as of the end of ``round``.

        Clients changed their own copy of what they sent: it is newer here even where nobody's update arrived.
        """
        newer = [key for key in state.tensors if self.renews(key, round)]
        rounded = {key: value.to(state.tensors[key].dtype) for key, value in tensors.items()}
        versions = {**state.versions, **dict.fromkeys(newer, round)}
        return replace(state, tensors={**state.tensors, **rounded}, versions=versions)

    def rest_plan(self, key: Key) -> Plan:
        """Return the plan of a tensor that is on neither side: the head's is as ``share_head`` says."""
        match key.factor.side:
            case Side.HEAD:
                return SHARED if self.share_head else LOCAL
            case Side.BASE:
                return RECEIVED
            case _:
                return SHARED


def weighted_mean(states: Iterable[tuple[State, int]], before: State | None = None) -> dict[Key, Tensor]:
    """Return Σ wᵢxᵢ / Σ wᵢ of each tensor, in float64; nothing if there are no states.

    Only the sums are held, whatever the number of states. A product wᵢxᵢ is exact for x of 24 bits (fp32, bf16) and
    weights below 2²⁹; what is left is the rounding of a float64 sum. Rounded to x's own dtype, the mean of one state is
    that state, bit for bit. Where ranks differ, each row of A and column of B is the mean over the states that have it.

    Args:
        states: of the same keys, each with its weight, a count > 0.
        before: values of what no state has, of the full shapes; not needed where ranks do not differ.
    """
    sums: dict[Key, Tensor] = {}
    weights: dict[Key, Tensor] = {}
    for tensors, weight in states:
        for key, tensor in tensors.items():
            term = tensor.double() * weight
            there = torch.full((1,) * term.dim(), weight, dtype=torch.float64)
            if key in sums and sums[key].shape == term.shape and weights[key].numel() == 1:
                sums[key].add_(term)
                weights[key] = weights[key] + there
            elif key in sums:
                shape = [max(sizes) for sizes in zip(sums[key].shape, term.shape, strict=True)]
                weights[key] = padded(weights[key].expand(sums[key].shape), shape) + padded(
                    there.expand(term.shape), shape
                )
                sums[key] = padded(sums[key], shape) + padded(term, shape)
            else:
                sums[key], weights[key] = term, there
    means = {key: total / weights[key] for key, total in sums.items()}
    return {key: completed(mean, (before or {}).get(key)) for key, mean in means.items()}


def mean_update(state: ServerState, updates: Iterable[tuple[State, int]]) -> dict[str, Tensor]:
    """Return Σ wᵢ·s·Bᵢ·Aᵢ / Σ wᵢ of each module, shape (out, in), in float64; nothing if there are no updates.

    What a client did not send is as it is in the state. Clients' ranks may differ.

    Args:
        state: the server's; gives s.
        updates: clients' tensors, each with its weight.
    """
    sums: dict[str, Tensor] = {}
    whole = 0
    for tensors, weight in updates:
        whole += weight
        for module, (b, a) in pairs({**state.tensors, **tensors}).items():
            rank = min(b.shape[1], a.shape[0])  # what was not sent is of the server's rank
            term = b[:, :rank].double() @ a[:rank].double() * (weight * state.scaling[module])
            sums[module] = sums[module].add_(term) if module in sums else term
    return {module: total / whole for module, total in sums.items()}


def product(state: ServerState, tensors: State, module: str) -> Tensor:
    """Return s·B·A of a module, shape (out, in), in float64."""
    b, a = (tensors[Key(module, factor)].double() for factor in (Factor.B, Factor.A))
    return b @ a * state.scaling[module]


def completed(value: Tensor, before: Tensor | None) -> Tensor:
    """Return a value of a lower rank with the rows and columns that it lacks as they were before, in float64."""
    if before is None or value.shape == before.shape:
        return value
    whole = before.double().clone()
    whole[tuple(slice(0, size) for size in value.shape)] = value
    return whole
