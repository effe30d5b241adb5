"""What a federation agrees upon, where nobody has all rows: told by its recipe, its model and its clients' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fedsa.agreement import Agreement
from fedsa.algorithms import make_algorithm
from fedsa.errors import ConfigError, Mistake
from fedsa.federation.agreeing import agreement_of
from fedsa.federation.base_models import load_named_base, load_processor
from fedsa.federation.building import adapted
from fedsa.federation.checks import check_early, check_head_warmup, check_layers, check_personal, check_weighable
from fedsa.federation.resolving import client_ranks, written_out
from fedsa.models import (
    fit_padding,
    peft_config_of,
    plain_fingerprint,
    position_limit,
    resolve_compute,
    with_drawn_layers,
)
from fedsa.recipe import Recipe, refuse_objects
from fedsa.seeds import derive_seed
from fedsa.server import sample_size
from fedsa.tasks import make_task
from fedsa.types import NO_CLASS

__all__ = ["agree"]


def agree(recipe: Recipe, clients: Sequence[str], *, on_progress: Callable[[str], None] | None = None) -> Agreement:
    """What server and sites of a federation will hold alike; the base model is loaded for it, and no row is read.

    Args:
        recipe: names the classes, where its task has any. Where its rows lie does not matter.
        clients: every client's id.
        on_progress: told what takes time.

    Raises:
        UserError: the classes are not named, or model, adapter and method do not fit together.
    """
    refuse_objects(recipe, "the recipe")
    tell = on_progress or (lambda text: None)
    check_early(recipe)
    if (recipe.task.has_classes or recipe.task.is_own) and not recipe.task.class_names:
        why = (
            "nobody sees all rows, so the classes cannot be found by looking: name them, in the order of their numbers"
        )
        raise ConfigError([Mistake("task.labels", why)], "a federation whose rows lie elsewhere")
    labels = tuple(recipe.task.class_names or (NO_CLASS,))
    task = make_task(recipe.task, labels)
    tell("loading the model")
    base, drawn = load_named_base(recipe.model, recipe.compute, recipe.seed, task, tell, [])
    seed = derive_seed(recipe.seed, "init")
    config = with_drawn_layers(peft_config_of(recipe.adapter, task_type=task.peft_task_type, seed=seed), drawn, base)
    loaded, compute = plain_fingerprint(base, config), resolve_compute(recipe.compute)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    clients_of_round = sample_size(recipe.fraction_train, len(clients))
    scaling = partial(algorithm.scaling, clients=clients_of_round)
    model = adapted(base, config, algorithm, compute, recipe.seed, scaling)
    check_personal(recipe, algorithm, model.keys, model.variant)
    check_layers(model.model, recipe.algorithm, algorithm, recipe.adapter, recipe.evaluation.global_model)
    check_head_warmup(
        recipe.training.head_warmup_epochs, algorithm, model, task, recipe.task.kind, recipe.server.optimizer
    )
    check_weighable(algorithm, recipe.algorithm, model, task, recipe.task.kind)
    limit = None
    if not task.takes_images:
        tokenizer = load_processor(recipe.model, task, recipe.task.image_side)
        fit_padding(base, tokenizer)
        task, limit = task.fitted(base, tokenizer), position_limit(base, tokenizer)
    resolved = written_out(recipe, base, model.config, limit).model_copy(
        update={"compute": compute, "share_head": algorithm.share_head}
    )
    return agreement_of(resolved, model, task, labels, client_ranks(recipe.adapter, sorted(clients)), loaded)
