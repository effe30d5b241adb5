"""Each client's tensors after a round of a run, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms.base import Algorithm
from fedsa.client.class_prior import class_priors
from fedsa.client.state import initial_of_client, own_tensors, personal_tensors
from fedsa.errors import RunFolderError, UserError
from fedsa.federation import client_ranks
from fedsa.server import load_state, received_by
from fedsa.steps import make_chain
from fedsa.store import RunFolder, recipe_of
from fedsa.types import Key, Side, State

__all__ = ["PersonalStates", "Weighted", "mean_personal", "trained_keys"]

Weighted = tuple[State, int]
"""A client's tensors, and its weight in a mean."""


def trained_keys(rounds: int, algorithm: Algorithm, keys: Iterable[Key], *, personal: bool) -> tuple[Key, ...]:
    """Return the tensors that a client trains in some round, in their order.

    Args:
        rounds: of the run.
        algorithm: the method.
        keys: every tensor of the adapter and the head.
        personal: only those that are never sent or received.
    """
    plans = {key: [algorithm.plan(key, round) for round in range(1, rounds + 1)] for key in keys}
    return tuple(
        key
        for key, by_round in plans.items()
        if any(plan.trained for plan in by_round)
        and not (personal and any(plan.sent or plan.received for plan in by_round))
    )


@final
class PersonalStates:
    """What clients of a run would use after a round.

    Args:
        folder: the run.
        algorithm: its method.
        round: the chosen or the final one; others are not kept.
    """

    def __init__(self, folder: RunFolder, algorithm: Algorithm, round: int) -> None:
        self._folder, self._algorithm, self._round = folder, algorithm, round
        self._about: Mapping[str, Mapping[str, Any]] = folder.read_json("clients.json")
        self.recipe, self.initial = recipe_of(folder), folder.load_initial()
        self.server = load_state(folder.server_states, round) if round else algorithm.init(self.initial)
        progress = folder.progress()
        self._chosen_round = 0 if progress is None else progress.chosen_round or 0
        counts = {client: about["train_labels"] for client, about in self._about.items() if "train_labels" in about}
        self._priors = class_priors(algorithm, self.initial, counts)
        self._ranks = client_ranks(self.recipe.adapter, list(self._about))

    def of(self, client: str, *, for_training: bool = False) -> State:
        """The tensors that a client would use: its own and the server's.

        Args:
            client: its id.
            for_training: those that its training would begin with.

        Raises:
            RunFolderError: there is no such client, or its files are not there.
            UserError: it was held out, and has an adapter of its own for the chosen round only.
        """
        kept = self._folder.client_states.load_personal(client, self._round) or {}
        if kept.keys() >= self.initial.keys():
            return kept
        held_out = bool(self._about.get(client, {}).get("held_out"))
        if held_out and self._round != self._chosen_round:
            raise UserError(
                f"client {client!r} was held out of the federation: it has an adapter for the chosen round only, "
                f"not for round {self._round}"
            )
        state, initial = self._folder.client_states.load_client(client, self._round), self._initial(client)
        is_head_fitted = self._fits_heads and state is None and not for_training
        if held_out or self.recipe.personal_state == "reconstruct" or (is_head_fitted and not kept):
            raise RunFolderError(
                f"{self._folder.path}: the tensors of client {client!r} after round {self._round}, which were fitted "
                "for the test, are missing: put their file back from a copy, or start the run again"
            )
        received = received_by(
            self._algorithm,
            self.server,
            client,
            self._round + 1,
            version=state.version if state else 0,
            steps=make_chain(self.recipe.steps),
        )
        tensors = personal_tensors(self._algorithm, initial, state, received, for_training=for_training)
        tensors = self._in_model(client, tensors)
        return {**tensors, **kept} if is_head_fitted else tensors

    def trained(self) -> Iterator[Weighted]:
        """Yield what each client of the federation would use, with its weight, of those that have trained.

        How frequent the classes are at a client is not in it: it is no one else's.
        """
        for client, tensors in self._each():
            yield self._common(client, tensors), self._weight(client)

    def own(self) -> Iterator[Weighted]:
        """Yield what each client's own training left, before the aggregate came, of those that have trained."""
        for client, tensors in self._each():
            state = self._folder.client_states.load_client(client, self._round)
            own = own_tensors(self._initial(client), state) if state else self._common(client, tensors)
            yield self._algorithm.models(own), self._weight(client)

    def _each(self) -> Iterator[tuple[str, State]]:
        for client, about in self._about.items():
            if not about.get("held_out"):
                tensors = self.of(client)
                if self._has_trained(client, tensors):
                    yield client, tensors

    def _has_trained(self, client: str, tensors: State) -> bool:
        """Whether a client has trained: it keeps a state then. One that keeps none has a tensor that is not initial."""
        if self.recipe.personal_state == "store":
            return self._folder.client_states.load_client(client, self._round) is not None
        initial = self.start(client)
        return any(
            not self._algorithm.plan(key, 1).received and not torch.equal(value, initial[key])
            for key, value in tensors.items()
            if not (self._fits_heads and key.factor.side is Side.HEAD)
        )

    @property
    def _fits_heads(self) -> bool:
        """The head of a client that has not trained is fitted before it is measured."""
        return self.recipe.evaluation.fit_head_epochs > 0

    @property
    def has_class_priors(self) -> bool:
        """Whether clients' heads had how frequent each class is when they trained."""
        return self._priors is not None

    def start(self, client: str) -> State:
        """The model's tensors that a client started the run with."""
        return self._in_model(client, self._initial(client))

    def _in_model(self, client: str, tensors: State) -> State:
        own = self._algorithm.models(tensors)
        return own if self._priors is None else self._priors.added(client, own)

    def _common(self, client: str, tensors: State) -> State:
        return tensors if self._priors is None else self._priors.taken_off(client, tensors)

    def _initial(self, client: str) -> State:
        return initial_of_client(
            self.initial,
            self._algorithm,
            client,
            seed=self.recipe.seed,
            own_a=self.recipe.adapter.own_initial_a,
            rank=self._ranks.get(client),
        )

    def _weight(self, client: str) -> int:
        return int(self._about[client]["train_examples"]) if self.recipe.weighting == "num_examples" else 1


def mean_personal(states: Iterable[Weighted], keys: Sequence[Key], initial: State) -> dict[Key, Tensor]:
    """Return the weighted mean of clients' personal tensors; nothing if there are no clients.

    Args:
        states: clients' tensors and weights.
        keys: the personal ones.
        initial: for shapes, dtypes and, where clients' ranks differ, what no client has.
    """
    means = weighted_mean((({key: tensors[key] for key in keys}, weight) for tensors, weight in states), initial)
    return {key: mean.to(initial[key].dtype) for key, mean in means.items()}
