"""A learner: a model, a task and encoded rows, which train and measure clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch

from fedsa.client.evaluation import Mixing, Personal, Sampling, evaluate
from fedsa.client.training import cohort, head_warmup, private, sequential
from fedsa.client.training.job import Job, TrainingResult, check_start, highest_rate
from fedsa.errors import TrainingError
from fedsa.models import AdaptedModel
from fedsa.recipe import ReconstructionSettings, TrainingSettings
from fedsa.seeds import derive_seed
from fedsa.tasks.base import Encoded, Task
from fedsa.texts.words import counted

__all__ = ["Learner"]


@final
@dataclass(frozen=True)
class Learner:
    """Trains and measures clients. It knows no round, and keeps nothing between two calls.

    Attributes:
        model: the base with its adapter; clients use it in turn, or many of them in one pass.
        task: gives losses and metrics.
        encoded: every row, as tokens or pixels.
        training: how clients train.
        batch_size: rows of one forward pass in evaluation.
        mixing: how clients' adapters are weighed for each row in evaluation; None: they are added as in training.
        privacy: how rows are protected in training; None: they are not.
    """

    model: AdaptedModel
    task: Task
    encoded: Encoded
    training: TrainingSettings
    batch_size: int
    mixing: Mixing | None = None
    privacy: private.Privacy | None = None

    @property
    def together(self) -> int:
        """How many clients go through the model in one pass, at least one."""
        return max(1, self.training.cohort_size)

    def train(self, jobs: Sequence[Job]) -> Sequence[TrainingResult]:
        """Train jobs of one round and return their results, in the same order.

        What is trained are the items that the task makes of the jobs' rows.

        Raises:
            TrainingError: a loss, or a tensor that a job begins with, is not finite; or memory ran out.
        """
        for job in jobs:
            check_start(job, self.training)
        jobs = self._items(jobs)
        with _explaining_out_of_memory(jobs, self.model):
            if self.privacy is not None:
                return private.train(
                    jobs,
                    self.privacy,
                    model=self.model,
                    task=self.task,
                    encoded=self.encoded,
                    settings=self.training,
                )
            if self.training.trainer == "cohort":
                return cohort.train(
                    jobs,
                    model=self.model,
                    task=self.task,
                    encoded=self.encoded,
                    settings=self.training,
                    pack=bool(self.training.packing),
                )
            return [
                sequential.train(job, model=self.model, task=self.task, encoded=self.encoded, settings=self.training)
                for job in jobs
            ]

    def warm_heads(self, jobs: Sequence[Job]) -> Sequence[TrainingResult]:
        """Fit the heads alone of the clients that have never trained, and return the results.

        Raises:
            TrainingError: the training went wrong.
        """
        jobs = self._items(jobs)
        with _explaining_out_of_memory(jobs, self.model):
            return head_warmup.warm_up(
                jobs, model=self.model, task=self.task, encoded=self.encoded, settings=self.training
            )

    def fit_head(self, job: Job, epochs: int) -> TrainingResult:
        """Fit a client's head alone as its warm-up does, and return the result.

        Args:
            job: of a client that has never trained; its keys are those of the head. A head that the server has sent is
                fitted too: the job says of no tensor that it was received.
            epochs: passes over its rows.

        Raises:
            TrainingError: the training went wrong.
        """
        training = self.training.model_copy(update={"head_warmup_epochs": epochs})
        (result,) = replace(self, training=training).warm_heads([job])
        return result

    def fit_personal(self, jobs: Sequence[Job], settings: ReconstructionSettings) -> Sequence[TrainingResult]:
        """Fit the personal tensors (trained, not received) anew, the others frozen, and return the results.

        The batches have a seed of their own: they are not those that the round's training goes on with.

        Args:
            jobs: of one round, as a client that keeps nothing prepares them: its personal tensors have their initial
                values.
            settings: says how long and at which rate.

        Returns:
            One result for each job; without metrics where nothing personal is trained in the round.

        Raises:
            TrainingError: the training went wrong.
        """
        personal = tuple(key for job in jobs[:1] for key in job.keys if key not in job.received)
        if not personal:
            return [TrainingResult(job.tensors, {}, {}) for job in jobs]
        training = self.training.at_rate(settings.learning_rate).model_copy(
            update={
                "local_steps": settings.steps,
                "local_epochs": None,
                "schedule": "constant",  # the evaluation after the last round is beyond any schedule
                "warmup_fraction": 0.0,
            }
        )
        refits = [
            replace(
                job,
                seed=derive_seed(job.seed, "reconstruction"),
                keys=personal,
                received=(),
                optimizer_state={},
                rate_setting="reconstruction.learning_rate" if settings.learning_rate else job.rate_setting,
            )
            for job in jobs
        ]
        return replace(self, training=training).train(refits)

    def evaluate(
        self,
        clients: Iterable[Personal],
        *,
        moment: str = "",
        split: str = "",
        one_by_one: bool = False,
        mend: str = "",
        sampling: Sampling | None = None,
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield each client's id and metrics on its rows: the task's, and ``examples``.

        Args:
            clients: consumed as they are needed.
            moment: for errors: when it is measured, as ``round 3``.
            split: for errors: the name of the rows.
            one_by_one: measure clients one after the other, through the model's own adapter.
            mend: for errors: what to do where a metric is not finite.
            sampling: show some rows with what the model writes; the figures are the same without.

        Raises:
            TrainingError: a metric is not finite, or memory ran out; it says whose, and what to lower.
        """
        together = self.training.cohort_size if self.training.trainer == "cohort" and not one_by_one else 0
        measured = evaluate(
            self.model,
            self.task,
            self.encoded,
            clients,
            batch_size=self.batch_size,
            together=together,
            pack=bool(self.training.packing),
            mixing=self.mixing,
            sampling=sampling,
        )
        count = 0
        try:
            for client, metrics in measured:
                wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
                if wrong:
                    when = f", {moment}" if moment else ""
                    raise TrainingError(
                        f"client {client!r}{when}: the {f'{split} ' if split else ''}{' and '.join(wrong)} is not "
                        f"finite; {mend or f'lower {highest_rate(self.model.initial, self.training)}'}"
                    )
                count += 1
                yield client, metrics
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{f'{moment}: ' if moment else ''}out of memory on {self.model.device} in the "
                f"evaluation{f' on {split}' if split else ''}, after {counted(count, 'client')}; lower "
                "evaluation.batch_size or task.max_length"
            ) from error

    def _items(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, with the items that the task makes of their rows."""
        return [replace(job, rows=self.task.training_items(self.encoded, job.rows)) for job in jobs]


@contextmanager
def _explaining_out_of_memory(jobs: Sequence[Job], model: AdaptedModel) -> Iterator[None]:
    """A context in which an error says whose training ran out of memory, and what to lower.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        whose = (
            f"client {jobs[0].client!r}"
            if len(jobs) == 1
            else f"{counted(len(jobs), 'client')} from {jobs[0].client!r} on"
        )
        raise TrainingError(
            f"{whose}, round {jobs[0].round}: out of memory on {model.device}; lower "
            f"{'training.cohort_size, ' if len(jobs) > 1 else ''}training.batch_size or task.max_length, or set "
            "compute.gradient_checkpointing = true"
        ) from error
