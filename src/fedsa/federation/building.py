"""A federation is put together: model, task and rows are made to fit, checked, and what is left open is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fedsa.adapters.heads import bias_of_classes
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.data.rows import DealtRows
from fedsa.federation.base_models import load_named_base, load_processor
from fedsa.federation.checks import (
    check_base,
    check_heads,
    check_layers,
    check_personal,
    check_single_items,
    check_steady,
    check_weighable,
)
from fedsa.federation.encoding import encode_rows
from fedsa.federation.pooling import note_on_pooling
from fedsa.federation.resolving import client_ranks, with_choices, with_count_noise, with_noise, written_out
from fedsa.models import (
    AdaptedModel,
    EmptyModel,
    empty_model,
    peft_config_of,
    plain_fingerprint,
    resolve_compute,
    with_drawn_layers,
)
from fedsa.recipe import ComputeSettings, Recipe
from fedsa.seeds import derive_seed
from fedsa.server import held_out, most_rounds, updates_in_round
from fedsa.tasks import make_task
from fedsa.tasks.base import Task
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from fedsa.federation.federation import Federation

__all__ = ["AdaptedBase", "adapt_base", "build", "build_by_name", "config_of", "shapes_of"]


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
    everyone = sorted(rows.partition.clients)
    outside = held_out(everyone, recipe.holdout_clients, recipe.seed)
    in_a_round = updates_in_round(recipe, len(everyone) - len(outside))
    adapted = adapt_base(recipe, base, config, task, clients=None if has_scale else in_a_round)
    model, algorithm = adapted.model, adapted.algorithm
    ranks = client_ranks(recipe.adapter, everyone) if ranks is None else ranks
    task, processor, encoded, limit = encode_rows(
        task, base, processor, rows, image_size=recipe.task.image_side, tell=tell
    )
    inside = [client for client in everyone if client not in outside]
    # A part of a federation does not know how often its clients are drawn; what was agreed upon covers every round.
    rounds = recipe.rounds if has_scale else most_rounds(recipe, inside)
    resolved = with_count_noise(with_noise(adapted.resolved(recipe, limit), rounds), in_a_round)
    pooling = [note_on_pooling(recipe.algorithm, inside)] if algorithm.pools_rows else []
    of_rows = (*rows.notes, *getattr(encoded, "notes", ()))  # a task of one's own need not have any
    notes = (*pooling, *_on_class_prior(recipe, algorithm, model, rows), *of_rows, *of_model)
    trained = [task.training_items(encoded, rows.partition.clients[client].train) for client in inside]
    check_single_items(recipe, trained, [rows.partition.clients[client].train for client in inside])
    check_steady(model, task, encoded, trained[0][:2])
    chosen, measured = with_choices(resolved, model, task, encoded, trained, tell)
    return make(chosen, algorithm, model, processor, task, encoded, rows, measured, ranks, outside, notes, adapted.base)


def _on_class_prior(recipe: Recipe, algorithm: Algorithm, model: AdaptedModel, rows: DealtRows) -> list[str]:
    """A sentence for a user whose method adds to heads how frequent classes are, where the head has no place for it."""
    classes = len(rows.label_names)
    if not (algorithm.class_prior and recipe.task.has_classes) or bias_of_classes(model.initial, classes):
        return []
    return [
        f"class_prior is not used: the model's head has no bias of {counted(classes, 'number')}, one for each class"
    ]


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
        config = config_of(recipe, task, base, drawn)
    return build(make, recipe, base, processor, config, task, rows, tell, notes, has_scale=has_scale, ranks=ranks)


class AdaptedBase(NamedTuple):
    """A base model with a federation's adapter in it, checked.

    Attributes:
        model: the model.
        algorithm: the method.
        compute: what it computes with, resolved.
        base: hash of the base as it was loaded.
    """

    model: AdaptedModel
    algorithm: Algorithm
    compute: ComputeSettings
    base: str

    def resolved(self, recipe: Recipe, limit: int | None) -> Recipe:
        """The recipe with what model, method and machine choose written out; `limit` is of the model's tokens."""
        base = cast("PreTrainedModel", self.model.model.get_base_model())
        return written_out(recipe, base, self.model.config, limit).model_copy(
            update={"compute": self.compute, "share_head": self.algorithm.share_head}
        )


def adapt_base(
    recipe: Recipe, base: PreTrainedModel, config: PeftConfig, task: Task, *, clients: int | None
) -> AdaptedBase:
    """Put a federation's adapter into a base model, and check that model, task and method fit together.

    Args:
        recipe: any.
        base: adapted in place.
        config: PEFT's description of the adapter.
        task: the task.
        clients: that train in a round, for the method's own scale; None: the config has it already.

    Raises:
        UserError: they do not.
    """
    loaded = plain_fingerprint(base, config)
    compute = resolve_compute(recipe.compute)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    model = AdaptedModel(
        base,
        config,
        seed=derive_seed(recipe.seed, "init"),
        device=compute.device,
        precision=compute.precision,
        adapters=algorithm.adapters,
        folds=algorithm.folds,
        gated=algorithm.gated,
        scaling=None if clients is None else partial(algorithm.scaling, clients=clients),
    )
    check_personal(recipe, algorithm, model.keys, model.variant)
    check_layers(model.model, recipe.algorithm, algorithm, recipe.adapter, recipe.evaluation.global_model)
    check_heads(recipe, algorithm, model, task)
    check_weighable(algorithm, recipe.algorithm, model, task, recipe.task.kind)
    check_base(task, recipe.task.kind, algorithm, recipe.algorithm, model.variant)
    return AdaptedBase(model, algorithm, compute, loaded)


def config_of(recipe: Recipe, task: Task, base: PreTrainedModel, drawn: set[str]) -> PeftConfig:
    """PEFT's description of a recipe's adapter; layers of the base that were drawn at random are trained in full."""
    seed = derive_seed(recipe.seed, "init")
    config = peft_config_of(recipe.adapter, task_type=task.peft_task_type, seed=seed)
    return with_drawn_layers(config, drawn, base)


def shapes_of(
    recipe: Recipe, task: Task, algorithm: Algorithm, *, on_progress: Callable[[str], None] | None = None
) -> EmptyModel:
    """The adapted model of a recipe without weights: its layers and shapes, for what is planned or checked.

    Args:
        recipe: any.
        task: its task.
        algorithm: its method.
        on_progress: told what is fetched.

    Raises:
        UserError: model and adapter do not fit.
    """
    return empty_model(
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
        on_progress=on_progress,
    )
