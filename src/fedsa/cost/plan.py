"""What a recipe will cost, counted without weights and without data: what is sent, arithmetic, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fedsa.algorithms import make_algorithm
from fedsa.cost.computation import count_computation
from fedsa.cost.memory import frozen_parameters
from fedsa.cost.traffic import count_traffic
from fedsa.data.partition import client_ids
from fedsa.data.rows import DealtRows, deal_rows
from fedsa.data.sources import are_here
from fedsa.errors import ModelError, UserError
from fedsa.federation import check_layers, client_ranks, shapes_of
from fedsa.models import resolve_compute
from fedsa.recipe import OBJECTS, ComputeSettings, PartitionSettings, Recipe
from fedsa.server import first_round, held_out, updates_in_round
from fedsa.steps import make_chain
from fedsa.tasks import make_task
from fedsa.texts.words import counted
from fedsa.types import State

__all__ = ["plan_run"]

Progress: TypeAlias = Callable[[str], None]


def plan_run(recipe: Recipe, *, clients: int | None = None, on_progress: Progress | None = None) -> dict[str, Any]:
    """Count what a recipe's run will train, send, compute and hold in memory. Neither weights nor data are loaded.

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
    each_round = None if number is None else updates_in_round(recipe, number)
    compute = _compute(recipe.compute, notes)
    labels = recipe.task.class_names or (list(rows.label_names) if rows and recipe.task.has_classes else ["0", "1"])
    if recipe.task.class_names is None and recipe.task.has_classes and not rows:
        notes.append("task.labels is not set: the head is counted with 2 classes")
    task = make_task(recipe.task, labels)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    tell("reading the model's config")
    model = shapes_of(recipe, task, algorithm, on_progress=tell)
    check_layers(model.model, recipe.algorithm, algorithm, recipe.adapter, recipe.evaluation.global_model)
    tensors: State = {key: parameter.detach() for key, parameter in model.parameters.items()}
    if recipe.secure_aggregation:
        notes.append(
            "secure_aggregation: an update has 8 bytes a number. Across machines a site sends one for all its clients, "
            "and keys and shares come on top: about 0.5 kB for each other site and round at each site"
        )
    tell("counting")
    senders = number or 1
    if algorithm.pools_rows:
        senders = 1
        notes.append(
            f"algorithm = {recipe.algorithm!r} is no federation: one party trains on all rows. Bytes are those of one "
            "adapter a round, and a round has the steps of all clients that would train in it"
        )
    upload, download = count_traffic(algorithm, tensors, recipe, senders, _ranks(recipe, number, notes, everyone))
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
        "frozen_parameters": frozen_parameters(model),
        **first_round(
            algorithm, tensors, make_chain(recipe.steps), recipe.rounds, mixed_ranks=bool(recipe.adapter.ranks)
        ),
        "total_upload_bytes": upload,
        "total_download_bytes": download,
        **count_computation(recipe, compute, model, task, algorithm, each_round or 1, notes),
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
        notes.append(f"the rows cannot be dealt to clients: {str(error).splitlines()[0]:.300}")
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
