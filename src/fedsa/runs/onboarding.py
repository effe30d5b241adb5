"""Take clients that were not in a federation to adapters of their own, from the federation's result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch

from fedsa.adapters.algebra import padded, rank_of, ranked
from fedsa.adapters.similarity import clusters
from fedsa.client.batches import batched
from fedsa.client.evaluation import Personal
from fedsa.client.learner import Learner
from fedsa.client.state import initial_of_client, personal_tensors
from fedsa.client.training.job import Job
from fedsa.errors import UserError
from fedsa.federation import Federation
from fedsa.recipe import AdaptationSettings, Start
from fedsa.runs.personal import PersonalStates, Weighted, mean_personal, trained_keys
from fedsa.seeds import derive_seed
from fedsa.server import received_by
from fedsa.steps import make_chain
from fedsa.types import Key, Side, SplitName, State

__all__ = ["Adapted", "Onboarding", "cluster_means"]


@dataclass(frozen=True)
class Adapted:
    """A client that was taken to an adapter of its own.

    Attributes:
        client: its id.
        tensors: what it ends with.
        candidates: how many starts there were to choose from, by the loss on its training rows.
        before: each measured split's metrics with the tensors that it starts from.
        after: the same with those that it ends with.
    """

    client: str
    tensors: State
    candidates: int
    before: Mapping[SplitName, Mapping[str, float]]
    after: Mapping[SplitName, Mapping[str, float]]


@final
class Onboarding:
    """Takes clients that were not in a federation to adapters of their own.

    Args:
        federation: model, task and the clients' rows.
        states: the federation's result.
        settings: how.
    """

    def __init__(self, federation: Federation, states: PersonalStates, settings: AdaptationSettings) -> None:
        self._federation, self._states, self._settings = federation, states, settings
        self._keys = tuple(states.initial)
        recipe, algorithm = federation.recipe, federation.algorithm
        self._personal = trained_keys(recipe.rounds, algorithm, self._keys, personal=True)
        self._all = trained_keys(recipe.rounds, algorithm, self._keys, personal=False)

    def choices(self) -> list[tuple[Start, bool]]:
        """Return every start and freeze_shared that the method and the clients' consent leave."""
        starts: tuple[Start, ...] = ("initial", "mean", "nearest") if self._settings.share_personal else ("initial",)
        shares = self._personal != self._all
        freezings = [freeze for freeze in (False, True) if (self._personal if freeze else self._all)]
        return [
            (start, freeze)
            for freeze in freezings
            if shares or not freeze
            for start in (starts if self._personal else starts[:1])
        ]

    def take_in(
        self,
        clients: Sequence[str],
        start: Start,
        *,
        freeze_shared: bool,
        splits: Sequence[SplitName] = ("test",),
    ) -> Iterator[Adapted]:
        """Yield clients with adapters of their own, in their order.

        Args:
            clients: ids, of the federation's rows.
            start: where their personal tensors begin.
            freeze_shared: train the personal tensors only.
            splits: what is measured before and after.

        Raises:
            UserError: nothing is left to be trained, or the clients do not share what the start needs.
            TrainingError: a training or evaluation went wrong.
        """
        keys = self._personal if freeze_shared else self._all
        if not keys:
            raise UserError(
                f"freeze_shared leaves nothing to train: {self._federation.recipe.algorithm} keeps nothing at the "
                "client; leave it out"
            )
        learner = self._learner
        for group in batched(clients, learner.together):
            begun = [self._begin(client, start) for client in group]
            tensors = [own for own, _ in begun]
            before = self._measured(group, tensors, splits)
            jobs = [self._job(client, own, self._personal) for client, own in zip(group, tensors, strict=True)]
            if start == "initial":  # what the run's clients began with: a head of its own is warmed up as theirs were
                tensors = [result.tensors for result in learner.warm_heads(jobs)]
            jobs = [replace(job, tensors=own, keys=keys) for job, own in zip(jobs, tensors, strict=True)]
            ended = [result.tensors for result in learner.train(jobs)]
            after = self._measured(group, ended, splits)
            for place, client in enumerate(group):
                yield Adapted(client, ended[place], begun[place][1], before[place], after[place])

    @cached_property
    def _learner(self) -> Learner:
        """The federation's, with training of the adaptation's length: the schedule spans it."""
        learner, length = self._federation.learner, self._settings.length
        training = learner.training.at_rate(self._settings.learning_rate).model_copy(
            update={
                "local_steps": length.get("steps"),
                "local_epochs": length.get("epochs"),
                "proximal_mu": 0.0,
                "optimizer_state": "reset",
            }
        )
        return replace(learner, training=training)

    def _job(self, client: str, tensors: State, keys: tuple[Key, ...]) -> Job:
        return Job(
            client=client,
            round=1,
            rounds=1,
            seed=derive_seed(self._federation.recipe.seed, "adaptation"),
            tensors=tensors,
            keys=keys,
            received=(),
            optimizer_state={},
            rows=self._federation.rows.partition.clients[client].train,
            rate_setting=("adaptation" if self._settings.learning_rate else "training") + ".learning_rate",
        )

    def _begin(self, client: str, start: Start) -> tuple[State, int]:
        """The tensors that a client begins with, and the number of candidates that they were chosen from."""
        federation, states = self._federation, self._states
        recipe, algorithm = federation.recipe, federation.algorithm
        initial = initial_of_client(
            states.initial,
            algorithm,
            client,
            seed=recipe.seed,
            own_a=recipe.adapter.own_initial_a,
            rank=federation.ranks.get(client),
        )
        rank = rank_of(initial)
        received = received_by(
            algorithm, states.server, client, recipe.rounds + 1, steps=make_chain(recipe.steps), rank=rank
        )
        newcomer = algorithm.models(personal_tensors(algorithm, initial, None, received))
        candidates: list[State] = [{**newcomer, **ranked(personal, rank)} for personal in self._starts(start)]
        if federation.class_priors is not None and states.has_class_priors:
            candidates = [federation.class_priors.added(client, each) for each in candidates]
        if len(candidates) == 1:
            return candidates[0], 1
        rows = federation.rows.partition.clients[client].train
        losses = [metrics["loss"] for metrics in self._evaluated([Personal(client, each, rows) for each in candidates])]
        return candidates[int(np.argmin(losses))], len(candidates)

    def _starts(self, start: Start) -> list[State]:
        """Return the candidates for the personal tensors' values, of the full rank."""
        if start == "initial":
            return [{}]
        if not self._settings.share_personal:
            raise UserError(
                f"start = {start} needs the mean of clients' personal tensors, which do not leave the clients in this "
                "run: use start = initial, or a run with adaptation.share_personal = true in its recipe"
            )
        if start == "mean":
            return [self._mean]
        return self._clusters

    @cached_property
    def _mean(self) -> State:
        return mean_personal(self._states.trained(), self._personal, self._states.initial)

    @cached_property
    def _clusters(self) -> list[State]:
        seen = [({key: tensors[key] for key in self._personal}, weight) for tensors, weight in self._states.trained()]
        return cluster_means(seen, self._states.initial, self._settings.clusters)

    def _measured(
        self, clients: Sequence[str], tensors: Sequence[State], splits: Sequence[SplitName]
    ) -> list[dict[SplitName, dict[str, float]]]:
        parts = self._federation.rows.partition.clients
        results: list[dict[SplitName, dict[str, float]]] = [{} for _ in clients]
        for split in splits:
            personal = [
                Personal(client, own, getattr(parts[client], split))
                for client, own in zip(clients, tensors, strict=True)
            ]
            for result, metrics in zip(results, self._evaluated(personal), strict=True):
                result[split] = metrics
        return results

    def _evaluated(self, personal: Sequence[Personal]) -> list[dict[str, float]]:
        return [metrics for _, metrics in self._learner.evaluate(personal)]


def cluster_means(seen: Sequence[Weighted], initial: State, number: int = 0) -> list[State]:
    """Return the weighted mean of each cluster of clients; one empty state if there are no clients.

    Clients are alike where what their B sides learned points in the same direction (cosine, average linkage); where
    nothing on the B side is personal, all that is personal counts.

    Args:
        seen: clients' personal tensors and weights.
        initial: the values that they all started from, of the full rank.
        number: of clusters; 0: the square root of the number of clients, rounded.
    """
    if not seen:
        return [{}]
    keys = tuple(seen[0][0])
    count = min(len(seen), number or round(math.sqrt(len(seen))))
    if count < 2:
        return [mean_personal(seen, keys, initial)]
    told = [key for key in keys if key.factor.side is Side.B] or keys
    learned = torch.stack(
        [
            torch.cat([(padded(tensors[key], initial[key].shape) - initial[key]).double().flatten() for key in told])
            for tensors, _ in seen
        ]
    )
    labels = clusters(learned, count)
    return [
        mean_personal([each for each, own in zip(seen, labels, strict=True) if own == label], keys, initial)
        for label in dict.fromkeys(labels)
    ]
