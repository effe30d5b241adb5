"""A site: its clients' rows and states, and a learner. One hospital, or a laptop with 10,000 simulated clients."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, final

import torch

from fedsa.algorithms.base import Algorithm, Plan
from fedsa.client.batches import batched
from fedsa.client.class_prior import ClassPriors
from fedsa.client.evaluation import Personal, Sampling
from fedsa.client.halves import in_halves, mean_of_halves
from fedsa.client.learner import Learner
from fedsa.client.state import initial_of_client, own_tensors, personal_tensors
from fedsa.client.training.job import Job, TrainingResult
from fedsa.data.partition import ClientRows
from fedsa.recipe import ReconstructionSettings
from fedsa.steps import PLAIN, Chain
from fedsa.store import ClientState
from fedsa.system.process import give_back
from fedsa.types import Key, Moment, Payload, Payloads, Side, SplitName, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ClientStates", "Site", "with_secret"]


class ClientStates(Protocol):
    """Where clients' states outlive a round: at the site. `ClientStateFiles` is one."""

    def load_client(self, client: str, round: int) -> ClientState | None:
        """The state as it was after ``round``; None: the client had not trained by then."""
        ...

    def last_round(self, client: str) -> int:
        """The last round that a client has trained in; 0: none."""
        ...

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        """Keep the state that ``round`` left; it may be changed afterwards."""
        ...

    def save_personal(self, client: str, round: int, tensors: State) -> None:
        """Keep a client's tensors of its test after ``round`` that no state tells; all, if its site exports."""
        ...

    def prune(self, rounds: Collection[int]) -> None:
        """Delete the states that none of these rounds needs."""
        ...

    def load_ahead(self, clients: Iterable[str], round: int) -> None:
        """Get ready to load states of ``round``, in this order."""
        ...

    def settle(self) -> None:
        """Wait until all that was kept is safe on the disk."""
        ...


