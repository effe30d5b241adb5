"""What a federation agrees upon, where nobody has all rows: told by its recipe, its model and its clients' names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fedsa.agreement import Agreement
from fedsa.errors import ConfigError, Mistake
from fedsa.federation.agreeing import agreement_of
from fedsa.federation.base_models import load_named_base, load_processor
from fedsa.federation.building import adapt_base, config_of
from fedsa.federation.checks import check_early
from fedsa.federation.resolving import client_ranks, with_count_noise, with_noise
from fedsa.models import (
    fit_padding,
    position_limit,
)
from fedsa.recipe import Recipe, refuse_objects
from fedsa.server import updates_in_round
from fedsa.tasks import make_task
from fedsa.types import NO_CLASS

__all__ = ["agree"]


def agree(
    recipe: Recipe,
    clients: Sequence[str],
    *,
    only_measured: Collection[str] = (),
    on_progress: Callable[[str], None] | None = None,
) -> Agreement:
    """What server and sites of a federation will hold alike; the base model is loaded for it, and no row is read.

    Args:
        recipe: names the classes, where its task has any. Where its rows lie does not matter.
        clients: every client's id.
        only_measured: those of them that never train.
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
    in_a_round = updates_in_round(recipe, len(clients) - len(only_measured))
    adapted = adapt_base(recipe, base, config_of(recipe, task, base, drawn), task, clients=in_a_round)
    limit = None
    if not task.takes_images:
        tokenizer = load_processor(recipe.model, task, recipe.task.image_side)
        fit_padding(base, tokenizer)
        task, limit = task.fitted(base, tokenizer), position_limit(base, tokenizer)
    ranks = client_ranks(recipe.adapter, sorted(clients))
    # Sites come and go, so how often a client will be drawn is not known: as if it trained in every round.
    resolved = with_count_noise(with_noise(adapted.resolved(recipe, limit), recipe.rounds), in_a_round)
    return agreement_of(resolved, adapted.model, task, labels, ranks, adapted.base)
