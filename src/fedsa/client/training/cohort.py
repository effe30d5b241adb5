"""Local training of many clients in one pass through the one frozen base: what `sequential` does, but fast."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor, nn

from fedsa.adapters.algebra import padded
from fedsa.client.training.job import (
    Job,
    TrainingResult,
    check_finite,
    dropout_seed,
    learning_rate_factor,
    local_batches,
    own_part,
    peak_rate,
    whole_slots,
)
from fedsa.models import AdaptedModel
from fedsa.models.dropout import FastDropout
from fedsa.models.stacked import Stack
from fedsa.recipe import TrainingSettings
from fedsa.seeds import derive_seed, seed_torch
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.types import Key, Side

__all__ = ["HasValues", "Optimizers", "history_of", "train"]

Steps = Sequence[Sequence[IntArray]]
"""Of each optimiser step its batches, of each batch its row numbers."""


def train(
    jobs: Sequence[Job],
    *,
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    settings: TrainingSettings,
    pack: bool = False,
) -> list[TrainingResult]:
    """Return the tensors of several clients after their local training, in the order of the jobs.

    The clients' batches of one step go through the model together, each row through its own client's adapter. Losses,
    clipping, optimiser, schedule, number of steps, rows and the adapter's dropout are each client's own, so it comes to
    what `sequential.train` comes to, within rounding. The base model's own dropout, where it has any,
    has one stream for all.

    Args:
        jobs: of one round, with the same trained keys.
        model: the base with its adapter.
        task: gives losses.
        encoded: every row, as tokens.
        settings: of the training.
        pack: several sentences go in one row, without padding.

    Raises:
        TrainingError: a client's loss is not finite.
    """
    started = time.perf_counter()
    given = [(number, job, local_batches(job, settings, encoded.lengths)) for number, job in enumerate(jobs)]
    # Clients whose optimisers step alike stand side by side: one tensor serves them all.
    ordered = sorted(given, key=lambda each: (len(each[2]), history_of(each[1])))
    clients, steps = [job for _, job, _ in ordered], [steps for _, _, steps in ordered]
    with model.stack(len(clients), clients[0].keys) as stack, model.training():
        for number, job in enumerate(clients):
            stack.load(number, job.tensors)
        optimizers = Optimizers(stack, clients, [len(own) for own in steps], settings)
        seed_torch(derive_seed(clients[0].seed, "base dropout", clients[0].round, *[job.client for job in jobs]))
        losses = _train_steps(clients, steps, optimizers, stack, model, task, encoded, settings, pack)
        states = optimizers.states() if settings.optimizer_state == "keep" else [{} for _ in clients]
    tensors = optimizers.tensors()
    seconds = (time.perf_counter() - started) / len(jobs)
    results = {}
    for place, (number, job, own_steps) in enumerate(ordered):
        mean_loss = float(np.mean(losses[place]))
        check_finite(job, mean_loss, tensors[place], settings)
        kept = {**job.optimizer_state, **states[place]} if settings.optimizer_state == "keep" else {}
        metrics = {"loss": mean_loss, "steps": len(own_steps), "seconds": seconds}
        results[number] = TrainingResult({**job.tensors, **tensors[place]}, kept, metrics)
    return [results[number] for number in range(len(jobs))]


def _train_steps(
    clients: Sequence[Job],
    steps: Sequence[Steps],
    optimizers: Optimizers,
    stack: Stack,
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    settings: TrainingSettings,
    pack: bool,
) -> list[list[float]]:
    """Train every step, and return each client's losses, one for each of its batches."""
    seeds, batches_seen = [dropout_seed(job) for job in clients], [0] * len(clients)
    seen: list[tuple[list[int], Tensor]] = []
    for number in range(max(len(own) for own in steps)):
        now = [own[number] if number < len(own) else [] for own in steps]
        for rows in _passes(now):
            sizes = [len(each) for each in rows]
            batch = model.begin(
                encoded.batch(np.concatenate(rows)), sizes, pack=pack, seeds=seeds, batches=batches_seen
            )
            with FastDropout.on(model.device):  # around nothing else: every operation inside takes a detour
                sums, counts = task.losses(model.model, batch)
            with_rows = [place for place, size in enumerate(sizes) if size]
            none = sums.new_zeros(len(rows))
            owners = torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)).to(sums.device)
            whole, number_of_terms = (none.index_add(0, owners, each) for each in (sums, counts))
            losses = (whole / number_of_terms)[torch.tensor(with_rows).to(sums.device)]
            shares = torch.tensor([1 / len(now[place]) for place in with_rows], dtype=losses.dtype)
            (losses * shares.to(losses.device)).sum().backward()
            optimizers.add_gradients()
            seen.append((with_rows, losses.detach()))
            for place in with_rows:
                batches_seen[place] += 1
        optimizers.step(number)
    by_client: list[list[float]] = [[] for _ in clients]
    for places, values in seen:
        # What is not finite soon spreads to all who train together: the first to have it is to be named.
        failed = (~values.isfinite()).nonzero().flatten().tolist()
        if failed:
            check_finite(clients[places[failed[0]]], float(values[failed[0]]), {}, settings)
    for places, values in seen:
        for place, value in zip(places, values.tolist(), strict=True):
            by_client[place].append(value)
    return by_client


