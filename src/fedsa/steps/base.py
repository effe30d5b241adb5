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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias, final

import torch

from fedsa.algorithms.base import Algorithm, ServerState, weighted_mean
from fedsa.seeds import derive_seed
from fedsa.steps.noise import Noise, input_of
from fedsa.types import Key, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Chain",
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

Mean: TypeAlias = "tuple[State, Slots]"
"""The mean of a round's updates, as the method gets it, and the slots that the server keeps."""


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

    def form(self, form: Form) -> Form:
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


@final
@dataclass(frozen=True)
class Chain:
    """Steps, one after the other.

    Attributes:
        steps: in the order in which a client takes them; the server takes them the other way round.
        secret: of this machine: what noise that protects is made from; None: the run's seed, as in a simulation.
    """

    steps: tuple[Step, ...] = ()
    secret: bytes | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        reductions = [step.name for step in self.steps if isinstance(step, Reduction)]
        if len(reductions) > 1:
            raise ValueError(f"only one step can replace the mean, not both {' and '.join(reductions)}: remove one")

    @property
    def needs_values(self) -> bool:
        """A step looks at the values of the server's tensors before the round."""
        return any(step.needs_values for step in self.steps)

    @property
    def holds_updates(self) -> bool:
        """The server holds all updates of a round at once."""
        return any(isinstance(step, Reduction | Screening) for step in self.steps)

    def screened(
        self,
        updates: Iterable[tuple[Update, int]],
        before: State,
        note: Callable[[Update, Verdict], None] = lambda update, verdict: None,
    ) -> Iterator[tuple[Update, int]]:
        """The updates that count: all of them as they come, unless a step looks at them together first.

        Args:
            updates: as `on_server` returned them, in the order of client ids.
            before: the server's tensors before the round.
            note: told of each update that was looked at, with the verdict.
        """
        screening = next((step for step in self.steps if isinstance(step, Screening)), None)
        if screening is None:
            yield from updates
            return
        waiting = list(updates)
        verdicts = screening.screen([update for update, _ in waiting], before)
        for update, weight in waiting:
            verdict = verdicts.get(update.client)
            if verdict is not None:
                note(update, verdict)
            if verdict is None or verdict.reason is None:
                yield update, weight

    def on_payload(self, tensors: State) -> State:
        """Tensors as they travel to a client."""
        for step in self.steps:
            tensors = step.on_payload(tensors)
        return tensors

    def notes_to_client(self, slots: Slots) -> dict[Key, Tensor]:
        """The numbers that go to a client beside its payload, from what the server keeps."""
        return {key: note for step in self.steps for key, note in step.notes_to_client(slots).items()}

    def on_client(
        self, tensors: State, slots: Slots, *, client: str, round: int, before: State, seed: int
    ) -> tuple[State, Slots]:
        """An update as it travels, and what the client keeps for its next round.

        Args:
            tensors: the sent ones, as the client's training left them.
            slots: what it kept in its last round.
            client: its id.
            round: the round.
            before: its value of each sent tensor before it learned anything in this round, and the server's notes.
            seed: the run's.
        """
        kept: dict[str, Tensor] = {}
        for step in self.steps:
            purpose = ("step", step.name, client, round)
            random = _generator(seed, *purpose)
            noise = Noise(seed, self.secret, "noise", *purpose, *input_of(self.secret, tensors, before, slots))
            tensors, own = step.on_client(tensors, slots, ClientContext(client, round, before, random, noise))
            kept |= own
        return tensors, kept

    def forms(self, tensors: State) -> dict[Key, Form]:
        """What each tensor of an update, and each note, looks like as it travels; only shapes and types count."""
        forms = {key: Form(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
        for step in self.steps:
            forms = {key: step.form(form) for key, form in forms.items()} | dict(step.notes_to_server())
        return forms

    def upload_bytes(self, tensors: State) -> int:
        """The bytes of an update of these tensors, as on the wire without framing."""
        return sum(form.bytes for form in self.forms(tensors).values())

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        """An update that came, as the method gets it, and its weight.

        Args:
            update: as `on_client` made it.
            weight: a count > 0 of which only the ratios matter.
            before: the server's tensors before the round.

        Raises:
            ProtocolError: a step cannot take it.
        """
        for step in reversed(self.steps):
            update, weight = step.on_server(update, weight, before)
        return update, weight

    def mean(
        self,
        updates: Iterable[tuple[Update, int]],
        state: ServerState,
        round: int,
        seed: int,
        asked: int | None = None,
    ) -> Mean:
        """The mean of a round's updates, as the method gets it, and the slots that the server keeps.

        Args:
            updates: as `on_server` returned them, one at a time, in the order of client ids.
            state: the server's before the round.
            round: the round that ends.
            seed: the run's.
            asked: clients that were asked to train; None: those whose updates came.
        """
        weights: list[int] = []

        def arriving() -> Iterator[tuple[State, int]]:
            for update, weight in updates:
                weights.append(weight)
                yield update.tensors, weight

        reduction = next((step for step in self.steps if isinstance(step, Reduction)), None)
        reduce = weighted_mean if reduction is None else reduction.reduce
        mean = reduce(arriving(), state.tensors)
        return self._on_mean(mean, tuple(weights), state, round, seed, asked)

    def mean_of_sum(self, mean: State, weights: Sequence[int], state: ServerState, round: int, seed: int) -> Mean:
        """As `mean`, where the server knows the mean of what travelled, and no single update.

        Args:
            mean: of what was sent, in float64.
            weights: of the updates, in the order of client ids.
            state: the server's before the round.
            round: the round that ends.
            seed: the run's.
        """
        taken, _ = self.on_server(Update("", round, 1, mean), 1, state.tensors)  # an additive half may take the mean
        return self._on_mean(taken.tensors, tuple(weights), state, round, seed)

    def _on_mean(
        self,
        mean: State,
        weights: tuple[int, ...],
        state: ServerState,
        round: int,
        seed: int,
        asked: int | None = None,
    ) -> Mean:
        slots = dict(state.slots)
        for step in reversed(self.steps):
            if isinstance(step, MeanStep) and mean:
                purpose = ("step", step.name, round)
                random = _generator(seed, *purpose)
                of = input_of(self.secret, mean, {key: state.tensors[key] for key in mean if key in state.tensors})
                noise = Noise(seed, self.secret, "noise", *purpose, *of)
                context = MeanContext(round, state.tensors, weights, random, noise, asked)
                mean, own = step.on_mean(mean, slots, context)
                slots |= own
        return mean, slots


def _generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
