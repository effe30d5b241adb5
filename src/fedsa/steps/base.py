"""What happens to an update between client and server: a chain of steps, each of which has two halves.

    client:  trained tensors ─► step 1 ─► step 2 ─► … ─► the wire
    server:  the wire ─► … ─► step 2 ─► step 1 ─► mean of all ─► … ─► step 2 ─► step 1 ─► `Algorithm.combine`

A step is one file in this folder: a frozen dataclass whose fields are its settings. All its methods are pure functions:
state goes in, state comes out. By default they change nothing. A client's half may keep tensors from round to round,
which are saved with the client's state. A step on the mean may keep tensors too, which are saved with the server's
state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias, final

import torch

from fedsa.algorithms.base import Algorithm
from fedsa.steps.changes import sends_notes
from fedsa.steps.noise import Noise
from fedsa.types import Key, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ClientContext",
    "Form",
    "MeanContext",
    "MeanStep",
    "Reduction",
    "Screening",
    "Slots",
    "Step",
    "Verdict",
]

Slots: TypeAlias = "Mapping[str, Tensor]"
"""Tensors that steps keep from round to round, by name. Each step's names begin with a word of its own."""


class Form(NamedTuple):
    """The form of a tensor between client and server.

    Attributes:
        shape: its shape.
        dtype: its type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ClientContext:
    """Further arguments of a client's half.

    Attributes:
        client: the client's id.
        round: the round, counted from 1.
        before: the client's value of each sent tensor before its training in this round, and the server's notes.
        random: a generator; its numbers depend only on the run's seed, the step, the client and the round.
        noise: for noise that protects: from the client's secret, where it has one, and what the step is given.
    """

    client: str
    round: int
    before: State
    random: torch.Generator
    noise: Noise


@dataclass(frozen=True)
class MeanContext:
    """Further arguments of a step on the mean.

    Attributes:
        round: the round, counted from 1.
        before: the server's tensors before the round.
        weights: the weights of the averaged updates, in the order of client ids.
        random: a generator; its numbers depend only on the run's seed, the step and the round.
        noise: for noise that protects: from the server's secret, where it has one, and what the step is given.
        asked: clients that were asked to train, whoever's update came; None: those whose updates came.
    """

    round: int
    before: State
    weights: tuple[int, ...]
    random: torch.Generator
    noise: Noise
    asked: int | None = None


@dataclass(frozen=True)
class Step:
    """One change to updates between client and server."""

    setting: ClassVar[str]
    """The recipe's key that asks for the step."""
    additive: ClassVar[bool] = True
    """The server need not see single updates: its half gives the same result on the mean as on each of them."""
    needs_values: ClassVar[bool] = False
    """The server's part uses the values of the server's tensors before the round."""

    @property
    def name(self) -> str:
        """The step's name in the recipe."""
        return type(self).__name__.lower()

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method; None if it can.

        Args:
            algorithm: the method.
            mixed_ranks: clients have different ranks.
        """
        return None

    def on_payload(self, tensors: State) -> State:
        """The server's side of a payload: tensors on their way down to a client."""
        return tensors

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        """The client's half: the changed update, and the tensors that the client keeps for its next round.

        Args:
            tensors: the sent tensors, from the client's training or from the previous step.
            slots: the tensors that the client's steps kept in its last round; empty in its first round.
            context: the client, the round and further values.
        """
        return tensors, {}

    def form(self, key: Key, form: Form) -> Form:
        """The shape and type that `on_client` gives a tensor. Bytes are planned and checked with it."""
        return form

    def notes_to_client(self, slots: Slots) -> State:
        """Numbers that go to a client beside its payload, by keys of the factor NOTE; its half has them in ``before``.

        Args:
            slots: what the server keeps; empty before the first round.
        """
        return {}

    def notes_to_server(self) -> Mapping[Key, Form]:
        """The numbers that `on_client` puts beside the sent tensors, by keys of the factor NOTE."""
        return {}

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        """The server's half, for one update: the changed update, and its weight in the mean.

        Args:
            update: an update from `on_client`; the client need not be honest.
            weight: a count > 0; only the ratios of the weights matter.
            before: the server's tensors before the round, of the full ranks.

        Raises:
            ProtocolError: `on_client` cannot have made the update, so it is refused.
        """
        return update, weight


@dataclass(frozen=True)
class MeanStep(Step):
    """A step that changes the mean of a round's updates."""

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method: the method must take a mean."""
        return algorithm.mean_refusal()

    def on_mean(self, mean: State, slots: Slots, context: MeanContext) -> tuple[State, Slots]:
        """The changed mean, and the tensors that the server keeps for the next round.

        Args:
            mean: of each tensor that was sent, of the full shape, and of each note, in float64. There was at least one
                update. A step takes its own notes out.
            slots: what the server keeps from round to round, of this and of others.
            context: what it is the mean of.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Reduction(Step):
    """A step that takes the place of the weighted mean. A chain has one at most."""

    additive: ClassVar[bool] = False

    def refusal(self, algorithm: Algorithm, *, mixed_ranks: bool = False) -> str | None:
        """Why the step cannot be used with a method: the method must take a mean that the step can replace."""
        reason = algorithm.mean_refusal()
        if reason is None and mixed_ranks:
            return "clients of different ranks do not have the same numbers to compare: leave adapter.ranks out"
        if reason is None and sends_notes(algorithm):
            return "its server computes with numbers that must be means, as those of the tensors are"
        return reason

    def reduce(self, updates: Iterable[tuple[State, int]], before: State) -> State:
        """One value of each tensor that was sent, in float64; nothing where no update came.

        Args:
            updates: what each client sent, with its weight, one at a time, in the order of client ids.
            before: the server's tensors before the round.
        """
        raise NotImplementedError


@final
@dataclass(frozen=True)
class Verdict:
    """What a screening has found of an update.

    Attributes:
        values: numbers about it, by name, for the record.
        reason: why it is left out; None: it counts.
    """

    values: Mapping[str, float]
    reason: str | None = None


@dataclass(frozen=True)
class Screening(Step):
    """A step that looks at all updates of a round together, before any of them counts. A chain has one at most."""

    additive: ClassVar[bool] = False

    def screen(self, updates: Sequence[Update], before: State) -> Mapping[str, Verdict]:
        """By client, the verdict on its update; an update without one counts.

        Args:
            updates: as the other steps' halves at the server have left them, in the order of client ids.
            before: the server's tensors before the round.
        """
        raise NotImplementedError
