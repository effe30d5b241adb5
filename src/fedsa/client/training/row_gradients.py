"""The gradient of each row by itself: of many rows in one pass, or one row after the other.

In one pass each row is taken for a client of its own, whose tensors are those of the client that it belongs to. What
comes back for such a client is the gradient of its one row; for LoRA that is two small products a layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from fedsa.models import AdaptedModel
from fedsa.models.dropout import FastDropout
from fedsa.models.stacked import Stack
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.types import Factor, Key, State

__all__ = ["OneByOne", "RowGradients", "RowsTogether", "Values", "largest_difference", "obstacle"]


class Values(NamedTuple):
    """Tensors of several clients, as optimisers change them: shape (clients, *shape of the key's tensor).

    Attributes:
        values: by key.
    """

    values: dict[Key, Tensor]


@dataclass(frozen=True)
class RowGradients(ABC):
    """What gives each row's gradient.

    Attributes:
        model: the base with its adapter.
        task: gives losses.
        encoded: every row.
    """

    model: AdaptedModel
    task: Task
    encoded: Encoded

    @abstractmethod
    def __call__(
        self, clients: Values, keys: Sequence[Key], owners: Sequence[int], rows: IntArray, seeds: Sequence[int]
    ) -> tuple[Tensor, dict[Key, Tensor]]:
        """Each row's loss, shape (rows,), and its gradients, shape (rows, *shape of the key's tensor).

        Args:
            clients: all tensors of each client.
            keys: of which tensors.
            owners: the place of each row's client, ascending.
            rows: their numbers.
            seeds: of the adapters' dropout, for each row.
        """


@final
@dataclass(frozen=True)
class RowsTogether(RowGradients):
    """Many rows in one pass.

    Attributes:
        stack: of as many places as rows go through at once; it is in the model.
    """

    stack: Stack

    def __call__(
        self, clients: Values, keys: Sequence[Key], owners: Sequence[int], rows: IntArray, seeds: Sequence[int]
    ) -> tuple[Tensor, dict[Key, Tensor]]:
        """Each row's loss and gradients."""
        count, places = len(rows), next(iter(self.stack.values.values())).shape[0]
        with torch.no_grad():
            for key, place in self.stack.values.items():
                value = clients.values[key]
                place[:count].copy_(value.index_select(0, torch.tensor(owners, device=value.device)))
        counts = [1] * count + [0] * (places - count)
        rest = [0] * (places - count)
        batch = self.model.begin(self.encoded.batch(rows), counts, seeds=[*seeds, *rest], batches=[0] * places)
        with FastDropout.on(self.model.device):
            sums, terms = self.task.losses(self.model.model, batch)
        losses = sums / terms
        losses.sum().backward()
        gradients = {}
        for key in keys:
            gradient = self.stack.values[key].grad
            whole = torch.zeros_like(self.stack.values[key]) if gradient is None else gradient
            gradients[key] = whole[:count].to(torch.promote_types(whole.dtype, torch.float32))
            self.stack.values[key].grad = None
        return losses.detach(), gradients


@final
@dataclass(frozen=True)
class OneByOne(RowGradients):
    """One row after the other through the model's own layers: slow, and right for whatever adapter there is."""

    def __call__(
        self, clients: Values, keys: Sequence[Key], owners: Sequence[int], rows: IntArray, seeds: Sequence[int]
    ) -> tuple[Tensor, dict[Key, Tensor]]:
        """Each row's loss and gradients."""
        losses: list[Tensor] = []
        each: dict[Key, list[Tensor]] = {key: [] for key in keys}
        last = -1
        parameters = self.model.train_only(keys)
        for owner, row, seed in zip(owners, rows, seeds, strict=True):
            if owner != last:
                self.model.write({key: value[owner] for key, value in clients.values.items()})
                last = owner
            batch = self.model.begin(self.encoded.batch(np.array([row])), [1], seeds=[seed], batches=[0])
            with self.model.autocast():
                sums, terms = self.task.losses(self.model.model, batch)
            loss = (sums / terms).sum()
            loss.backward()
            losses.append(loss.detach())
            for key in keys:
                gradient = parameters[key].grad
                each[key].append(torch.zeros_like(parameters[key]) if gradient is None else gradient)
                parameters[key].grad = None
        return torch.stack(losses), {key: torch.stack(gradients) for key, gradients in each.items()}


def obstacle(
    model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray, *, agree: float, keys: Sequence[Key]
) -> str | None:
    """Why the gradients of many rows cannot be had in one pass; None if they can.

    It is tried out: they must be those of the rows one by one.

    Args:
        model: the base with its adapter.
        task: the task.
        encoded: every row.
        rows: to try it with.
        agree: the relative difference that rounding may make.
        keys: the tensors that are trained.
    """
    if any(key.factor is Factor.DELTA for key in model.keys):
        return "the server adds to the frozen weights, which would be copied for each row"
    generator = torch.Generator().manual_seed(0)
    states: list[State] = [
        {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in model.initial.items()}
        for _ in range(2)
    ]
    device = torch.device(model.device)
    clients = Values({key: torch.stack([state[key] for state in states]).to(device) for key in model.keys})
    owners = [min(place * 2 // len(rows), 1) for place in range(len(rows))]
    seeds = list(range(len(rows)))

    try:  # in evaluation mode: a base's own dropout is another one for each pass
        _, alone = OneByOne(model, task, encoded)(clients, keys, owners, rows, seeds)
        with model.stack(len(rows) + 1, keys) as stack:
            _, together = RowsTogether(model, task, encoded, stack)(clients, keys, owners, rows, seeds)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        return f"its layers do not take single rows of several clients: {str(error).splitlines()[0]}"
    finally:
        model.streams.end()
        model.write(model.initial)
        model.train_only(model.keys)
    difference = largest_difference(alone, together)
    return None if difference <= agree else f"rows' gradients together differ by {difference:.1%} from each alone"


def largest_difference(one: Mapping[Key, Tensor], other: Mapping[Key, Tensor]) -> float:
    """The largest difference of a row's gradients, over all tensors, as part of their norm."""

    def flat(gradients: Mapping[Key, Tensor]) -> Tensor:
        return torch.cat([gradients[key].flatten(1).double() for key in one], dim=1)

    expected, found = flat(one), flat(other)
    return float(((expected - found).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)).max())