def _passes(now: Sequence[Sequence[IntArray]]) -> Iterator[list[IntArray]]:
    """Yield the rows of each client, empty for one that has no more, for each pass of a step."""
    for part in range(max(len(batches) for batches in now)):
        yield [batches[part] if part < len(batches) else np.empty(0, dtype=np.int64) for batches in now]


def history_of(job: Job) -> tuple[int, ...]:
    """Return the steps that a client's kept optimiser state has seen, for each trained key; -1: it has none."""
    known = {name.partition("|")[2] for name in job.optimizer_state}
    steps = {key: job.optimizer_state.get(f"step|{key}") for key in job.keys}
    return tuple(-1 if str(key) not in known else 0 if step is None else int(step) for key, step in steps.items())


class HasValues(Protocol):
    """What optimisers change: tensors of several clients side by side. A `Stack` is one."""

    @property
    def values(self) -> Mapping[Key, Tensor]:
        """By key, of shape (clients, *shape of the key's tensor)."""
        ...


@final
@dataclass
class _Block:
    """Adjacent clients' tensors that an optimiser treats alike, in one matrix.

    Attributes:
        clients: their places.
        columns: where each key's flattened tensor is in a row.
        values: shape (clients, all columns): what the optimiser changes, in full precision.
        gradients: the same shape.
        parts: of ``values``, of ``gradients`` and of the stack's values: what belongs to each key, as views.
        steps: that its clients train.
        pulled: shape (all columns,): one where the proximal term pulls, or None.
        anchor: what it pulls towards: the values at the start.
    """

    clients: slice
    columns: dict[Key, slice]
    values: nn.Parameter
    gradients: Tensor
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]]
    steps: int
    pulled: Tensor | None
    anchor: Tensor | None


