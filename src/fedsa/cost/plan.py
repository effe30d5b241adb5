"""What a recipe will cost, counted without weights and without data: what is sent, arithmetic, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fedsa.adapters.algebra import ranked
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.client.training.autotune import bytes_of_a_parameter, clients_until_saturated
from fedsa.data.dealing import client_ids
from fedsa.data.rows import DealtRows, deal_rows
from fedsa.data.sources import are_here
from fedsa.errors import ModelError, UserError
from fedsa.federation import check_layers, client_ranks, first_round
from fedsa.models import EmptyModel, bits_of_a_weight, empty_model, quantized_layers, resolve_compute
from fedsa.recipe import DEFAULT_LOCAL_STEPS, OBJECTS, ComputeSettings, PartitionSettings, Recipe, TrainingSettings
from fedsa.server import Server, held_out, sample_size
from fedsa.steps import make_chain
from fedsa.tasks import make_task
from fedsa.tasks.base import Task
from fedsa.texts.words import counted
from fedsa.types import Factor, Side, State, total_bytes, total_elements

__all__ = ["count_traffic", "memory_of", "plan_run"]

Progress: TypeAlias = Callable[[str], None]

RUNTIME_BYTES = 770 * 2**20
"""Resident memory of a run on a CPU beside weights, clients' states and activations: libraries, tokenizer, compiled
kernels, the report. With ``fedsa run quickstart`` on x86-64 Linux: 534 MiB after imports, 770 MiB in all."""

CPU_ACTIVATION_FACTOR = 1.5
"""Resident over live bytes of activations on a CPU: the allocator keeps freed blocks and cannot use all of them again.
With glibc 1.5 to 1.8, for batches of 32 and 64 rows of 64 tokens through MiniLM. On other devices 1 is taken."""

FROZEN_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What a run keeps frozen weights in, by compute.precision."""


def plan_run(recipe: Recipe, *, clients: int | None = None, on_progress: Progress | None = None) -> dict[str, Any]:
    """Return what a recipe's run will train, send, compute and hold in memory. Neither weights nor data are loaded.

    Args:
        recipe: as `parse_recipe` gives it.
        clients: their number, where the data decides it.
        on_progress: told what takes time.

    Returns:
        What docs/plan.md lists. The names that a run's ``summary.json`` has too have the same meaning.

    Raises:
        UserError: the model cannot be made, the adapter does not fit it, or ``clients`` contradicts the recipe.
    """
    tell = on_progress or (lambda text: None)
    notes: list[str] = []
    rows = None if clients else _rows(recipe, notes, tell)
    number = len(rows.partition.clients) if rows else _clients(recipe.data.partition, clients, notes)
    everyone = sorted(rows.partition.clients) if rows else None
    if number is not None and recipe.holdout_clients:
        names = everyone or [f"{place:09d}" for place in range(number)]
        outside = held_out(names, recipe.holdout_clients, recipe.seed)
        number -= len(outside)
        notes.append(
            f"holdout_clients: {counted(number, 'client is', 'clients are')} in the federation; what the others train "
            "is not counted"
        )
    each_round = None if number is None else sample_size(recipe.fraction_train, number)
    compute = _compute(recipe.compute, notes)
    labels = recipe.task.class_names or (list(rows.label_names) if rows and recipe.task.has_classes else ["0", "1"])
    if recipe.task.class_names is None and recipe.task.has_classes and not rows:
        notes.append("task.labels is not set: the head is counted with 2 classes")
    task = make_task(recipe.task, labels)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    tell("reading the model's config")
    model = empty_model(
        recipe.model,
        recipe.adapter,
        auto_model=task.auto_model,
        options=task.model_options(),
        task_type=task.peft_task_type,
        adapters=algorithm.adapters,
        folds=algorithm.folds,
        gated=algorithm.gated,
        takes_images=task.takes_images,
        image_size=recipe.task.image_side,
        on_progress=tell,
    )
    check_layers(model.model, recipe.algorithm, algorithm, recipe.adapter, recipe.evaluation.global_model)
    tensors: State = {key: parameter.detach() for key, parameter in model.parameters.items()}
    tell("counting")
    upload, download = count_traffic(algorithm, tensors, recipe, number or 1, _ranks(recipe, number, notes, everyone))
    return {
        "algorithm": recipe.algorithm,
        "variant": recipe.adapter.variant,
        "model": recipe.model.path,
        "classes": len(labels) if recipe.task.has_classes else None,
        "rounds": recipe.rounds,
        "clients": number,
        "clients_per_round": each_round,
        "device": compute.device,
        "precision": compute.precision,
        "frozen_parameters": _frozen_parameters(model),
        **first_round(algorithm, tensors, make_chain(recipe.steps), recipe.rounds),
        "total_upload_bytes": upload,
        "total_download_bytes": download,
        **_computation(recipe, compute, model, task, algorithm, each_round or 1, notes),
        "notes": notes,
    }


