"""The contract of an algorithm: which tensors clients train, send and receive, and how the server combines updates.

An algorithm is one file in this folder: a frozen dataclass whose fields are its options. All its methods are pure
functions: state goes in, state comes out. The default is FedAvg: A and B are trained, sent and received, and the
server takes the weighted mean of the updates, one update at a time.

In the formulas of the algorithms, Aᵢ and Bᵢ are client i's factors after its training, pᵢ is client i's part of the
weights of the round (Σ pᵢ = 1), Ā = Σ pᵢ·Aᵢ and B̄ = Σ pᵢ·Bᵢ are the means, A₀ and B₀ the initial values, W is a frozen
weight and s the scale of the update s·B·A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch

from fedsa.adapters.factors import VARIANTS
from fedsa.adapters.means import weighted_mean
from fedsa.types import FROZEN, LOCAL, RECEIVED, SHARED, Factor, Gating, Key, Plan, Side, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FROZEN",
    "LOCAL",
    "RECEIVED",
    "SHARED",
    "Algorithm",
    "Facts",
    "Penalty",
    "Plan",
    "ServerState",
]

Penalty: TypeAlias = "Callable[[State, State], Tensor | None]"
"""A scalar from a client's trained tensors and the same tensors before the training."""


@dataclass(frozen=True)
class ServerState:
    """Everything that the server knows about tensors.

    Attributes:
        tensors: the server's value of every adapter tensor; for a tensor that is never sent, the initial value.
        versions: the round that last gave a tensor a new value; 0 is the initial value, which every client holds.
        scaling: s in ΔW = s·B·A, for each module that has one. It never changes.
        groups: client id to the group of the client, for methods that have groups.
        slots: further tensors that the server remembers, such as a server optimiser's, named ``slot|key``.
    """

    tensors: State
    versions: Mapping[Key, int]
    scaling: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    slots: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a method says of itself: what it needs of an adapter, what it adds to the model, what comes of it."""

    source: ClassVar[str]
    """The paper, e.g. ``arXiv:2410.01463``."""
    exact: ClassVar[bool] = False
    """The aggregate's update of the weights is the clients' mean, Σ wᵢ·s·Bᵢ·Aᵢ / Σ wᵢ."""
    export: ClassVar[str] = "adapter"
    """The form in which a client's result can be written: an ``adapter`` of the rank that it was trained with, a
    ``stacked adapter`` of the sum of the ranks of all its adapters, only a ``merged model``, or ``none`` of these."""
    adapters: ClassVar[tuple[str, ...]] = ("default",)
    """The PEFT adapters that a client has at once; their updates are added. Every adapter except the first starts from
    initial values of its own."""
    folds: ClassVar[bool] = False
    """The server adds to the frozen weights. Each adapted layer then has a tensor ``Factor.DELTA`` of the weight's
    shape, zero at the start, which is added to the weight."""
    gated: ClassVar[Gating | None] = None
    """Each adapted layer weighs its adapters: for each token, the same for all tokens, or by numbers that are free
    (`fedsa.types.Gating`). Each layer then has a tensor ``Factor.GATE`` under the first adapter's name."""
    restarts: ClassVar[bool] = False
    """A client begins each round from the initial A's and B's, not from its own."""
    needs_sides: ClassVar[bool] = True
    """The method treats the A side and the B side differently, so the adapter must have both."""
    needs_product: ClassVar[bool] = False
    """The server computes ΔW = s·B·A, so this must be the adapter's whole update."""
    needs_middle: ClassVar[bool] = False
    """The method averages the R that is trained between a frozen B and A, so the adapter must have one."""
    needs_initial_values: ClassVar[bool] = False
    """The server computes with the values that clients start from. Otherwise it starts from shapes alone."""
    pools_rows: ClassVar[bool] = False
    """It is no federation: one adapter is trained on all clients' rows together, which only a simulation can do."""
    mixed_ranks: ClassVar[bool] = False
    """Clients may have different ranks: a client's tensors are the first rows of A and columns of B."""

    @property
    def references(self) -> int:
        """Number of its client's training rows with which a row is compared at inference, for `weights`; 0: none.

        Comparing costs one more forward pass over the rows. The adapter's update must then be s·B·A, zero at the start.
        """
        return 0

    def refusal(self, variant: str, *, mixed_ranks: bool = False) -> str | None:
        """Why the method cannot be used with an adapter variant; None if it can.

        Args:
            variant: a name in `fedsa.adapters.factors.VARIANTS`.
            mixed_ranks: clients have different ranks.
        """
        about = VARIANTS[variant]
        sides = {factor.side for factor in about.factors}
        if self.needs_sides and not {Side.A, Side.B} <= sides:
            return f"it treats the sides of the update differently, and {variant} has no A side and B side"
        if self.needs_middle and Factor.MIDDLE not in about.factors:
            return f"it averages the R of s·B·R·A, and {variant} has no R: use adapter.variant = 'lora_xs'"
        if self.needs_product and not about.is_product:
            return f"the server computes ΔW = s·B·A, which is not {variant}'s whole update"
        if self.folds and not about.is_product:
            return f"the server adds s·B·A to the frozen weights, but {variant}'s update is not s·B·A"
        weighable = about.starts_at_zero and (about.is_product or Factor.MIDDLE in about.factors)
        if (self.references or self.gated) and not weighable:
            return f"it weighs updates s·B·A that are zero at the start, and {variant}'s update is not one of these"
        if mixed_ranks and not self.mixed_ranks:
            return "it combines tensors that must have one rank: leave adapter.ranks out"
        if mixed_ranks and not about.is_product:
            return f"{variant} has one rank for all clients: leave adapter.ranks out"
        return None

    def scaling(self, scaling: float, rank: int, clients: int) -> float:
        """The scale s in ΔW = s·B·A, the same for all clients.

        Args:
            scaling: the adapter variant's own scale, α/r or α/√r.
            rank: r.
            clients: number of clients that train in a round.
        """
        return scaling

    def in_model(self, key: Key) -> bool:
        """Whether a tensor is one of the model's, not one that the method has `beside` them."""
        return key.adapter in self.adapters

    def models(self, tensors: State) -> State:
        """The model's tensors of what a client holds."""
        return {key: value for key, value in tensors.items() if self.in_model(key)}


