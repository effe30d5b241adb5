"""Whether a row was trained on: told from an exported adapter, and from one round's update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedsa.errors import UserError
from fedsa.runs.audit.finding import Finding
from fedsa.runs.audit.guessing import Groups, Scores, area_of
from fedsa.runs.audit.rows import alignment, row_losses
from fedsa.runs.audit.subject import Subject
from fedsa.runs.audit.training import (
    OneStep,
    Training,
    change,
    in_sum,
    mean_change,
    privacy_in_words,
    run_training,
    train_again,
    weights_of,
)
from fedsa.tasks.base import IntArray
from fedsa.texts.words import counted
from fedsa.types import State

__all__ = ["membership", "of_adapters", "of_updates"]

_FEW = 16
"""Rows of the overfitted adapter, which is the control."""
_LONG = 100
"""Its steps."""
_OTHERS = 40
"""Rows that an update was not trained on, at the most: their gradients take time."""
_LOSS = "loss with the base less loss with the adapter (LoRA-Leak, arXiv:2507.18302)"
_GRADIENT = "cosine of the row's gradient and the update (Li, Li and Ribeiro, ICLR 2023)"


def membership(subject: Subject) -> Iterator[Finding]:
    """Yield what adapters and updates tell of whether a row was trained on.

    Args:
        subject: the run.

    Raises:
        UserError: no client has rows that it does not train on.
    """
    clients = [client for client in subject.clients if len(subject.others(client)) > 1]
    if not clients:
        raise UserError("membership needs rows that were not trained on, and no client has validation or test rows")
    yield of_adapters(subject, {client: subject.state(client) for client in clients})
    own = run_training(subject)
    for how in (replace(own, steps=1, optimizer="sgd"), own):
        yield from of_updates(subject, clients, how)


# -- from an adapter ---------------------------------------------------------------------------------------------------


def of_adapters(
    subject: Subject, states: Mapping[str, State], how: Training | None = None, *, control: float | None = None
) -> Finding:
    """What adapters tell of whether a row was trained on.

    Args:
        subject: the run.
        states: client id to its adapter.
        how: they were trained; None: as in the run.
        control: what the control came to; None: it is made.
    """
    groups = [
        _gains(subject, subject.start(client), state, subject.members(client), subject.others(client))
        for client, state in states.items()
    ]
    area = area_of(groups, subject.random("bootstrap"))
    if control is None:
        control = area_of(_overfitted(subject, next(iter(states))), subject.random("bootstrap")).value
    return Finding(
        attack="membership",
        shared="adapter",
        leaves=False,
        metric="AUC",
        score=area.value,
        chance=0.5,
        control=control,
        control_is=f"an adapter that has learned {counted(_FEW, 'row')} in {counted(_LONG, 'step')}, without privacy",
        interval=(area.low, area.high),
        count=sum(len(members) + len(others) for members, others in groups),
        update="the whole run" if how is None else how.in_words,
        steps=0 if how is None else how.steps,
        privacy=privacy_in_words(subject, how),
        method=_LOSS,
        note="An adapter leaves its client only if it is exported and given away.",
    )


def _gains(subject: Subject, start: State, state: State, members: IntArray, others: IntArray) -> tuple[Scores, Scores]:
    """How much lower the loss of each row has become."""
    rows = np.concatenate([members, others])
    gained = row_losses(subject, start, rows) - row_losses(subject, state, rows)
    return gained[: len(members)], gained[len(members) :]


def _overfitted(subject: Subject, client: str) -> Groups:
    """The control: an adapter that has seen few rows many times."""
    members, others = subject.members(client)[:_FEW], subject.others(client)
    start = subject.start(client)
    how = Training(_LONG, min(8, len(members)), "adamw", dropout=False, bare=True)
    state = train_again(subject, client, start, members, how, "overfitted")
    return [_gains(subject, start, state, members, others)]


# -- from an update ----------------------------------------------------------------------------------------------------


def of_updates(subject: Subject, clients: Sequence[str], how: Training) -> Iterator[Finding]:
    """Yield what updates tell of whether a row was trained on.

    Args:
        subject: the run.
        clients: whose updates; each has rows that it does not train on.
        how: they train.
    """
    parts = list(subject.parts())
    keys = [part.keys for part in parts]
    groups: list[list[tuple[Scores, Scores]]] = [[] for _ in parts]
    controls: list[list[tuple[Scores, Scores]]] = [[] for _ in parts]
    for training, found, summed in ((how, groups, subject.summed), (OneStep, controls, False)):
        changes = {}
        for client in subject.together if summed else clients:
            state, rows = subject.beginning(client), subject.trained(client, training.rows)
            if training.privacy is not None:  # its noise is computed for all rows: of fewer, each is drawn more often
                rows = subject.federation.rows.partition.clients[client].train
            after = train_again(subject, client, state, rows, training, "membership", client)
            changes[client] = change(state, after, subject.keys)
        mean = mean_change(changes, weights_of(subject)) if summed else {}
        for client in clients:
            # With privacy all rows are trained on, each by chance: so all may be asked about.
            members = subject.trained(client, training.rows if training.privacy is None else subject.most_rows)
            members = members[: subject.most_rows]
            asked = np.concatenate([members, subject.others(client)[:_OTHERS]])
            scores = alignment(subject, subject.beginning(client), mean or changes[client], asked, keys)
            for into, each in zip(found, scores, strict=True):
                into.append((each[: len(members)], each[len(members) :]))
    for part, own, control in zip(parts, groups, controls, strict=True):
        area = area_of(own, subject.random("bootstrap"))
        yield Finding(
            attack="membership",
            shared=part.name,
            leaves=part.leaves,
            metric="AUC",
            score=area.value,
            chance=0.5,
            control=area_of(control, subject.random("bootstrap")).value,
            control_is=f"{OneStep.in_words}, without privacy",
            interval=(area.low, area.high),
            count=sum(len(members) + len(others) for members, others in own),
            update=in_sum(subject, how) if subject.summed else how.in_words,
            steps=how.steps,
            privacy=privacy_in_words(subject, how),
            method=_GRADIENT,
            note="The attacker is given all that the client had before the round: B and head too.",
        )
