"""The chain of a run's steps: it takes an update through all of them, at the client and at the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, final

import torch

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import ServerState
from fedsa.seeds import derive_seed
from fedsa.steps.base import (
    ClientContext,
    Form,
    MeanContext,
    MeanStep,
    Reduction,
    Screening,
    Slots,
    Step,
    Verdict,
)
from fedsa.steps.noise import Noise, input_of
from fedsa.types import Key, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Chain"]

Mean: TypeAlias = "tuple[State, Slots]"
"""The mean of a round's updates, as the method gets it, and the slots that the server keeps."""


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
            forms = {key: step.form(key, form) for key, form in forms.items()} | dict(step.notes_to_server())
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
                before = {key: state.tensors[key] for key in mean if key in state.tensors}
                # Not how many were asked: that divides the sum together with its noise, and another noise on the same
                # sum would tell more.
                of = input_of(self.secret, mean, before, slots, {"weights": torch.tensor(weights)})
                noise = Noise(seed, self.secret, "noise", *purpose, *of)
                context = MeanContext(round, state.tensors, weights, random, noise, asked)
                mean, own = step.on_mean(mean, slots, context)
                slots |= own
        return mean, slots


def _generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