@dataclass(frozen=True, kw_only=True)
class Algorithm(Facts):
    """A federated method. Fields are its options.

    Attributes:
        share_head: send and average the classification head too; each method's default is its paper's.
        class_prior: add to a client's head how frequent each class is among its training rows. This stays with it.
    """

    share_head: bool = False
    class_prior: bool = False

    @classmethod
    def is_additive(cls) -> bool:
        """Whether Σ wᵢxᵢ and Σ wᵢ are enough for the server: the method does not override `aggregate`.

        Then the server's memory does not depend on the number of clients, and the method works with a protocol that
        shows the server only the sums (secure aggregation).
        """
        return cls.aggregate is Algorithm.aggregate

    def plan(self, key: Key, round: int) -> Plan:
        """What happens to the tensor ``key`` in ``round`` (counted from 1). It depends on nothing else.

        By default A and B are trained, sent and received, as in FedAvg; for other tensors see `rest_plan`. ``received``
        must be the same in all rounds, because the server keeps one version per client, not one per tensor.
        """
        return SHARED if key.factor.side in (Side.A, Side.B) else self.rest_plan(key)

    def beside(self, initial: State) -> dict[Key, Tensor]:
        """Tensors that server and clients hold beside the model's, with their first values; by default there are none.

        Each has a plan, as the model's have; ``trained`` is False, because no optimiser changes it. A client keeps it
        from round to round, whatever its plan says. `absorb` and `outgoing` give it values. Its key has an adapter name
        that is not in `adapters`; with the factor A or B it has the client's rank, and with ``Factor.NOTE`` it is a
        vector of numbers, of any length.

        Args:
            initial: the model's tensors as every client starts from them; perhaps shapes alone, on the device ``meta``.
        """
        return {}

    def whole(self, initial: State) -> State:
        """The model's tensors and those `beside` them."""
        return {**initial, **self.beside({key: value for key, value in initial.items() if self.in_model(key)})}

    def trains_halves(self, round: int) -> bool:
        """Whether a client trains twice in a round, from the same start, each time on one half of its rows.

        The mean of both is what it has trained then, and `outgoing` gets each: a client can tell how far what it
        learns depends on which rows it happens to have.
        """
        return False

    def renews(self, key: Key, round: int) -> bool:
        """Whether the server gives a tensor a new value at the end of ``round``: it is sent, or added to W.

        It must depend on nothing else, because `fedsa plan` counts bytes with it.
        """
        return self.plan(key, round).sent or key.factor.side is Side.BASE

    def keeps(self, key: Key) -> bool:
        """Whether a tensor is personal: the client trains it, never receives it, and what it learns never leaves."""
        rounds = (1, 2)  # methods that alternate do so from round to round
        trained = any(self.plan(key, round).trained for round in rounds)
        return trained and not any(self.plan(key, round).received or self.leaves(key, round) for round in rounds)

    def leaves(self, key: Key, round: int) -> bool:
        """Whether what a client learns of a tensor leaves it: it is sent, or one `beside` it that stands for it."""
        beside = self.beside({key: torch.zeros(1, 1)})
        return any(self.plan(each, round).sent for each in (key, *beside) if each._replace(adapter=key.adapter) == key)

    def sends(self) -> bool:
        """Whether a client sends anything in some round."""
        return any(self.plan(key, round).sent for key in self.every_kind() for round in (1, 2))

    def every_kind(self) -> State:
        """A small tensor of each kind that the method may meet, whatever the adapter, and of those `beside` them."""
        factors = {factor for about in VARIANTS.values() for factor in about.factors}
        return self.whole({Key("layer", each, own): torch.zeros(1, 1) for each in factors for own in self.adapters})

    def cuts_ranks(self) -> bool:
        """Whether a client may come out of its training with a lower rank: only `after_training` can cut it."""
        return type(self).after_training is not Algorithm.after_training

    def mean_refusal(self) -> str | None:
        """Why no step can act on the mean of a round's updates; None if one can."""
        if not self.is_additive():
            return "its server needs each client's update, not their mean"
        return None if self.sends() else "it sends nothing"

    def own_shares(self, state: ServerState) -> dict[int, dict[Key, list[float]]]:
        """The part of a movement that clients keep of their own, where the method has one between none and all.

        Args:
            state: the server's, after any round.

        Returns:
            By the round from which it holds, of each tensor: one number, or one for each of its rows.
        """
        return {}

    def init(self, initial: State, scaling: Mapping[str, float] | None = None) -> ServerState:
        """The server's first state.

        Args:
            initial: the model's tensors that every client starts from.
            scaling: s of each module that has one.
        """
        whole = self.whole(initial)
        return ServerState(dict(whole), dict.fromkeys(whole, 0), dict(scaling or {}))

    def broadcast(self, state: ServerState, client: str, round: int, version: int) -> State:
        """The tensors that a client needs before it trains in ``round``: the received tensors that are newer.

        Args:
            state: the server's state.
            client: the client's id.
            round: the round that begins.
            version: the newest version that the client holds; 0 is the initial state.
        """
        return {
            key: tensor
            for key, tensor in state.tensors.items()
            if state.versions[key] > version and self.plan(key, round).received
        }

    def absorb(self, tensors: State, received: State, initial: State) -> State:
        """A client's tensors after it has received the server's tensors; in fp32 at least.

        Args:
            tensors: the client's own tensors.
            received: the tensors that the server sent, in the dtype of the wire.
            initial: the tensors that every client started from.
        """
        start = tensors
        if self.restarts:
            start = {**tensors, **{key: value for key, value in initial.items() if key.factor.side in (Side.A, Side.B)}}
        return {
            **start,
            **{key: value.to(torch.promote_types(value.dtype, torch.float32)) for key, value in received.items()},
        }

    def begin(self, tensors: State, received: State, initial: State) -> State:
        """A client's tensors as its training begins: by default what it would use, `absorb` of the same arguments."""
        return self.absorb(tensors, received, initial)

    def after_training(self, before: State, after: State, round: int) -> State:
        """The tensors that a client keeps after local training: ``after``, unless the method changes it.

        Args:
            before: the client's tensors before the training.
            after: the same tensors after the training. The result may have fewer rows of A and columns of B.
            round: the round.
        """
        return after

    def outgoing(self, before: State, kept: State, halves: Sequence[State], round: int) -> State:
        """The values that a client sends, by default what it keeps; and that it keeps, of unsent tensors `beside`.

        Args:
            before: the client's tensors before the training.
            kept: what it keeps: `after_training` returned it.
            halves: with `trains_halves`: what each half of its rows has come to; else nothing.
            round: the round.
        """
        return kept

    @property
    def penalty(self) -> Penalty | None:
        """A function whose value is added to a client's loss; None: nothing is added.

        Its arguments are the client's trained tensors, as autograd sees them, and the same tensors as they were before
        the training. It may return None: nothing is added then.
        """
        return None

    def weights(self, rows: Tensor, references: Tensor) -> Mapping[str, Tensor]:
        """For each adapter, the factor of its update for each row at inference, shape (rows,).

        The factor is 1 in training, and for every adapter that is not named. Training does not depend on it.

        Args:
            rows: the frozen base's features of each row, without any adapter: the mean of the last hidden state over
                the row's tokens. Shape (rows, width), float32.
            references: the same features of the client's training rows; as many as `references` says, at least one.
        """
        return {}

    def aggregate(self, state: ServerState, updates: Iterable[tuple[Update, int]], round: int) -> ServerState:
        """The server's state after a round. Override it only if the mean of the updates is not enough.

        Args:
            state: the state before.
            updates: each update with its weight, in the order of client ids. A weight is a count > 0; only the ratios
                of the weights matter. The updates come one at a time: a client trains when its update is asked for. A
                method that needs all of them at once calls ``list(updates)``. If there is no update, every value stays.
            round: the round that ends.
        """
        weights: list[int] = []

        def arriving() -> Iterator[tuple[State, int]]:
            for update, weight in updates:
                weights.append(weight)
                yield update.tensors, weight

        mean = weighted_mean(arriving(), state.tensors)
        return self.combine_weighted(state, mean, weights, round)

    def combine_weighted(self, state: ServerState, mean: State, weights: Sequence[int], round: int) -> ServerState:
        """As `combine`, for a method that also needs the weights: how many clients there were, and how unequal.

        Args:
            state: the state before.
            mean: as for `combine`.
            weights: of the updates, in the order of client ids; only their ratios matter.
            round: the round that ends.
        """
        return self.combine(state, mean, round)

    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        """The server's state after a round, from the mean of the updates. By default, the mean is the new value.

        Args:
            state: the state before.
            mean: Σ wᵢxᵢ / Σ wᵢ of each tensor that was sent, in float64; empty if no update came.
            round: the round that ends.
        """
        return self.renewed(state, mean, round)

    def renewed(self, state: ServerState, tensors: State, round: int) -> ServerState:
        """The state with new values of some tensors, in the state's dtypes, as of the end of ``round``.

        Clients have changed their own copies of the tensors that they send. So these tensors get the version ``round``
        even if no update arrived.
        """
        newer = [key for key in state.tensors if self.renews(key, round)]
        rounded = {key: value.to(state.tensors[key].dtype) for key, value in tensors.items()}
        versions = {**state.versions, **dict.fromkeys(newer, round)}
        return replace(state, tensors={**state.tensors, **rounded}, versions=versions)

    def rest_plan(self, key: Key) -> Plan:
        """The plan of a tensor that is on neither side; ``share_head`` decides about the head."""
        match key.factor.side:
            case Side.HEAD:
                return SHARED if self.share_head else LOCAL
            case Side.BASE:
                return RECEIVED
            case _:
                return SHARED
