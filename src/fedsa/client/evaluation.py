"""Honest measuring: each client on its own rows, with the tensors that it would use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch

from fedsa.algorithms.base import Algorithm
from fedsa.client.batches import batched
from fedsa.data.partition import ClientRows
from fedsa.models import representations
from fedsa.seeds import derive_seed
from fedsa.system.process import give_back
from fedsa.tasks.base import Encoded, IntArray, Prediction, Sample, Task
from fedsa.types import State

if TYPE_CHECKING:
    from torch import Tensor

    from fedsa.models import AdaptedModel

__all__ = ["Mixing", "Personal", "Sampling", "evaluate", "majority_accuracy", "predict"]


class Personal(NamedTuple):
    """What one client is measured with.

    Attributes:
        client: its id.
        tensors: what it would use.
        rows: the numbers of the rows it is measured on.
    """

    client: str
    tensors: State
    rows: IntArray


@final
@dataclass(frozen=True)
class Mixing:
    """Says which of its training rows a client's rows are compared with, for methods that weigh adapters by that.

    Attributes:
        algorithm: the method.
        clients: client id to its rows.
        seed: the run's: a client has the same references whenever it is evaluated.
    """

    algorithm: Algorithm
    clients: Mapping[str, ClientRows]
    seed: int

    def references(self, client: str) -> IntArray:
        """Return the numbers of the client's references: as many as the method wants, or all that it has."""
        own, random = self.clients[client].train, np.random.default_rng(derive_seed(self.seed, "references", client))
        chosen: IntArray = random.choice(own, min(len(own), self.algorithm.references), replace=False)
        return chosen


@final
@dataclass(frozen=True)
class Sampling:
    """Which rows are shown with what the model writes on them.

    Attributes:
        task: writes and shows them; see `fedsa.tasks.base.Task.sampling`.
        encoded: the rows as it takes them.
        counts: client id to how many of its rows, from the first on.
        keep: is given a client and its rows as a reader sees them.
    """

    task: Task
    encoded: Encoded
    counts: Mapping[str, int]
    keep: Callable[[str, list[Sample]], None]

    def rows(self, personal: Personal) -> IntArray:
        """Return the numbers of those of a client's rows that are shown."""
        return personal.rows[: self.counts.get(personal.client, 0)]

    def show(self, personal: Personal, written: Tensor) -> None:
        """Keep a client's rows that are shown, if any, with what the model wrote on them (and perhaps on more)."""
        rows = self.rows(personal)
        if len(rows):
            self.keep(personal.client, self.task.samples(self.encoded, rows, written[: len(rows)]))


