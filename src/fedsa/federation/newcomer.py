"""A client that was not in a finished run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedsa.data.rows import DealtRows
from fedsa.federation.base_models import fresh_base, load_named_base, load_processor
from fedsa.federation.building import build
from fedsa.federation.federation import Federation
from fedsa.federation.resolving import for_newcomer
from fedsa.recipe import Recipe
from fedsa.tasks import make_task

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["newcomer"]


def newcomer(
    recipe: Recipe,
    config: PeftConfig,
    rows: DealtRows,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Federation:
    """Return model, task and rows of a client that was not in a finished run, to train it by itself.

    Args:
        recipe: the run's.
        config: PEFT's description of the run's adapter.
        rows: the newcomer's.
        model: the base as it was before the run; it is adapted in place. None: loaded by its name.
        tokenizer: None: the named model's.
        on_progress: told what takes time.

    Raises:
        UserError: the model cannot be loaded, or the adapter does not fit it.
    """
    tell = on_progress or (lambda text: None)
    recipe = for_newcomer(recipe)
    task = make_task(recipe.task, rows.label_names)
    base = (
        load_named_base(recipe.model, recipe.compute, recipe.seed, task, tell)[0]
        if model is None
        else fresh_base(model)
    )
    processor = tokenizer or load_processor(recipe.model, task, recipe.task.image_side)
    return build(Federation, recipe, base, processor, config, task, rows, tell, has_scale=True)
