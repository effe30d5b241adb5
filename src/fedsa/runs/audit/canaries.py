"""An ε that is proved by guessing: rows that were in the training or not, by the toss of a coin.

Canaries are rows that the run has not trained on, with a class by chance where there are classes. Each is put among its
client's training rows with probability 1/2. The clients train on, as many steps as in the run, and the attacker says of
some canaries whether they were there. The more often he is right, the larger ε must be. Source: Steinke, Nasr and
Jagielski, arXiv:2305.08846.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt

from fedsa.accounting import epsilon_of, noise_of, sampling_of
from fedsa.errors import UserError
from fedsa.recipe import ClientPrivacySettings
from fedsa.runs.audit.finding import Finding
from fedsa.runs.audit.guessing import Scores, epsilon_proved
from fedsa.runs.audit.rows import alignment, row_losses
from fedsa.runs.audit.subject import Subject
from fedsa.runs.audit.training import Training, change, privacy_in_words, run_training, train_again
from fedsa.tasks.base import IntArray
from fedsa.tasks.classification import TokenRows
from fedsa.texts.words import counted
from fedsa.types import State

__all__ = ["canaries"]

_METHOD = "one-run auditing with canaries (Steinke, Nasr and Jagielski, arXiv:2305.08846)"
_DELTA = 1e-5
"""δ, where the run has no privacy of its own."""
_ALONE = 20
"""Passes over the canaries of the control, which trains on nothing else."""


def canaries(subject: Subject, training: Training | None = None, *, control: float | None = None) -> Iterator[Finding]:
    """Yield the ε that guesses on canaries prove.

    Args:
        subject: the run.
        training: how clients train on; None: as the run's recipe says, as many steps as in the whole run.
        control: what the control came to; None: it is made.

    Raises:
        UserError: the run protects whole clients, or its clients have no rows that they do not train on.
    """
    recipe = subject.federation.recipe
    if isinstance(recipe.privacy, ClientPrivacySettings):
        raise UserError(
            "canaries are rows, and this run protects whole clients: a bound would need hundreds of clients that take "
            "part or not; leave the attack `canaries` out"
        )
    own = run_training(subject)
    how = training or replace(own, steps=recipe.rounds * own.steps)
    subject = _with_random_classes(subject)
    planted = {client: _Planted.of(subject, client) for client in subject.clients if len(subject.others(client)) > 3}
    if not planted:
        raise UserError("canaries are rows that were not trained on, and no client has validation or test rows")
    parts = list(subject.parts())
    names = [part.name for part in parts] + ["adapter"]
    scores: dict[str, dict[str, Scores]] = {name: {} for name in names}
    for client, own_canaries in planted.items():
        before = subject.beginning(client)
        rows = np.concatenate([subject.federation.rows.partition.clients[client].train, own_canaries.there])
        after = train_again(subject, client, before, rows, how, "canaries", client)
        changed = change(before, after, subject.keys)
        aligned = alignment(subject, before, changed, own_canaries.rows, [part.keys for part in parts])
        for name, each in zip(names, [*aligned, _gains(subject, before, after, own_canaries.rows)], strict=True):
            scores[name][client] = each
    delta = _DELTA if how.privacy is None else how.privacy.target_delta
    control = _control(subject, planted, delta) if control is None else control
    accounted = _accounted(subject, planted, how)
    for name in names:
        guesses, correct = _guessed(scores[name], planted)
        count = sum(len(each.rows) for each in planted.values())
        yield Finding(
            attack="canaries",
            shared=name,
            leaves=name != "adapter" and next(part.leaves for part in parts if part.name == name),
            metric="ε, lower bound of 95 %",
            score=epsilon_proved(count, guesses, correct, delta),
            chance=0.0,
            control=control,
            control_is=f"training on the canaries alone, {counted(_ALONE, 'pass', 'passes')}, without privacy",
            interval=None,
            count=count,
            update=f"{how.in_words}, canaries among the rows",
            steps=how.steps,
            privacy=privacy_in_words(subject, how),
            method=_METHOD,
            more={"epsilon": accounted, "delta": delta, "guesses": guesses, "correct": correct},
        )


@final
@dataclass(frozen=True)
class _Planted:
    """The canaries of a client.

    Attributes:
        rows: all of them.
        is_in: of each, whether it is trained on.
    """

    rows: IntArray
    is_in: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, subject: Subject, client: str) -> _Planted:
        """Toss a coin for each."""
        rows = subject.others(client)
        return cls(rows, subject.random("canaries", client).random(len(rows)) < 0.5)

    @property
    def there(self) -> IntArray:
        """Those that are trained on."""
        there: IntArray = self.rows[self.is_in]
        return there


def _with_random_classes(subject: Subject) -> Subject:
    """The run with a class by chance for each canary, so that it must be learned by heart; the same without classes."""
    federation = subject.federation
    encoded, classes = federation.encoded, len(federation.rows.label_names)
    if not isinstance(encoded, TokenRows) or not federation.recipe.task.has_classes or classes < 2:
        return subject
    labels = encoded.labels.copy()
    for client in subject.clients:
        others = subject.others(client)
        labels[others] = subject.random("classes", client).integers(classes, size=len(others))
    return subject.with_federation(replace(federation, encoded=replace(encoded, labels=labels)))


def _gains(subject: Subject, before: State, after: State, rows: IntArray) -> Scores:
    return row_losses(subject, before, rows) - row_losses(subject, after, rows)


def _guessed(scores: Mapping[str, Scores], planted: Mapping[str, _Planted]) -> tuple[int, int]:
    """How many canaries were guessed, and how many of them right: a quarter is said to be in, a quarter out."""
    guesses = correct = 0
    for client, each in scores.items():
        order, quarter = np.argsort(-each, kind="stable"), len(each) // 4
        is_in = planted[client].is_in[order]
        guesses += 2 * quarter
        correct += int(is_in[:quarter].sum()) + int((~is_in[len(is_in) - quarter :]).sum())
    return guesses, correct


def _control(subject: Subject, planted: Mapping[str, _Planted], delta: float) -> float:
    """What is proved where one client trains on its canaries alone, by the loss."""
    client, own = next(iter(planted.items()))
    before, size = subject.beginning(client), min(8, max(1, len(own.there)))
    how = Training(_ALONE * -(-len(own.there) // size), size, "adamw", dropout=False, bare=True)
    after = train_again(subject, client, before, own.there, how, "canaries alone", client)
    guesses, correct = _guessed({client: _gains(subject, before, after, own.rows)}, planted)
    return epsilon_proved(len(own.rows), guesses, correct, delta)


def _accounted(subject: Subject, planted: Mapping[str, _Planted], how: Training) -> float | None:
    """The ε that the accountant says of this training, the largest of all clients; None: there is no bound."""
    recipe = subject.federation.recipe
    if how.privacy is None:
        return None
    largest = 0.0
    for client, own in planted.items():
        train = len(subject.federation.rows.partition.clients[client].train)
        noise = noise_of(how.privacy, recipe.training, train, recipe.rounds)
        training = recipe.training.model_copy(update={"batch_size": how.batch_size, "gradient_accumulation_steps": 1})
        spent = epsilon_of(noise, how.steps, how.privacy.target_delta, sampling_of(training, train + len(own.there)))
        largest = max(largest, spent)
    return largest if np.isfinite(largest) else None