def _rows(recipe: Recipe, notes: list[str], tell: Progress) -> DealtRows | None:
    """Return the rows where only they tell how many clients there are, and they are here; else None."""
    data, partition = recipe.data, recipe.data.partition
    told = isinstance(partition.clients, dict) or (partition.clients is not None and not partition.within)
    if told or data.path == OBJECTS or not are_here(data):
        return None
    tell("counting clients")
    try:
        rows = deal_rows(recipe)
    except UserError as error:
        notes.append(f"the rows cannot be shared out: {str(error).splitlines()[0]:.300}")
        return None
    notes.append(
        f"{counted(len(rows.partition.clients), 'client')} and the classes are counted in the rows, which are here; "
        "--clients N (in Python `clients=N`) counts N without reading them"
    )
    return rows


def _clients(partition: PartitionSettings, given: int | None, notes: list[str]) -> int | None:
    """Return the number of clients; None where only the data tells."""
    known = None
    if isinstance(partition.clients, dict):
        known = sum(partition.clients.values())
    elif not partition.within:
        known = partition.clients
    if known is None and given is None:
        notes.append(
            "how many clients there are is for the data to tell: what is counted over rounds is of one client that "
            "trains in all of them; --clients N (in Python `clients=N`) counts N"
        )
    if known is not None and given not in (None, known):
        raise UserError(
            f"--clients {given} (in Python `clients={given}`): the recipe has {known}; change its "
            "data.partition.clients"
        )
    return known or given


def _ranks(
    recipe: Recipe, clients: int | None, notes: list[str], everyone: Sequence[str] | None = None
) -> dict[int, int]:
    """Return the place of each client whose rank is less than the adapter's, in the order of ids, and its rank."""
    settings, partition = recipe.adapter.ranks, recipe.data.partition
    if settings is None:
        return {}
    if everyone is not None:
        outside = held_out(everyone, recipe.holdout_clients, recipe.seed)
        inside = [client for client in everyone if client not in outside]
        return {inside.index(c): rank for c, rank in client_ranks(recipe.adapter, everyone).items() if c in inside}
    if clients is None:
        notes.append("adapter.ranks: which rank the one client has is not known: it is taken to be adapter.r")
        return {}
    if isinstance(partition.clients, dict):
        names = [made for value, count in partition.clients.items() for made in client_ids(value, count)]
    elif partition.clients is not None and not partition.within:
        names = client_ids("", partition.clients)
    elif isinstance(settings, dict):
        if len(settings) > clients:
            raise UserError(f"adapter.ranks names {counted(len(settings), 'client')}, and there are {clients}")
        names = [*settings, *(f"{number:09d}" for number in range(clients - len(settings)))]
        if recipe.fraction_train < 1:
            notes.append("adapter.ranks: which of them train in a round depends on all clients' ids: bytes are a guess")
    else:
        names = [f"{number:09d}" for number in range(clients)]
    ordered = sorted(names)
    return {ordered.index(client): rank for client, rank in client_ranks(recipe.adapter, ordered).items()}


def _compute(settings: ComputeSettings, notes: list[str]) -> ComputeSettings:
    """Return the settings without ``auto``. A GPU that is named need not be here: a plan may be for elsewhere."""
    try:
        return resolve_compute(settings)
    except ModelError:
        kind = settings.device.partition(":")[0]
        if kind not in ("cuda", "mps"):
            raise
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if kind == "cuda" else "fp32"
    notes.append(f"{settings.device} is not on this machine: it is taken to compute in {precision}")
    return settings.model_copy(update={"precision": precision})


# -- what is sent ------------------------------------------------------------------------------------------------------


def count_traffic(
    algorithm: Algorithm, tensors: State, recipe: Recipe, clients: int, ranks: Mapping[int, int] | None = None
) -> tuple[int, int]:
    """Return the bytes that all clients send and receive over the whole run, where every update arrives.

    Exact also where only a part of the clients trains in a round: which ones depends on the seed and the round alone.

    Args:
        algorithm: the method.
        tensors: every tensor of the adapter and the head; only shapes and types are looked at.
        recipe: tells rounds, seed and the part that trains.
        clients: their number; their names do not matter.
        ranks: the place of a client in the order of ids to its rank, of those whose rank is less than the tensors'.
    """
    names = [f"{number:09d}" for number in range(clients)]
    by_name = {names[place]: rank for place, rank in (ranks or {}).items()}
    scaling = {key.module: 1.0 for key in tensors if key.factor is Factor.A}  # values there are none
    steps = make_chain(recipe.steps)
    server = Server(
        algorithm,
        algorithm.init(tensors, scaling),
        names,
        seed=recipe.seed,
        fraction_train=recipe.fraction_train,
        steps=steps,
        ranks=by_name,
        stateless=recipe.personal_state == "reconstruct",
    )
    upload = download = 0
    for round in range(1, recipe.rounds + 1):
        sampled = server.sample(round)
        sent = {key: tensor for key, tensor in tensors.items() if algorithm.plan(key, round).sent}
        sizes: dict[int | None, int] = {}
        by_version: dict[tuple[int, int | None], int] = {}
        for client in sampled:
            version, rank = server.client_versions.get(client, 0), by_name.get(client)
            if rank not in sizes:
                sizes[rank] = steps.upload_bytes(ranked(sent, rank))
            if (version, rank) not in by_version:
                by_version[version, rank] = total_bytes(server.payload(client, round).tensors)
            upload += sizes[rank]
            download += by_version[version, rank]
            if recipe.personal_state == "store":
                server.client_versions[client] = round - 1
        server.state = algorithm.aggregate(server.state, (), round)  # new versions; values there are none
    return upload, download


