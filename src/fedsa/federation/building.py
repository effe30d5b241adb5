"""A federation is put together: model, task and rows are made to fit, checked, and what is left open is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.data.rows import DealtRows
from fedsa.federation.base_models import load_named_base, load_processor
from fedsa.federation.checks import (
    check_head_warmup,
    check_layers,
    check_personal,
    check_steady,
    check_weighable,
)
from fedsa.federation.encoding import encode_rows
from fedsa.federation.resolving import client_ranks, with_choices, written_out
from fedsa.models import AdaptedModel, peft_config_of, plain_fingerprint, resolve_compute, with_drawn_layers
from fedsa.recipe import ComputeSettings, Recipe
from fedsa.seeds import derive_seed
from fedsa.server import held_out, sample_size
from fedsa.tasks import make_task
from fedsa.tasks.base import Task

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from fedsa.federation.federation import Federation

__all__ = ["adapted", "build", "build_by_name"]


def build(
    make: type[Federation],
    recipe: Recipe,
    base: PreTrainedModel,
    processor: Any,
    config: PeftConfig,
    task: Task,
    rows: DealtRows,
    tell: Callable[[str], None],
    of_model: Sequence[str] = (),
    *,
    has_scale: bool = False,
    ranks: Mapping[str, int] | None = None,
) -> Federation:
    """Put a federation together.

    Args:
        make: the class.
        recipe: any.
        base: the base model; it is adapted in place.
        processor: its tokenizer or image processor.
        config: PEFT's description of the adapter.
        task: the task.
        rows: all rows, and who holds which.
        tell: told what takes time.
        of_model: what a user should know of the model.
        has_scale: the config has the method's scale already, as that of a run has.
        ranks: of the clients whose rank is less than the adapter's; None: as the recipe says.

    Raises:
        UserError: model, task, method and rows do not fit together.
    """
    loaded = plain_fingerprint(base, config)
    compute = resolve_compute(recipe.compute)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    everyone = sorted(rows.partition.clients)
    outside = held_out(everyone, recipe.holdout_clients, recipe.seed)
    in_a_round = sample_size(recipe.fraction_train, len(everyone) - len(outside))
    scaling = None if has_scale else partial(algorithm.scaling, clients=in_a_round)
    model = adapted(base, config, algorithm, compute, recipe.seed, scaling)
    check_personal(recipe, algorithm, model.keys, model.variant)
    check_layers(model.model, recipe.algorithm, algorithm, recipe.adapter, recipe.evaluation.global_model)
    check_head_warmup(
        recipe.training.head_warmup_epochs, algorithm, model, task, recipe.task.kind, recipe.server.optimizer
    )
    check_weighable(algorithm, recipe.algorithm, model, task, recipe.task.kind)
    ranks = client_ranks(recipe.adapter, everyone) if ranks is None else ranks
    task, processor, encoded, limit = encode_rows(
        task, base, processor, rows, image_size=recipe.task.image_side, tell=tell
    )
    resolved = written_out(recipe, base, model.config, limit).model_copy(
        update={"compute": compute, "share_head": algorithm.share_head}
    )
    notes = (*rows.notes, *getattr(encoded, "notes", ()), *of_model)  # a task of one's own need not have any
    trained = [
        task.training_items(encoded, rows.partition.clients[client].train)
        for client in everyone
        if client not in outside
    ]
    check_steady(model, task, encoded, trained[0][:2])
    chosen, measured = with_choices(resolved, model, task, encoded, trained, tell)
    return make(chosen, algorithm, model, processor, task, encoded, rows, measured, ranks, outside, notes, loaded)


def build_by_name(
    make: type[Federation],
    recipe: Recipe,
    rows: DealtRows,
    tell: Callable[[str], None],
    *,
    config: PeftConfig | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Federation:
    """Put a federation together whose base model the recipe names.

    Args:
        make: the class.
        recipe: any.
        rows: all rows, and who holds which.
        tell: told what takes time.
        config: PEFT's description of the adapter, with the method's scale in it; None: as the recipe says.
        ranks: as for `build`.

    Raises:
        UserError: the model cannot be loaded, or the parts do not fit together.
    """
    task = make_task(recipe.task, rows.label_names)
    tell("loading the model")
    notes: list[str] = []
    base, drawn = load_named_base(recipe.model, recipe.compute, recipe.seed, task, tell, notes)
    processor, has_scale = load_processor(recipe.model, task, recipe.task.image_side), config is not None
    if config is None:
        seed = derive_seed(recipe.seed, "init")
        config = peft_config_of(recipe.adapter, task_type=task.peft_task_type, seed=seed)
        config = with_drawn_layers(config, drawn, base)
    return build(make, recipe, base, processor, config, task, rows, tell, notes, has_scale=has_scale, ranks=ranks)


def adapted(
    base: PreTrainedModel,
    config: PeftConfig,
    algorithm: Algorithm,
    compute: ComputeSettings,
    seed: int,
    scaling: Callable[[float, int], float] | None,
) -> AdaptedModel:
    """A base model with a federation's adapter in it.

    Args:
        base: adapted in place.
        config: PEFT's description of the adapter.
        algorithm: the method: it says which adapters there are.
        compute: resolved.
        seed: the run's.
        scaling: the method's own scale of an adapter; None: the config has it already.
    """
    return AdaptedModel(
        base,
        config,
        seed=derive_seed(seed, "init"),
        device=compute.device,
        precision=compute.precision,
        adapters=algorithm.adapters,
        folds=algorithm.folds,
        gated=algorithm.gated,
        scaling=scaling,
    )
