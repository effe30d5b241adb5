"""What a run chooses once, at its start, by measuring: attention, trainer, packing, and how many clients in one pass.

What is chosen is written into the resolved recipe, so a resumed run does not measure again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from fedsa.client.training import row_gradients
from fedsa.errors import ModelError
from fedsa.models import AdaptedModel, compile_blocks
from fedsa.models.dropout import FastDropout
from fedsa.models.layout import Layout
from fedsa.recipe import ComputeSettings, TrainingSettings
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.texts.words import counted
from fedsa.types import Side

__all__ = [
    "activation_bytes",
    "bytes_of_a_parameter",
    "choose_attention",
    "choose_training",
    "clients_until_saturated",
    "compile_model",
    "packing_obstacle",
    "refuse_cohort",
    "stacking_obstacle",
]

_SATURATED = {"cpu": 900}
"""Tokens in one pass from which on more clients make it hardly faster: on a CPU with bf16 but without AMX, two clients
of 425 tokens trained 15 % faster together than one by one and took 25 MiB more, three no faster and 55 MiB more."""
_SATURATED_ELSEWHERE = 16384
"""The same for accelerators: an assumption, not measured."""

_CLEARLY_FASTER = 1.25
"""A kernel that is not the expected one is taken if it is faster by this factor: noise alone shall not choose."""

_AGREE = {"fp32": 1e-3, "bf16": 0.05}
"""Relative difference up to which two ways of computing one thing agree, by precision; bf16 alone makes about 0.01."""


def choose_training(
    settings: TrainingSettings,
    compute: ComputeSettings,
    *,
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    rows: Sequence[IntArray],
    clients: int,
    row_by_row: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> TrainingSettings:
    """Return the settings with trainer, packing and cohort size chosen.

    Args:
        settings: what is given stays; what is open is chosen.
        compute: device and memory budget.
        model: the base with its adapter.
        task: the task.
        encoded: every row, as tokens.
        rows: each client's training rows.
        clients: that train in one round.
        row_by_row: the gradient of each row by itself is wanted, as example-level privacy does.
        tell: told why rows or clients do not go through the model together.

    Raises:
        ModelError: the recipe asks for a cohort or for packing, and the model does not allow it.
    """
    every = np.concatenate(rows)
    obstacle = None if settings.trainer == "sequential" else stacking_obstacle(model, task, encoded, every)
    if row_by_row and settings.trainer != "sequential" and obstacle is None:
        keys = [key for key in model.keys if key.factor.side is not Side.BASE]
        sample, agree = _spread(encoded, every, min(len(every), 4)), _AGREE[model.precision]
        obstacle = row_gradients.obstacle(model, task, encoded, sample, agree=agree, keys=keys)
    if obstacle:
        refuse_cohort(settings, obstacle)
        if row_by_row:
            tell(f"each row goes through the model alone, which is slow: {obstacle}")
    if settings.trainer == "sequential" or obstacle:
        return settings.model_copy(update={"trainer": "sequential", "cohort_size": 0, "packing": False})
    packing = False if row_by_row else settings.packing
    if packing is not False:
        obstacle = packing_obstacle(model, task, encoded, every)
        if packing and obstacle:
            raise ModelError(f"training.packing = true cannot be used with this model ({obstacle}): set it to false")
        packing = obstacle is None
    size = settings.cohort_size
    if not size:
        copies = settings.batch_size if row_by_row else 0
        size = _cohort_size(settings, compute, model, task, encoded, every, clients, packing, copies)
    return settings.model_copy(update={"trainer": "cohort", "cohort_size": size, "packing": packing})


def refuse_cohort(settings: TrainingSettings, obstacle: str) -> None:
    """Refuse settings that ask for many clients in one pass, where that cannot be.

    Args:
        settings: the recipe's ``[training]``.
        obstacle: why not.

    Raises:
        ModelError: they ask for it.
    """
    if settings.trainer == "cohort" or settings.cohort_size or settings.packing:
        raise ModelError(
            f"training.trainer = 'cohort' cannot be used with this model and adapter ({obstacle}): set 'sequential', "
            "without cohort_size and packing"
        )


def _cohort_size(
    settings: TrainingSettings,
    compute: ComputeSettings,
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    rows: IntArray,
    clients: int,
    packing: bool,
    copies: int,
) -> int:
    tokens = float(encoded.lengths[rows].mean()) * settings.batch_size  # of one client's batch
    sample = _spread(encoded, rows, min(len(rows), settings.batch_size))
    by_token = activation_bytes(model, task, encoded, sample, packing) / encoded.lengths[sample].sum()
    own = sum(tensor.numel() for key, tensor in model.initial.items() if key.factor.side is not Side.BASE)
    by_row = 3 * copies * own * model.dtype.itemsize  # each row's values, and its gradient twice
    client = own * bytes_of_a_parameter(settings, model.dtype) + by_token * tokens + by_row
    by_memory = int(_budget(compute, model.device) / client)
    return max(1, min(clients, clients_until_saturated(tokens, model.device), by_memory))


def clients_until_saturated(tokens: float, device: str) -> int:
    """The number of clients that fill a pass; with more clients it is not faster.

    Args:
        tokens: of one client's batch.
        device: that computes.
    """
    return max(1, round(_SATURATED.get(device.partition(":")[0], _SATURATED_ELSEWHERE) / tokens))


def bytes_of_a_parameter(settings: TrainingSettings, dtype: torch.dtype) -> int:
    """The bytes that a client's trained parameter needs in a cohort.

    In fp32 its value, gradient and the optimiser's state (AdamW's two moments, SGD's one with momentum); value and
    gradient again in what the layers compute in.
    """
    moments = 2 if settings.optimizer == "adamw" else 1 if settings.momentum else 0
    return 4 * (2 + moments) + 2 * dtype.itemsize


def _budget(compute: ComputeSettings, device: str) -> float:
    """Return the bytes that a cohort may take."""
    if compute.memory_budget:
        return compute.memory_budget * 2**30
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] / 2
    return float(psutil.virtual_memory().available) / 2


def _spread(encoded: Encoded, rows: IntArray, count: int) -> IntArray:
    """Return rows of all lengths, the longest among them."""
    ordered = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    chosen: IntArray = ordered[np.linspace(len(ordered) - 1, 0, count).round().astype(int)]
    return chosen


def _batch(model: AdaptedModel, encoded: Encoded, rows: IntArray, *, pack: bool) -> dict[str, Tensor]:
    """Return a batch of one client, and tell the model of it."""
    return model.begin(encoded.batch(rows), [len(rows)], pack=pack, seeds=[0], batches=[0])


def packing_obstacle(model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray) -> str | None:
    """Why texts cannot be packed; None if they can: layers must give each token the same value as in padded rows.

    It is tried out, on the longest rows and some others.
    """
    if not model.layers.takes_mask:
        return "its layers take no attention mask"
    sample = np.concatenate([_spread(encoded, rows, min(len(rows), 4)), _shortest(encoded, rows, 4)])
    mask = encoded.batch(sample)["attention_mask"]
    if Layout(mask, [len(mask)], pack=True).packed is None:
        return "packing saves nothing: no two texts fit into one row"
    seen: list[Tensor] = []
    hook = model.layers.layers[-1].register_forward_hook(lambda *call: seen.append(_hidden(call[2])))
    calls = 0
    try:
        for pack in (False, True):
            with model.evaluating():
                batch = _batch(model, encoded, sample, pack=pack)
                task.outputs(model.model, batch)
            calls = calls or len(seen)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"its layers do not take packed rows: {str(error).splitlines()[0]}"
    finally:
        hook.remove()
    real = batch["attention_mask"].bool()
    padded, packed = (seen[last][real].float() for last in (calls - 1, len(seen) - 1))  # a layer may be called often
    difference = float(((padded - packed).norm(dim=1) / padded.norm(dim=1)).max())
    agree = difference <= _AGREE[model.precision]
    return None if agree else f"a token in packed rows differs by {difference:.1%} from the same in padded rows"


def _shortest(encoded: Encoded, rows: IntArray, count: int) -> IntArray:
    shortest: IntArray = rows[np.argsort(encoded.lengths[rows], kind="stable")[:count]]
    return shortest


def stacking_obstacle(model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray) -> str | None:
    """Why many clients cannot go through the model in one pass; None if they can.

    It is tried out: two clients with tensors of their own must get together what each gets alone.
    """
    found = model.obstacles()
    if found:
        return "; ".join(found)
    sample = _spread(encoded, rows, 5)
    parts = [sample[:2], sample[2:]]
    generator = torch.Generator().manual_seed(0)
    states = [
        {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in model.initial.items()}
        for _ in parts
    ]
    try:
        alone = []
        for part, state in zip(parts, states, strict=True):
            model.write(state)
            with model.evaluating():
                alone.append(task.outputs(model.model, _batch(model, encoded, part, pack=False)))
        with model.stack(len(parts)) as stack, model.evaluating():
            for number, state in enumerate(states):
                stack.load(number, state)
            batch = model.begin(encoded.batch(np.concatenate(parts)), [len(part) for part in parts])
            together = task.outputs(model.model, batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        return f"its layers do not take the rows of several clients: {str(error).splitlines()[0]}"
    finally:
        model.write(model.initial)
    expected = torch.cat(alone)
    difference = float((expected - together).norm() / expected.norm())
    agree = difference <= _AGREE[model.precision]
    return None if agree else f"clients together differ by {difference:.1%} from each alone"


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden.detach()


def activation_bytes(model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray, pack: bool) -> int:
    """Return the bytes that a training pass over one client's rows keeps for its backward pass."""
    frozen = [*model.model.parameters(), *model.model.buffers()]  # of adapters too, whose layers the stack replaces
    with model.stack(1, model.keys) as stack:
        stack.load(0, model.initial)
        weights = {value.untyped_storage().data_ptr() for value in (*frozen, *stack.values.values())}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with model.training(), FastDropout.on(model.device):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                sums, _ = task.losses(model.model, _batch(model, encoded, rows, pack=pack))
            sums.sum().backward()
    return sum(kept.values())


