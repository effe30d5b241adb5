"""Honest measuring: each client on its own rows, figures over clients, and the one round that is chosen for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from fedsa.memory import give_back
from fedsa.models.layout import Layout
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.types import State

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedsa.models import AdaptedModel

__all__ = ["Figures", "Personal", "evaluate", "majority_accuracy", "summarize", "summarize_clients"]


@dataclass(frozen=True)
class Figures:
    """One metric over all clients.

    Attributes:
        weighted_mean: weighted by each client's number of evaluated rows: the share of all rows, for accuracy.
        mean: unweighted: every client counts alike.
        std: standard deviation over clients (of the population, not a sample).
        worst: the lowest value.
        worst_client: whose it is.
    """

    weighted_mean: float
    mean: float
    std: float
    worst: float
    worst_client: str


Personal: TypeAlias = "tuple[str, State, IntArray]"
"""A client's id, the tensors it would use, and the numbers of its rows."""


def evaluate(
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    clients: Iterable[Personal],
    *,
    batch_size: int,
    together: int = 0,
    pack: bool = False,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each client's id and metrics on its rows: the task's, and ``examples``.

    Args:
        model: the base with its adapter.
        task: gives outputs and metrics.
        encoded: the rows' tokens.
        clients: consumed as they are needed.
        batch_size: rows per forward pass; they are batched by length, so that little is padded.
        together: clients that go through the model at once; 0: one by one, through the model's own adapter.
        pack: as for `fedsa.training.cohort.train`; goes with ``together``.
    """
    remaining = iter(clients)
    while group := list(islice(remaining, together or 1)):
        by_client = [rows for _, _, rows in group]
        if together:
            with model.stack(len(group)) as stack:
                for place, (_, tensors, _) in enumerate(group):
                    stack.load(place, tensors)
                answers = _answers(model, task, encoded, by_client, batch_size, pack)
        else:
            model.write(group[0][1])
            answers = _answers(model, task, encoded, by_client, batch_size, pack=False)
        for (client, _, rows), (outputs, generated) in zip(group, answers, strict=True):
            yield client, {"examples": len(rows), **task.score(encoded, rows, outputs, generated)}
        give_back()


def _answers(
    model: AdaptedModel, task: Task, encoded: Encoded, by_client: Sequence[IntArray], batch_size: int, pack: bool
) -> Sequence[tuple[Tensor, Tensor | None]]:
    """Return what the model says of each client's rows and, where the task wants it, what it writes on them."""
    asked = [task.questions(encoded, rows) for rows in by_client]
    outputs = _outputs(model, task.outputs, encoded, asked, batch_size, pack)
    if not task.generates:
        return [(own, None) for own in outputs]
    prompts = [task.prompts(encoded, rows) for rows in by_client]
    written = _outputs(model, task.generate, encoded, prompts, batch_size, pack=False)  # token by token
    return list(zip(outputs, written, strict=True))


def _outputs(
    model: AdaptedModel,
    ask: Callable[[nn.Module, Mapping[str, Tensor]], Tensor],
    encoded: Encoded,
    by_client: Sequence[IntArray],
    batch_size: int,
    pack: bool,
) -> Sequence[Tensor]:
    """Return what the model gives on each client's items, in their order."""
    rows = np.concatenate(by_client)
    owners = np.repeat(np.arange(len(by_client)), [len(own) for own in by_client])
    order = np.argsort(encoded.lengths[rows], kind="stable")
    parts, places = [], []
    with model.evaluating():
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            chosen = chosen[np.argsort(owners[chosen], kind="stable")]  # a pass takes rows client by client
            batch = {name: value.to(model.device) for name, value in encoded.batch(rows[chosen]).items()}
            counts = np.bincount(owners[chosen], minlength=len(by_client)).tolist()
            model.streams.begin(Layout(batch["attention_mask"], counts, pack=pack))
            parts.append(ask(model.model, batch).cpu())
            places.append(chosen)
    outputs = torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places)))]
    split: Sequence[Tensor] = outputs.split([len(own) for own in by_client])
    return split


def summarize(values: Mapping[str, float], weights: Mapping[str, float]) -> Figures:
    """Return the figures of one metric over clients.

    Args:
        values: client id to the metric; higher is better.
        weights: client id to its number of rows.

    Raises:
        ValueError: no clients.

    >>> summarize({"a": 0.5, "b": 1.0}, {"a": 3, "b": 1})
    Figures(weighted_mean=0.625, mean=0.75, std=0.25, worst=0.5, worst_client='a')
    """
    if not values:
        raise ValueError("no client was evaluated")
    clients = sorted(values)
    numbers = np.array([values[client] for client in clients], dtype=np.float64)
    shares = np.array([weights[client] for client in clients], dtype=np.float64)
    worst = int(numbers.argmin())
    return Figures(
        weighted_mean=float((numbers * shares).sum() / shares.sum()),
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        worst=float(numbers[worst]),
        worst_client=clients[worst],
    )


def summarize_clients(results: Mapping[str, Mapping[str, Any]], metric: str) -> Figures:
    """Return the figures of what `evaluate` gave for each client."""
    return summarize(
        {client: result[metric] for client, result in results.items()},
        {client: result["examples"] for client, result in results.items()},
    )


def majority_accuracy(train_labels: Sequence[int] | IntArray, test_labels: Sequence[int] | IntArray) -> float:
    """Return the test accuracy of always guessing the most frequent training label; of equals, the lowest.

    >>> majority_accuracy([0, 0, 1], [0, 1, 1, 1])
    0.25
    """
    guess = int(np.bincount(np.asarray(train_labels)).argmax())
    return float((np.asarray(test_labels) == guess).mean())