@final
class Optimizers:
    """The optimisers of a cohort's clients; each is what one client alone would have.

    Args:
        stack: whose values are trained.
        clients: ordered so that clients whose optimisers step alike are adjacent.
        steps: their number, of each client.
        settings: of the training.
    """

    def __init__(
        self, stack: HasValues, clients: Sequence[Job], steps: Sequence[int], settings: TrainingSettings
    ) -> None:
        self._stack, self._settings = stack, settings
        self._clients, self._keys = clients, clients[0].keys
        self._device = next(iter(stack.values.values())).device
        self._blocks: list[list[_Block]] = []  # by group of clients
        self._fresh = True
        places = range(len(clients))
        for (length, seen), group in groupby(places, key=lambda place: (steps[place], history_of(clients[place]))):
            together = list(group)
            kinds: dict[tuple[bool, float, int], list[Key]] = {}
            for key, count in zip(self._keys, seen, strict=True):
                kind = (key.factor.side is Side.HEAD, peak_rate(key, settings), count)
                kinds.setdefault(kind, []).append(key)
            self._blocks.append(
                [self._block(slice(together[0], together[-1] + 1), keys, length) for keys in kinds.values()]
            )
        self._optimizer = self._made()
        self._load()

    def _block(self, clients: slice, keys: Sequence[Key], steps: int) -> _Block:
        jobs = self._clients[clients]
        shapes = {key: self._stack.values[key].shape[1:] for key in keys}
        rows = [torch.cat([padded(job.tensors[key], shapes[key]).reshape(-1) for key in keys]) for job in jobs]
        ends = np.cumsum([shape.numel() for shape in shapes.values()]).tolist()
        columns = {key: slice(start, end) for key, start, end in zip(keys, [0, *ends[:-1]], ends, strict=True)}
        values = nn.Parameter(torch.stack(rows).to(self._device))
        pulled = None
        if self._settings.proximal_mu and set(keys) & set(jobs[0].received):
            pulled = torch.zeros(values.shape[1], dtype=values.dtype, device=self._device)
            for key in set(keys) & set(jobs[0].received):
                pulled[columns[key]] = 1
        anchor = None if pulled is None else values.detach().clone()
        gradients = torch.zeros_like(values)
        own, summed = (
            [whole.detach()[:, part].unflatten(1, shapes[key]) for key, part in columns.items()]
            for whole in (values, gradients)
        )
        used = [self._stack.values[key].detach()[clients] for key in keys]
        return _Block(clients, columns, values, gradients, (own, summed, used), steps, pulled, anchor)

    def _made(self) -> torch.optim.Optimizer:
        settings = self._settings
        groups = [{"params": [block.values], "lr": self._peak(block)} for blocks in self._blocks for block in blocks]
        if settings.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True)
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)

    def _peak(self, block: _Block) -> float:
        return peak_rate(next(iter(block.columns)), self._settings)

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Take over the gradients that a backward pass left at the stack's values."""
        for blocks in self._blocks:
            for block in blocks:
                came = [
                    (part, gradient[block.clients])
                    for key, part in zip(block.columns, block.parts[1], strict=True)
                    if (gradient := self._stack.values[key].grad) is not None
                ]
                if came:
                    torch._foreach_add_([part for part, _ in came], [gradient for _, gradient in came])
        for key in self._keys:
            self._stack.values[key].grad = None

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Make every client's step of a number, of those that have one, and put the new values into the stack."""
        for blocks in self._blocks:
            if number < blocks[0].steps:
                self._prepare(blocks, number)
            else:
                for block in blocks:
                    block.values.grad = None
        self._optimizer.step()
        for blocks in self._blocks:
            for block in blocks:
                block.gradients.zero_()
                if number < block.steps:
                    torch._foreach_copy_(block.parts[2], block.parts[0])

    def _prepare(self, blocks: Sequence[_Block], number: int) -> None:
        settings, job = self._settings, self._clients[blocks[0].clients.start]
        factor = learning_rate_factor(settings, (job.round - 1 + number / blocks[0].steps) / job.rounds)
        for block in blocks:
            if block.pulled is not None and block.anchor is not None:
                block.gradients += settings.proximal_mu * block.pulled * (block.values - block.anchor)
        if job.penalty is not None:
            self._add_penalties(blocks)
        if settings.max_grad_norm:
            parts = [torch.linalg.vector_norm(block.gradients, dim=1) for block in blocks]
            norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
            kept = (settings.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
            for block in blocks:
                block.gradients *= kept[:, None]
        for block in blocks:
            block.values.grad = block.gradients
        ids = {id(block.values): self._peak(block) for block in blocks}
        for group in self._optimizer.param_groups:
            if id(group["params"][0]) in ids:
                group["lr"] = ids[id(group["params"][0])] * factor

    @torch.enable_grad()
    def _add_penalties(self, blocks: Sequence[_Block]) -> None:
        """Add the gradients of the method's own penalty, of each client of a group by itself."""
        clients = blocks[0].clients
        for row, job in enumerate(self._clients[clients]):
            own = {
                key: own_part(job, key, block.values.detach()[row, columns].view(self._stack.values[key].shape[1:]))
                for block in blocks
                for key, columns in block.columns.items()
            }
            own = {key: own[key].requires_grad_() for key in self._keys}
            before = {key: job.tensors[key].to(value) for key, value in own.items()}
            penalty = None if job.penalty is None else job.penalty(own, before)
            if penalty is not None and penalty.requires_grad:
                penalty.backward()
            for block in blocks:
                for key, columns in block.columns.items():
                    gradient = own[key].grad
                    if gradient is not None:
                        whole = padded(gradient, self._stack.values[key].shape[1:])
                        block.gradients[row, columns] += whole.reshape(-1)

    def tensors(self) -> list[dict[Key, Tensor]]:
        """Return each client's trained tensors, on the CPU."""
        made: list[dict[Key, Tensor]] = [{} for _ in self._clients]
        for block in (block for blocks in self._blocks for block in blocks):
            rows = block.values.detach().to("cpu", copy=True)
            for place, row in zip(range(block.clients.start, block.clients.stop), rows, strict=True):
                for key, columns in block.columns.items():
                    whole = row[columns].view(self._stack.values[key].shape[1:])
                    made[place][key] = own_part(self._clients[place], key, whole).clone(
                        memory_format=torch.contiguous_format
                    )
        return [{key: own[key] for key in self._keys} for own in made]

    def states(self) -> list[dict[str, Tensor]]:
        """Return each client's optimiser state, named ``slot|key``, on the CPU."""
        made: list[dict[str, Tensor]] = [{} for _ in self._clients]
        for block in (block for blocks in self._blocks for block in blocks):
            for slot, value in self._optimizer.state[block.values].items():
                if value is None:
                    continue
                whole = torch.as_tensor(value).detach().to("cpu")
                for row, place in enumerate(range(block.clients.start, block.clients.stop)):
                    for key, columns in block.columns.items():
                        shape = self._stack.values[key].shape[1:]
                        own = whole
                        if whole.dim():
                            own = own_part(self._clients[place], key, whole[row, columns].view(shape))
                        made[place][f"{slot}|{key}"] = own.clone(memory_format=torch.contiguous_format)
        return made

    def _load(self) -> None:
        """Put what the clients kept from an earlier round into the optimiser."""
        for block in (block for blocks in self._blocks for block in blocks):
            jobs = self._clients[block.clients]
            slots = {name.partition("|")[0] for job in jobs for name in job.optimizer_state}
            for slot in sorted(slots):
                names = [f"{slot}|{key}" for key in block.columns]
                if not all(name in job.optimizer_state for job in jobs for name in names):
                    continue
                if slot == "step":
                    self._optimizer.state[block.values][slot] = jobs[0].optimizer_state[names[0]].clone()
                else:
                    shapes = [self._stack.values[key].shape[1:] for key in block.columns]
                    named = list(zip(names, shapes, strict=True))
                    rows = [
                        torch.cat([whole_slots(job, name, shape).reshape(-1) for name, shape in named]) for job in jobs
                    ]
                    self._optimizer.state[block.values][slot] = torch.stack(rows).to(self._device)