def choose_attention(
    settings: TrainingSettings, *, model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray
) -> str:
    """Return the attention that trains a batch fastest, of those that the model has, and set it.

    Args:
        settings: trainer and batch size.
        model: the base with its adapter.
        task: the task.
        encoded: every row, as tokens.
        rows: training rows.
    """
    may_pack = settings.trainer != "sequential" and settings.packing is not False and not model.obstacles()
    pack = may_pack and packing_obstacle(model, task, encoded, rows) is None
    sample = _spread(encoded, rows, min(len(rows), settings.batch_size))
    seconds = {}
    for name in dict.fromkeys(("eager", "sdpa", model.attention)):
        if model.set_attention(name):
            seconds[name] = _seconds_of_a_step(model, task, encoded, sample, pack=pack)
    expected = "eager" if model.device == "cpu" else "sdpa"
    fastest = min(seconds, key=lambda name: seconds[name] * (1 if name == expected else _CLEARLY_FASTER))
    model.set_attention(fastest)
    return fastest


def compile_model(model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray, settings: TrainingSettings) -> str:
    """Compile the model's blocks, and return what it cost and when it will have paid.

    Args:
        model: the base with its adapter.
        task: the task.
        encoded: every row, as tokens.
        rows: training rows.
        settings: chosen.
    """
    sample = _spread(encoded, rows, min(len(rows), settings.batch_size * max(1, settings.cohort_size)))
    before = _seconds_of_a_step(model, task, encoded, sample, pack=bool(settings.packing))
    started = time.perf_counter()
    compile_blocks(model)
    after = _seconds_of_a_step(model, task, encoded, sample, pack=bool(settings.packing))
    cost, saved = time.perf_counter() - started, before - after
    steps = (
        f"it has paid after {counted(math.ceil(cost / saved), 'pass', 'passes')}" if saved > 0 else "it never pays here"
    )
    return f"compiled in {cost:.0f} s; a pass takes {after:.3f} s instead of {before:.3f} s: {steps}"


def _seconds_of_a_step(model: AdaptedModel, task: Task, encoded: Encoded, rows: IntArray, *, pack: bool) -> float:
    """Return the shortest time of a forward and backward pass, out of three after one to warm up."""
    model.train_only(model.keys)
    seconds = []
    for _ in range(4):
        batch = _batch(model, encoded, rows, pack=pack)
        started = time.perf_counter()
        with model.training(), FastDropout.on(model.device), model.autocast():
            sums, _ = task.losses(model.model, batch)
            sums.sum().backward()
        if model.device.startswith("cuda"):
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - started)
    model.train_only(model.keys)
    return min(seconds[1:])
