"""A client trains once more, from the state that the run left, so that an attack has an update to look at.

A run keeps no updates, so they are made anew in memory; nothing of it is written. The trainer, the method's own half
and the steps at a client are the run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from fedsa.accounting import noise_of, steps_of
from fedsa.client.training.job import Job
from fedsa.client.training.private import Privacy
from fedsa.models.dropout import without_dropout
from fedsa.recipe import ClientPrivacySettings, ExamplePrivacySettings, TrainingSettings
from fedsa.runs.audit.subject import Subject
from fedsa.seeds import derive_seed
from fedsa.steps import make_chain
from fedsa.tasks.base import IntArray
from fedsa.texts.words import counted
from fedsa.types import Key, State, Update

__all__ = [
    "OneStep",
    "Training",
    "change",
    "in_sum",
    "mean_change",
    "privacy_in_words",
    "run_training",
    "train_again",
    "unprotected",
    "weights_of",
]

_SGD_RATE = 0.1
"""Of SGD, where the run has another optimiser, whose rate means something else."""


@final
@dataclass(frozen=True)
class Training:
    """How a client trains once more.

    Attributes:
        steps: of the optimiser.
        batch_size: rows of a step.
        optimizer: ``sgd`` or ``adamw``.
        dropout: as the model and the adapter have it; False: nothing is dropped.
        privacy: how rows are protected, with the noise that the whole run needs; None: they are not.
        learning_rate: None: the run's; of SGD 0.1, if the run has AdamW.
        bare: what is sent is seen as the training left it, before any step at the client: so a control must be.
    """

    steps: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    dropout: bool = True
    privacy: ExamplePrivacySettings | None = None
    learning_rate: float | None = None
    bare: bool = False

    @property
    def in_words(self) -> str:
        """What it is, for people."""
        name = {"sgd": "SGD", "adamw": "AdamW"}[self.optimizer]
        dropped = "" if self.dropout else ", no dropout"
        return f"{counted(self.steps, 'step')} of {name}, batch {self.batch_size}{dropped}"

    @property
    def rows(self) -> int:
        """How many rows it takes to train on each row once."""
        return self.steps * self.batch_size


OneStep = Training(1, 1, "sgd", dropout=False, bare=True)
"""What tells most: one row, one step of plain SGD, no dropout, no step at the client."""


def privacy_in_words(subject: Subject, how: Training | None = None) -> str:
    """What protects the rows of an update.

    Args:
        subject: the run.
        how: the update's training; None: the run's.
    """
    recipe, parts = subject.federation.recipe, []
    own = recipe.privacy if isinstance(recipe.privacy, ExamplePrivacySettings) else None
    rows = own if how is None else how.privacy
    if rows is not None:
        bound = f"σ = {rows.noise_multiplier:g}" if rows.target_epsilon is None else f"ε ≤ {rows.target_epsilon:g}"
        parts.append(f"differential privacy of each row, {bound}")
    elif isinstance(recipe.privacy, ClientPrivacySettings) and not (how and how.bare):
        of_client = recipe.privacy.noise_at == "client"
        parts.append(
            "differential privacy of each client, noise at the client"
            if of_client
            else "each client's change is clipped (the noise comes at the server, after what is seen here)"
        )
    if subject.summed:
        parts.append("secure aggregation")
    return ", ".join(parts) or "none"


def in_sum(subject: Subject, how: Training) -> str:
    """What a server sees of an update behind secure aggregation, in words."""
    return f"the mean of {counted(len(subject.together), 'client')}, each of {how.in_words}"


def run_training(subject: Subject) -> Training:
    """The training of a round as the run's recipe has it; with ``local_epochs`` the median client's steps."""
    settings, privacy = subject.federation.recipe.training, subject.federation.recipe.privacy
    rows = subject.federation.rows.partition.clients
    own = privacy if isinstance(privacy, ExamplePrivacySettings) else None
    return Training(
        int(np.median([steps_of(settings, len(rows[client].train)) for client in subject.clients])),
        settings.batch_size * settings.gradient_accumulation_steps,
        settings.optimizer,
        privacy=own,
    )


def unprotected(how: Training) -> Training:
    """The same training without any protection: for controls."""
    return replace(how, privacy=None, bare=True)


def train_again(
    subject: Subject, client: str, start: State, rows: IntArray, how: Training, *purpose: str | int
) -> State:
    """Return a client's tensors after it has trained on rows: what it sends as the server takes it, the rest as it is.

    Args:
        subject: the run.
        client: its id.
        start: what it begins with.
        rows: it goes through them in random passes.
        how: the training.
        purpose: for the order of the rows, dropout and noise.

    Raises:
        TrainingError: the loss is not finite.
    """
    federation, recipe = subject.federation, subject.federation.recipe
    round = recipe.rounds + 1
    seed = derive_seed(recipe.seed, "audit", *purpose)
    plans = {key: federation.algorithm.plan(key, 1) for key in start}
    job = Job(
        client=client,
        round=1,
        rounds=1,
        seed=seed,
        tensors=start,
        keys=subject.keys,
        received=tuple(key for key, plan in plans.items() if plan.received),
        optimizer_state={},
        rows=rows,
        penalty=federation.algorithm.penalty,
    )
    training = _settings(recipe.training, how)
    privacy = None
    if how.privacy is not None:
        rows_of_run = len(federation.rows.partition.clients[client].train)
        noise = noise_of(how.privacy, recipe.training, rows_of_run, recipe.rounds)
        privacy = Privacy(how.privacy.model_copy(update={"noise_multiplier": noise}))
    learner = replace(federation.learner, training=training, privacy=privacy)
    with nullcontext() if how.dropout else without_dropout(federation.model.model):
        (result,) = learner.train([job])
    tensors = federation.algorithm.after_training(start, result.tensors, round)
    return tensors if how.bare else {**tensors, **_taken(subject, client, start, tensors, seed)}


def _taken(subject: Subject, client: str, start: State, tensors: State, seed: int) -> State:
    """What a client sends, as the server takes it: through the halves of the run's steps."""
    chain, round = make_chain(subject.federation.recipe.steps), subject.federation.recipe.rounds + 1
    before = {key: start[key] for key in tensors if subject.is_sent(key)}
    sent, _ = chain.on_client(
        {key: tensors[key] for key in before},
        {},
        client=client,
        round=round,
        before={**before, **chain.notes_to_client(subject.slots)},
        seed=seed,
    )
    taken, _ = chain.on_server(Update(client, round, 1, sent), 1, before)
    return {key: tensor for key, tensor in taken.tensors.items() if key in before}