# -- FLOPs and memory of a batch ---------------------------------------------------------------------------------------


def _computation(
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
    for tensor in _frozen(model).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(FROZEN_TYPES[compute.precision])
    batches = None
    if training.local_epochs:
        notes.append("training.local_epochs: how many batches a round has, and so its FLOPs, is for the data to tell")
    else:
        steps = training.local_steps or DEFAULT_LOCAL_STEPS
        if recipe.personal_state == "reconstruct":
            steps += recipe.reconstruction.steps
        batches = training.gradient_accumulation_steps * steps
    if training.head_warmup_epochs:
        notes.append("training.head_warmup_epochs: its pass over a client's rows is not counted (FLOPs, some 60 MiB)")
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
        figures["total_flops"] = figures["flops_per_round"] * recipe.rounds
    memory = memory_of(
        weights=_frozen_bytes(model, recipe.model.quantization),
        tensors={key: parameter.detach() for key, parameter in model.parameters.items()},
        algorithm=algorithm,
        training=training,
        activations=max(costs["training_bytes"], costs["evaluation_bytes"]),
        device=compute.device,
        cohort=together,
        compute_type=FROZEN_TYPES[compute.precision],
        updates=_held_bytes(recipe, algorithm, model, clients),
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


def _held_bytes(recipe: Recipe, algorithm: Algorithm, model: EmptyModel, clients: int) -> int:
    """The bytes of a round's updates, where the method or a step needs all of them at once; else 0."""
    steps = make_chain(recipe.steps)
    if algorithm.is_additive() and not steps.holds_updates:
        return 0
    sent = {key: parameter.detach() for key, parameter in model.parameters.items() if algorithm.plan(key, 1).sent}
    return clients * steps.upload_bytes(sent)


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
        that trains at once its tensors and, for what is trained, gradients and the optimiser's; ``server``: initial
        tensors, the server's, the sums of what is sent, in float64, and the updates; ``activations``. Runtime and
        server are not on a device other than the CPU.
    """
    plans = {key: algorithm.plan(key, 1) for key in tensors}
    whole = total_bytes(tensors)
    deltas = {key: tensor for key, tensor in tensors.items() if key.factor.side is Side.BASE}

    def size(role: str) -> int:
        return total_bytes({key: tensor for key, tensor in tensors.items() if getattr(plans[key], role)})

    anchors = size("received") - total_bytes(deltas) if training.proximal_mu else 0
    client = whole - total_bytes(deltas) + size("trained") // 4 * bytes_of_a_parameter(training, compute_type) + anchors
    weights += total_elements(deltas) * compute_type.itemsize  # one copy: clients hold the same ones
    parts = {"weights": weights, "clients": cohort * client, "activations": activations}
    if device != "cpu":
        return parts
    return parts | {
        "runtime": RUNTIME_BYTES,
        "server": 2 * whole + 2 * size("sent") + updates,
        "activations": int(CPU_ACTIVATION_FACTOR * activations),
    }


def _frozen(model: EmptyModel) -> dict[str, Tensor]:
    """Return the parameters and buffers that no client has of its own, by name."""
    own = {id(parameter) for parameter in model.parameters.values()}
    named = chain(model.model.named_parameters(), model.model.named_buffers())
    return {name: tensor for name, tensor in named if id(tensor) not in own}


def _frozen_bytes(model: EmptyModel, quantization: str | None) -> int:
    """Return the bytes of the parameters and buffers that no client has of its own."""
    frozen = _frozen(model)
    whole = sum(tensor.nbytes for tensor in frozen.values())
    if quantization is None:
        return whole
    ids = {id(tensor) for tensor in frozen.values()}
    few = [layer.weight for _, layer in quantized_layers(model.model) if id(layer.weight) in ids]
    saved = sum(weight.nbytes - weight.numel() * bits_of_a_weight(quantization) / 8 for weight in few)
    return whole - int(saved)


def _frozen_parameters(model: EmptyModel) -> int:
    """Return the base model's parameters; not counted are buffers and the head that was replaced by each client's."""
    names = dict(model.model.named_parameters())
    return sum(
        tensor.numel() for name, tensor in _frozen(model).items() if name in names and ".original_module." not in name
    )
