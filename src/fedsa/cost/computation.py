"""What a batch takes in arithmetic and memory: it goes through the model as tensors without values."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fedsa.algorithms.base import Algorithm
from fedsa.client.training.autotune import clients_until_saturated
from fedsa.cost.memory import bytes_of_updates, frozen_bytes, frozen_tensors, memory_of
from fedsa.cost.pace import local_steps, refit_steps
from fedsa.models import EmptyModel
from fedsa.recipe import ComputeSettings, Recipe, TrainingSettings
from fedsa.tasks.base import Task
from fedsa.texts.words import counted

__all__ = ["count_computation"]


FROZEN_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What a run keeps frozen weights in, by compute.precision."""


def count_computation(
    recipe: Recipe,
    compute: ComputeSettings,
    model: EmptyModel,
    task: Task,
    algorithm: Algorithm,
    clients: int,
    notes: list[str],
) -> dict[str, Any]:
    """Return FLOPs and memory, and add to the notes how they were counted.

    Args:
        recipe: any.
        compute: its ``[compute]``, without ``auto``.
        model: the adapted model; its frozen tensors get the type that a run keeps them in.
        task: calls the model.
        algorithm: tells what is trained.
        clients: that train in a round.
        notes: added to.
    """
    training = recipe.training
    tokens = min(recipe.task.max_length, model.longest or recipe.task.max_length)
    if model.side is not None:
        tokens = model.longest or 1
        if recipe.task.image_side is None:
            notes.append(
                f"task.image_size is not set: images are counted with {model.side} pixels a side, as the model's "
                "config says; a run takes what its image processor says"
            )
    for tensor in frozen_tensors(model).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(FROZEN_TYPES[compute.precision])
    batches, steps = None, []
    if training.local_epochs:
        notes.append("training.local_epochs: how many batches a round has, and so its FLOPs, is for the data to tell")
    else:
        steps = [local_steps(training, algorithm, round + 1) + refit_steps(recipe) for round in range(recipe.rounds)]
        batches = training.gradient_accumulation_steps * steps[0]
        if halves := sum(algorithm.trains_halves(round + 1) for round in range(recipe.rounds)):
            notes.append(
                f"in {counted(halves, 'round')}, clients train on two halves of their rows, which is twice the steps: "
                "FLOPs of one round are those of round 1, and their total counts the steps of each round"
            )
    alone = {
        "training.head_warmup_epochs": training.head_warmup_epochs,
        "evaluation.fit_head_epochs": recipe.evaluation.fit_head_epochs,
    }
    notes += [
        f"{name}: its pass over a client's rows is not counted (FLOPs, some 60 MiB)"
        for name, epochs in alone.items()
        if epochs
    ]
    figures: dict[str, Any] = {"tokens_per_row": tokens, "batches_per_round": batches}
    figures |= dict.fromkeys(["flops_per_client", "flops_per_round", "total_flops", "memory_bytes", "memory"])
    together = _cohort_size(training, clients, training.batch_size * tokens, compute.device)
    figures["cohort_size"] = together
    try:
        costs = _batch_costs(model, task, algorithm, recipe, together, tokens=tokens, precision=compute.precision)
    except Exception as error:  # a model's own code may look at values, and there are none
        notes.append(f"FLOPs and memory: this model's code needs values to be counted ({type(error).__name__})")
        return figures
    if batches is not None:
        flops = batches * costs["flops"] // together
        figures |= {"flops_per_client": flops, "flops_per_round": flops * clients}
        figures["total_flops"] = figures["flops_per_round"] * sum(steps) // steps[0]
    memory = memory_of(
        weights=frozen_bytes(model, recipe.model.quantization),
        tensors={key: parameter.detach() for key, parameter in model.parameters.items()},
        algorithm=algorithm,
        training=training,
        activations=max(costs["training_bytes"], costs["evaluation_bytes"]),
        device=compute.device,
        cohort=together,
        compute_type=FROZEN_TYPES[compute.precision],
        updates=bytes_of_updates(recipe, algorithm, model, clients),
    )
    of_text = (
        "task.max_length, or the most that the model takes); real rows are shorter, so FLOPs and activations are upper "
        "bounds"
    )
    notes += [
        f"a batch is counted as {counted(training.batch_size, 'row')} of {counted(tokens, 'token')} ("
        + (f"an image of {model.side} pixels a side)" if model.side else of_text),
        "evaluation is counted in the memory, but not in the FLOPs; the memory of the rows themselves is not counted",
    ]
    return figures | {"memory_bytes": sum(memory.values()), "memory": memory}


def _cohort_size(training: TrainingSettings, clients: int, tokens: int, device: str) -> int:
    """Return how many clients go through the model at once, if memory does not limit them.

    Args:
        training: what it says stays.
        clients: that train in a round.
        tokens: of one client's batch.
        device: that computes.
    """
    if training.trainer == "sequential":
        return 1
    return min(clients, training.cohort_size or clients_until_saturated(tokens, device))


def _batch_costs(
    model: EmptyModel,
    task: Task,
    algorithm: Algorithm,
    recipe: Recipe,
    together: int,
    *,
    tokens: int,
    precision: str,
) -> dict[str, int]:
    """Run one training batch and one evaluation batch on tensors without values, and return what they cost.

    Args:
        model: the adapted model; which of its parameters are trained is set here.
        task: calls the model.
        algorithm: tells what is trained.
        recipe: gives the batches' sizes.
        together: clients whose batches go through the model at once.
        tokens: of every row.
        precision: ``fp32`` or ``bf16``.

    Returns:
        ``flops`` of the training batch: two for each multiplication and addition of matrices, forward and backward;
        ``training_bytes`` and ``evaluation_bytes``: live at the peak, beside the model's own.
    """
    for key, parameter in model.parameters.items():
        parameter.requires_grad_(algorithm.plan(key, 1).trained)
    costs = {}
    with FakeTensorMode():
        values = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
            for name, tensor in chain(model.model.named_parameters(), model.model.named_buffers())
        }
        sizes = {"evaluation": recipe.evaluation.batch_size, "training": together * recipe.training.batch_size}
        for name, rows in sizes.items():
            is_training = name == "training"
            batch = task.example(rows, model.side or tokens)
            run: Any = partial(_call, model.model.train(is_training), values)
            flops = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
            with _LivePeak([*values.values(), *batch.values()]) as live, flops:
                with (
                    torch.set_grad_enabled(is_training),
                    torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
                ):
                    outputs = task.outputs(run, batch)
                if is_training:
                    outputs.sum().backward()
                    costs["flops"] = flops.get_total_flops()
            costs[f"{name}_bytes"] = live.peak
    return costs


def _call(model: torch.nn.Module, values: Mapping[str, Tensor], **inputs: Tensor) -> Any:
    return torch.func.functional_call(model, dict(values), (), inputs)


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


_CPU_ATTENTION = {  # torch's counter knows the attention kernels of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


class _LivePeak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were; those given are not counted."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as torch writes it
        self.peak = self._now = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._known = known  # kept alive, so that their storages' numbers stay theirs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage._cdata)
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return result

    def _free(self, number: int, size: int) -> None:
        self._seen.discard(number)
        self._now -= size