def _settings(settings: TrainingSettings, how: Training) -> TrainingSettings:
    """The run's settings, for one round of so many steps at the peak rate."""
    rate = how.learning_rate
    if rate is None:
        rate = _SGD_RATE if (how.optimizer, settings.optimizer) == ("sgd", "adamw") else settings.learning_rate
    update = {
        "local_steps": how.steps,
        "local_epochs": None,
        "batch_size": how.batch_size,
        "gradient_accumulation_steps": 1,
        "optimizer": how.optimizer,
        "optimizer_state": "reset",
        "learning_rate": rate,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "momentum": settings.momentum if how.optimizer == "sgd" else 0.0,
        "group_by_length": False,
    }
    if how.privacy is None:
        update |= {"trainer": "sequential", "cohort_size": 0, "packing": False}
    return settings.model_copy(update=update)


def change(before: State, after: State, keys: Sequence[Key]) -> dict[Key, Tensor]:
    """How much tensors have changed, in float32."""
    return {key: after[key].float() - before[key].float() for key in keys}


def weights_of(subject: Subject) -> dict[str, float]:
    """What each client counts in the run's mean."""
    rows = subject.federation.rows.partition.clients
    by_rows = subject.federation.recipe.weighting == "num_examples"
    return {client: float(len(rows[client].train)) if by_rows else 1.0 for client in subject.together}


def mean_change(changes: Mapping[str, Mapping[Key, Tensor]], weights: Mapping[str, float]) -> dict[Key, Tensor]:
    """The weighted mean of clients' changes: all that a server sees with secure aggregation.

    Args:
        changes: client id to its change.
        weights: of each client.
    """
    total = sum(weights[client] for client in changes)
    summed: dict[Key, Tensor] = {}
    for client, tensors in changes.items():
        for key, tensor in tensors.items():
            part = tensor.double() * (weights[client] / total)
            summed[key] = summed[key] + part if key in summed else part
    return {key: tensor.to(torch.float32) for key, tensor in summed.items()}