def evaluate(
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    clients: Iterable[Personal],
    *,
    batch_size: int,
    together: int = 0,
    pack: bool = False,
    mixing: Mixing | None = None,
    sampling: Sampling | None = None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each client's id and metrics on its rows: the task's, and ``examples``.

    Args:
        model: the base with its adapter.
        task: gives outputs and metrics.
        encoded: the rows' tokens.
        clients: consumed as they are needed.
        batch_size: rows per forward pass; they are batched by length, so that little is padded.
        together: clients that go through the model at once; 0: one by one, through the model's own adapter.
        pack: as for `fedsa.client.training.cohort.train`; goes with ``together``.
        mixing: weigh each client's adapters for each of its rows, which takes one more pass over them; None: they are
            added as in training.
        sampling: show some rows with what the model writes; the figures are the same without.
    """
    for group in batched(itertools.starmap(Personal, clients), together or 1):
        asked = _asked_of(task, encoded, group, pack=pack, writes=task.generates)
        measured, shown = len(asked), sampling if sampling and any(len(sampling.rows(each)) for each in group) else None
        if shown and not task.generates:
            prompts = [shown.task.prompts(shown.encoded, shown.rows(personal)) for personal in group]
            asked.append(_Asked(shown.task.generate, shown.encoded, prompts))
        weights = [
            _weights(model, own.encoded, group, own.items, mixing, batch_size) if mixing else None for own in asked
        ]
        answers = _answers(model, group, asked, weights, batch_size, together=together > 0)
        for personal, *own in zip(group, *answers, strict=True):
            if shown:
                shown.show(personal, own[-1])
            metrics = task.score(encoded, personal.rows, *own[:measured])
            yield personal.client, {"examples": len(personal.rows), **metrics}
        give_back()


def predict(
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    clients: Iterable[Personal],
    *,
    batch_size: int,
    together: int = 0,
    pack: bool = False,
) -> Iterator[tuple[str, list[Prediction]]]:
    """Yield each client's id and what the model says of its rows, in their order: what `evaluate` would measure.

    Args:
        model: the base with its adapter.
        task: gives outputs and predictions.
        encoded: the rows, without answers.
        clients: consumed as they are needed; they may have the same rows.
        batch_size: rows per forward pass.
        together: clients that go through the model at once; 0: one by one.
        pack: as for `evaluate`.
    """
    for group in batched(itertools.starmap(Personal, clients), together or 1):
        asked = _asked_of(task, encoded, group, pack=pack, writes=task.predicts_text)
        answers = _answers(model, group, asked, [None] * len(asked), batch_size, together=together > 0)
        for personal, *own in zip(group, *answers, strict=True):
            yield personal.client, task.predictions(encoded, personal.rows, *own)
        give_back()


class _Asked(NamedTuple):
    """What the model is asked of a group of clients: how, of which rows' form, and the items of each client."""

    forward: Callable[[Any, Mapping[str, Tensor]], Tensor]
    encoded: Encoded
    items: Sequence[IntArray]
    pack: bool = False


def _asked_of(task: Task, encoded: Encoded, group: Sequence[Personal], *, pack: bool, writes: bool) -> list[_Asked]:
    """What is asked of the rows of clients that go through the model together: outputs and, where it writes, texts."""
    by_client = [rows for _, _, rows in group]
    asked = [_Asked(task.outputs, encoded, [task.questions(encoded, rows) for rows in by_client], pack)]
    if writes:  # token by token: there is nothing to pack
        asked.append(_Asked(task.generate, encoded, [task.prompts(encoded, rows) for rows in by_client]))
    return asked


def _answers(
    model: AdaptedModel,
    group: Sequence[Personal],
    asked: Sequence[_Asked],
    weights: Sequence[Mapping[str, Tensor] | None],
    batch_size: int,
    *,
    together: bool,
) -> list[Sequence[Tensor]]:
    """Return what the model answers a group of clients: of each thing that is asked, each client's tensor.

    Args:
        model: it ends with a client's tensors in it where clients do not go through it at once.
        group: one client, or several that go ``together``.
        asked: what.
        weights: of the adapters, for each thing that is asked.
        batch_size: rows per forward pass.
        together: clients go through the model at once.
    """
    with model.stack(len(group)) if together else nullcontext() as stack:
        if stack is None:
            model.write(group[0].tensors)
        else:
            for place, personal in enumerate(group):
                stack.load(place, personal.tensors)
        return [
            _passed(
                model,
                own.encoded,
                own.items,
                batch_size,
                partial(own.forward, model.model),
                weight,
                pack=own.pack and together,
            )
            for own, weight in zip(asked, weights, strict=True)
        ]


def _weights(
    model: AdaptedModel,
    encoded: Encoded,
    group: Sequence[Personal],
    items: Sequence[IntArray],
    mixing: Mixing,
    batch_size: int,
) -> dict[str, Tensor]:
    """Return each adapter's weight for all items of a group of clients, one client after the other."""
    algorithm = mixing.algorithm
    parts = [
        part for (client, _, _), own in zip(group, items, strict=True) for part in (own, mixing.references(client))
    ]
    model.write(model.initial)  # whose update is zero: this is the frozen base
    seen = _passed(model, encoded, parts, batch_size, partial(representations, model))
    weights: dict[str, list[Tensor]] = {adapter: [] for adapter in model.adapters}
    for rows, references in zip(seen[::2], seen[1::2], strict=True):
        own = algorithm.weights(rows, references) if len(references) else {}
        for adapter, by_client in weights.items():
            by_client.append(own.get(adapter, torch.ones(len(rows))))
    return {adapter: torch.cat(by_client) for adapter, by_client in weights.items()}


def _passed(
    model: AdaptedModel,
    encoded: Encoded,
    by_client: Sequence[IntArray],
    batch_size: int,
    forward: Callable[[Mapping[str, Tensor]], Tensor],
    weights: Mapping[str, Tensor] | None = None,
    *,
    pack: bool = False,
) -> Sequence[Tensor]:
    """The outputs of ``forward`` for each client's items, in their order; and those of ``weights`` for all items."""
    rows = np.concatenate(by_client)
    if not len(rows):
        return [torch.empty(0) for _ in by_client]
    owners = np.repeat(np.arange(len(by_client)), [len(own) for own in by_client])
    order = np.argsort(encoded.lengths[rows], kind="stable")
    parts, places = [], []
    with model.evaluating():
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            chosen = chosen[np.argsort(owners[chosen], kind="stable")]  # a pass takes rows client by client
            counts = np.bincount(owners[chosen], minlength=len(by_client)).tolist()
            own = {adapter: weight[torch.from_numpy(chosen)] for adapter, weight in (weights or {}).items()}
            batch = model.begin(encoded.batch(rows[chosen]), counts, pack=pack, weights=own)
            parts.append(forward(batch).cpu())
            places.append(chosen)
    made = torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places)))]
    split: Sequence[Tensor] = made.split([len(own) for own in by_client])
    return split


def majority_accuracy(train_labels: Sequence[int] | IntArray, test_labels: Sequence[int] | IntArray) -> float:
    """Return the test accuracy of always guessing the most frequent training label; of equals, the lowest.

    >>> majority_accuracy([0, 0, 1], [0, 1, 1, 1])
    0.25
    """
    guess = int(np.bincount(np.asarray(train_labels)).argmax())
    return float((np.asarray(test_labels) == guess).mean())
