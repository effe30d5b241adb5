"""How much memory a run will take at its peak, counted from shapes."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from fedsa.algorithms.base import Algorithm
from fedsa.client.training.autotune import bytes_of_a_parameter
from fedsa.models import EmptyModel, bits_of_a_weight, quantized_layers
from fedsa.recipe import Recipe, TrainingSettings
from fedsa.steps import make_chain
from fedsa.types import Side, State, total_bytes, total_elements

__all__ = ["bytes_of_updates", "frozen_bytes", "frozen_parameters", "frozen_tensors", "memory_of"]


RUNTIME_BYTES = 770 * 2**20
"""Resident memory of a run on a CPU beside weights, clients' states and activations: libraries, tokenizer, compiled
kernels, the report. With ``fedsa run quickstart`` on x86-64 Linux: 534 MiB after imports, 770 MiB in all."""


CPU_ACTIVATION_FACTOR = 1.5
"""Resident over live bytes of activations on a CPU: the allocator keeps freed blocks and cannot use all of them again.
With glibc 1.5 to 1.8, for batches of 32 and 64 rows of 64 tokens through MiniLM. On other devices 1 is taken."""


def memory_of(
    *,
    weights: int,
    tensors: State,
    algorithm: Algorithm,
    training: TrainingSettings,
    activations: int,
    device: str,
    cohort: int,
    compute_type: torch.dtype,
    updates: int,
) -> dict[str, int]:
    """Return the parts of a run's peak memory in bytes: of the process on a CPU, else of the device.

    Args:
        weights: bytes of everything frozen.
        tensors: one client's tensors of the adapter and the head.
        algorithm: tells what of them is trained, sent and received.
        training: the optimiser.
        activations: live bytes of a batch at its peak, of all clients that train at once.
        device: ``cpu``, or another.
        cohort: clients that train at once.
        compute_type: what the layers compute in.
        updates: bytes of the updates that the server holds at once.

    Returns:
        ``runtime``: libraries and kernels; ``weights``, with what the server adds to them; ``clients``: for each client
        that trains at once its tensors and, for what is trained, gradients and the optimiser's, and what two halves of
        its rows come to where it trains on each; ``server``: initial tensors, the server's, the sums of what is sent,
        in float64, and the updates; ``activations``. Runtime and server are not on a device other than the CPU, and
        neither are halves and what the method holds beside the model's tensors.
    """
    every = algorithm.whole(tensors)
    whole, beside = total_bytes(every), total_bytes(every) - total_bytes(tensors)
    deltas = {key: tensor for key, tensor in tensors.items() if key.factor.side is Side.BASE}

    def size(role: str, of: State = tensors) -> int:
        return total_bytes({key: tensor for key, tensor in of.items() if getattr(algorithm.plan(key, 1), role)})

    anchors = size("received") - total_bytes(deltas) if training.proximal_mu else 0
    client = (
        total_bytes(tensors)
        - total_bytes(deltas)
        + size("trained") // 4 * bytes_of_a_parameter(training, compute_type)
        + anchors
    )
    weights += total_elements(deltas) * compute_type.itemsize  # one copy: clients hold the same ones
    parts = {"weights": weights, "clients": cohort * client, "activations": activations}
    if device != "cpu":
        return parts
    halves = 2 * size("trained") if algorithm.trains_halves(1) else 0
    return parts | {
        "clients": cohort * (client + beside + halves),
        "runtime": RUNTIME_BYTES,
        "server": 2 * whole + 2 * size("sent", every) + updates,
        "activations": int(CPU_ACTIVATION_FACTOR * activations),
    }


def bytes_of_updates(recipe: Recipe, algorithm: Algorithm, model: EmptyModel, clients: int) -> int:
    """The bytes of a round's updates, where the method or a step needs all of them at once; else 0.

    They are as the server holds them: what travelled as whole numbers has become fp32.
    """
    steps = make_chain(recipe.steps)
    if algorithm.is_additive() and not steps.holds_updates:
        return 0
    every = algorithm.whole({key: parameter.detach() for key, parameter in model.parameters.items()})
    sent = {key: tensor for key, tensor in every.items() if algorithm.plan(key, 1).sent}
    return clients * (total_bytes(sent) if recipe.compression.kind != "none" else steps.upload_bytes(sent))


def frozen_tensors(model: EmptyModel) -> dict[str, Tensor]:
    """Return the parameters and buffers that no client has of its own, by name."""
    own = {id(parameter) for parameter in model.parameters.values()}
    named = chain(model.model.named_parameters(), model.model.named_buffers())
    return {name: tensor for name, tensor in named if id(tensor) not in own}


def frozen_bytes(model: EmptyModel, quantization: str | None) -> int:
    """Return the bytes of the parameters and buffers that no client has of its own."""
    frozen = frozen_tensors(model)
    whole = sum(tensor.nbytes for tensor in frozen.values())
    if quantization is None:
        return whole
    ids = {id(tensor) for tensor in frozen.values()}
    few = [layer.weight for _, layer in quantized_layers(model.model) if id(layer.weight) in ids]
    saved = sum(weight.nbytes - weight.numel() * bits_of_a_weight(quantization) / 8 for weight in few)
    return whole - int(saved)


def frozen_parameters(model: EmptyModel) -> int:
    """Return the base model's parameters; not counted are buffers and the head that was replaced by each client's."""
    names = dict(model.model.named_parameters())
    frozen = frozen_tensors(model).items()
    return sum(tensor.numel() for name, tensor in frozen if name in names and ".original_module." not in name)