@final
@dataclass(frozen=True)
class Site:
    """Some clients of a federation: they take in payloads, train, are measured, and hand back updates.

    Attributes:
        algorithm: the method.
        learner: trains and measures.
        rows: client id to its rows in ``learner.encoded``.
        states: where clients' states are kept.
        rounds: of the whole run.
        seed: the run's.
        steps: what happens to updates on their way.
        ranks: client id to its rank, where that is less than the adapter's.
        own_initial_a: each client starts with an A of its own.
        reconstruction: how clients that keep nothing fit their personal tensors anew; None: they keep their state.
        fit_head_epochs: passes over a client's training rows that fit its head before it is measured, as long as it has
            not trained; 0: none.
        class_priors: what each client's head has of its own from the start; None: nothing.
        keeps_tested: what a client is tested with after the aggregate is kept, for a site that exports by itself.
    """

    algorithm: Algorithm
    learner: Learner
    rows: Mapping[str, ClientRows]
    states: ClientStates
    rounds: int
    seed: int
    steps: Chain = PLAIN
    ranks: Mapping[str, int] = field(default_factory=dict)
    own_initial_a: bool = False
    reconstruction: ReconstructionSettings | None = None
    fit_head_epochs: int = 0
    class_priors: ClassPriors | None = None
    keeps_tested: bool = False

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Train clients for one round, each keeping its new state, and yield their updates.

        Args:
            payloads: what the server sends them. They are taken as they are needed: as many at a time as go through the
                model at once.

        Raises:
            TrainingError: the training went wrong; of the clients that trained together nothing is kept.
        """
        self.states.load_ahead(payloads, payloads.round - 1)
        for clients in batched(payloads, self.learner.together):
            jobs, results = self._trained(_sharing([self.prepare(payloads[client]) for client in clients]))
            for job, result in zip(jobs, results, strict=True):
                yield self.finish(job, result)
            give_back()

    def prepare(self, payload: Payload) -> Job:
        """The training of a client in a round, from what the server sends to it."""
        client, round = payload.client, payload.round
        state = self.states.load_client(client, round - 1)
        plans = self._plans(round)
        received = {key: value for key, value in payload.tensors.items() if key in plans}
        notes = {key: value for key, value in payload.tensors.items() if key not in plans}  # of the steps
        tensors = personal_tensors(self.algorithm, self.initial(client), state, received, for_training=True)
        return Job(
            client=client,
            round=round,
            rounds=self.rounds,
            seed=self.seed,
            tensors=tensors,
            keys=tuple(key for key, plan in plans.items() if plan.trained),
            received=tuple(key for key, plan in plans.items() if plan.received),
            optimizer_state=state.optimizer_state if state else {},
            rows=self.rows[client].train,
            stored=tuple(state.tensors) if state else (),
            penalty=self.algorithm.penalty,
            version=payload.version,
            before={**{key: tensors[key] for key, plan in plans.items() if plan.sent}, **notes},
            step_state=state.step_state if state else {},
        )

    def finish(self, job: Job, result: TrainingResult) -> Update:
        """Keep the state that a training left, and return what is sent."""
        plans, algorithm = self._plans(job.round), self.algorithm
        tensors = algorithm.after_training(job.tensors, {**job.tensors, **result.tensors}, job.round)
        outgoing = algorithm.outgoing(job.tensors, tensors, result.halves, job.round)
        sent, step_state = self.steps.on_client(
            {key: outgoing[key] for key, plan in plans.items() if plan.sent},
            job.step_state,
            client=job.client,
            round=job.round,
            before=job.before,
            seed=self.seed,
        )
        if self.reconstruction is None:
            own = {key: outgoing[key] for key, plan in plans.items() if not (plan.sent or algorithm.in_model(key))}
            changed = {
                key: own.get(key, tensors[key])
                for key, plan in plans.items()
                if plan.trained or plan.received or key in job.stored or not algorithm.in_model(key)
            }
            kept = ClientState(changed, result.optimizer_state, job.version, step_state)
            self.states.save_client(job.client, job.round, kept)
        examples = len(self.rows[job.client].train)
        return Update(job.client, job.round, examples, sent, result.metrics, base_version=job.version)

    def evaluate(
        self,
        payloads: Payloads,
        split: SplitName,
        moment: Moment,
        *,
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield each client's id and metrics on a split, as of the end of the round before the payloads'.

        Args:
            payloads: what the server would send them for the next round.
            split: the rows.
            moment: what a client is measured with: the state that its own training left, or what it would use once it
                has taken in the payload.
            sampling: show some rows with what the model writes; the figures are the same without.

        Raises:
            TrainingError: a metric is not finite, or memory ran out.
        """
        round = payloads.round - 1
        mend = "" if round else "the base model itself gives it: take another"
        return self.learner.evaluate(
            self._personal(payloads, split, moment),
            moment=f"round {round}",
            split=split,
            mend=mend,
            sampling=sampling,
        )

    def initial(self, client: str) -> State:
        """Return the tensors that a client starts the run with."""
        return initial_of_client(
            self.learner.model.initial,
            self.algorithm,
            client,
            seed=self.seed,
            own_a=self.own_initial_a,
            rank=self.ranks.get(client),
        )

    def _personal(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[Personal]:
        if moment == "aggregate" and self.reconstruction is not None:
            yield from self._reconstructed(payloads, split)
            return
        round = payloads.round - 1
        self.states.load_ahead(payloads, round)
        for client in payloads:
            state, initial = self.states.load_client(client, round), self.initial(client)
            tensors = (
                own_tensors(initial, state)
                if moment == "training"
                else personal_tensors(self.algorithm, initial, state, payloads[client].tensors)
            )
            tensors = self._in_model(client, tensors)
            head = self._fitted_head(client, payloads.round, tensors) if state is None else {}
            tensors = {**tensors, **head}
            if split == "test" and moment == "aggregate" and (self.keeps_tested or head):
                self.states.save_personal(client, round, tensors if self.keeps_tested else head)
            yield Personal(client, tensors, getattr(self.rows[client], split))

    def _fitted_head(self, client: str, round: int, tensors: State) -> State:
        """Return the head of a client that has not trained, fitted to its training rows for a measurement alone.

        Args:
            client: its id.
            round: that comes next.
            tensors: the model's, as the client holds them.
        """
        heads = tuple(key for key in tensors if key.factor.side is Side.HEAD)
        if not self.fit_head_epochs or not heads:
            return {}
        job = Job(client, round, self.rounds, self.seed, tensors, heads, (), {}, self.rows[client].train)
        fitted = self.learner.fit_head(job, self.fit_head_epochs).tensors
        return {key: fitted[key] for key in heads}

    def _reconstructed(self, payloads: Payloads, split: SplitName) -> Iterator[Personal]:
        """Yield clients with personal tensors that were fitted to their training rows just now.

        Those that are tested are kept: they are what is exported, and cannot be computed from the states.
        """
        for clients in batched(payloads, self.learner.together):
            jobs = [self._for_model(self.prepare(payloads[client])) for client in clients]
            results = self.learner.fit_personal(jobs, self._reconstruction)
            for job, result in zip(jobs, results, strict=True):
                if split == "test":
                    self.states.save_personal(job.client, job.round - 1, result.tensors)
                yield Personal(job.client, result.tensors, getattr(self.rows[job.client], split))

    @property
    def _reconstruction(self) -> ReconstructionSettings:
        if self.reconstruction is None:
            raise ValueError("clients of this site keep their state: nothing is fitted anew")
        return self.reconstruction

    def _trained(self, jobs: Sequence[Job]) -> tuple[Sequence[Job], Sequence[TrainingResult]]:
        """Return the jobs, each from where its own training begins, and their results."""
        given = [self._for_model(job) for job in jobs]
        if self.reconstruction is None:
            first, name = self.learner.warm_heads(given), "head_warmup_loss"
            keys = [job.keys for job in jobs]
        else:
            first, name = self.learner.fit_personal(given, self.reconstruction), "reconstruction_loss"
            every = not self.reconstruction.freeze_personal
            keys = [tuple(key for key in job.keys if key in job.received or every) for job in jobs]
        first = [self._from_model(job.client, begun) for job, begun in zip(jobs, first, strict=True)]
        jobs = [
            replace(job, tensors={**job.tensors, **begun.tensors}, keys=trained)
            for job, begun, trained in zip(jobs, first, keys, strict=True)
        ]
        results = self._learned([self._for_model(job) for job in jobs])
        learned = [self._from_model(job.client, result) for job, result in zip(jobs, results, strict=True)]
        return jobs, [_with_metrics(result, begun, name) for result, begun in zip(learned, first, strict=True)]

    def _learned(self, jobs: Sequence[Job]) -> Sequence[TrainingResult]:
        """Return what training comes to: on all rows at once, or on each half of them, as the method has it."""
        if not any(self.algorithm.trains_halves(job.round) for job in jobs[:1]):
            return self.learner.train(jobs)
        parts = [in_halves(job) for job in jobs]
        one, two = (self.learner.train([part[place] for part in parts]) for place in (0, 1))
        return [mean_of_halves(*both) for both in zip(one, two, strict=True)]

    def _for_model(self, job: Job) -> Job:
        """Return a job as a learner gets it: with the model's tensors alone."""
        return replace(job, tensors=self._in_model(job.client, job.tensors))

    def _in_model(self, client: str, tensors: State) -> State:
        """Return a client's tensors as its model has them."""
        own = self.algorithm.models(tensors)
        return own if self.class_priors is None else self.class_priors.added(client, own)

    def _from_model(self, client: str, result: TrainingResult) -> TrainingResult:
        """Return a result of a learner with tensors as the method has them."""
        priors = self.class_priors
        if priors is None:
            return result
        halves = tuple(priors.taken_off(client, half) for half in result.halves)
        return replace(result, tensors=priors.taken_off(client, result.tensors), halves=halves)

    def _plans(self, round: int) -> dict[Key, Plan]:
        return {key: self.algorithm.plan(key, round) for key in self.algorithm.whole(self.learner.model.initial)}


def with_secret(site: Site, secret: bytes) -> Site:
    """Return a site that makes noise from a secret in place of the run's seed, which the server knows too."""
    privacy = site.learner.privacy and replace(site.learner.privacy, secret=secret)
    learner, steps = replace(site.learner, privacy=privacy), replace(site.steps, secret=secret)
    return replace(site, learner=learner, steps=steps)


def _with_metrics(result: TrainingResult, begun: TrainingResult, name: str) -> TrainingResult:
    """Return a result with the seconds of what came before it, and the loss of that under a name of its own."""
    seconds = result.metrics["seconds"] + begun.metrics.get("seconds", 0.0)
    before = {name: begun.metrics["loss"]} if begun.metrics else {}
    return replace(result, metrics={**result.metrics, "seconds": seconds, **before})


def _sharing(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs with one copy of what the server has added to the frozen weights, where they hold the same."""
    copies: dict[Key, list[Tensor]] = {}

    def one(key: Key, tensor: Tensor) -> Tensor:
        if key.factor.side is not Side.BASE:
            return tensor
        known = copies.setdefault(key, [])
        for other in known:
            if other is tensor or torch.equal(other, tensor):
                return other
        known.append(tensor)
        return tensor

    return [replace(job, tensors={key: one(key, tensor) for key, tensor in job.tensors.items()}) for job in jobs]
