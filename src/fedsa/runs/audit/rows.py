"""Single rows as an attacker uses them: the loss of each, and the gradient of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsa.client.training.row_gradients import OneByOne, Values
from fedsa.errors import UserError
from fedsa.runs.audit.guessing import Scores
from fedsa.runs.audit.subject import Subject
from fedsa.tasks.base import IntArray
from fedsa.types import Key, State

__all__ = ["alignment", "items_of", "row_losses"]


def items_of(subject: Subject, rows: IntArray) -> IntArray:
    """What goes into a batch of each row.

    Raises:
        UserError: the task makes several items of a row.
    """
    items = subject.federation.task.training_items(subject.federation.encoded, rows)
    if len(items) != len(rows):
        raise UserError("the task makes several items of a row, and this attack looks at rows that are one item each")
    return items


def row_losses(subject: Subject, state: State, rows: IntArray) -> Scores:
    """The loss of each row, shape (rows,): with a state in the model, nothing dropped.

    Args:
        subject: the run.
        state: all tensors of a client.
        rows: their numbers.
    """
    federation = subject.federation
    model, task, encoded = federation.model, federation.task, federation.encoded
    items = items_of(subject, rows)
    model.write(state)
    order = np.argsort(encoded.lengths[items], kind="stable")
    losses = np.zeros(len(rows))
    with model.evaluating():
        for start in range(0, len(rows), federation.recipe.evaluation.batch_size):
            places = order[start : start + federation.recipe.evaluation.batch_size]
            batch = model.begin(encoded.batch(items[places]), [len(places)])
            sums, terms = task.losses(model.model, batch)
            losses[places] = (sums / terms).double().cpu().numpy()
    return losses


def alignment(
    subject: Subject, state: State, change: dict[Key, Tensor], rows: IntArray, parts: Sequence[Sequence[Key]]
) -> list[Scores]:
    """The cosine between each row's own downward gradient and a change, for several choices of tensors.

    Source: the passive attack with gradients on updates in federated learning (Li, Li and Ribeiro, ICLR 2023).

    Args:
        subject: the run.
        state: what the client had before the change.
        change: of the tensors that are seen.
        rows: their numbers.
        parts: choices of tensors.

    Raises:
        UserError: the task makes several items of a row.

    Returns:
        For each choice an array of shape (rows,).
    """
    federation = subject.federation
    model = federation.model
    keys = [key for key in model.keys if any(key in part for part in parts)]
    gradients_of = OneByOne(model, federation.task, federation.encoded)
    values = Values({key: value[None].to(model.device) for key, value in state.items()})
    scores = [np.zeros(len(rows)) for _ in parts]
    try:
        for number, row in enumerate(items_of(subject, rows)):
            _, gradients = gradients_of(values, keys, [0], np.array([row]), [0])
            for score, part in zip(scores, parts, strict=True):
                own = torch.cat([-gradients[key][0].flatten() for key in keys if key in part]).double().cpu()
                seen = torch.cat([change[key].flatten() for key in keys if key in part]).double().cpu()
                score[number] = float(own @ seen / (own.norm() * seen.norm()).clamp(min=1e-30))
    finally:
        model.streams.end()
        model.train_only(model.keys)
    return scores
