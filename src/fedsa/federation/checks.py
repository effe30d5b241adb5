"""What a federation cannot be made of: refused before anything is trained, most of it before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from fedsa.accounting import require_accountant
from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import Algorithm
from fedsa.callbacks import check_callbacks
from fedsa.client.training.head_warmup import obstacle
from fedsa.errors import ConfigError, Mistake, ModelError
from fedsa.models import (
    AdaptedModel,
    EmptyModel,
    check_layer_names,
    check_model_extras,
    require_weighable,
    unlike_products,
)
from fedsa.recipe import AdapterSettings, Recipe
from fedsa.tasks import make_task
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.texts.words import counted
from fedsa.types import Key, Side

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "check_base",
    "check_early",
    "check_heads",
    "check_layers",
    "check_personal",
    "check_single_items",
    "check_steady",
    "check_tokens",
    "check_weighable",
    "refuse_simulated",
]


def check_early(recipe: Recipe) -> None:
    """Refuse what can be seen before any rows are read and any weights are loaded or fetched.

    Raises:
        ConfigError: there is no such callback, or it needs an extra that is not installed.
        MissingExtraError: the model, the task or the accounting of privacy needs one.
        ModelError: the adapter names layers that the model does not have.
    """
    mistakes = check_callbacks({"callbacks": recipe.callbacks, "report_to": recipe.report_to})
    if mistakes:
        raise ConfigError(mistakes)
    if recipe.privacy.kind != "none":
        require_accountant()
    if recipe.task.is_own:  # it may need the names of the classes, which the rows tell
        check_model_extras(recipe.model, takes_images=False)
        return
    task = make_task(recipe.task, recipe.task.class_names or ["0", "1"])
    check_model_extras(recipe.model, takes_images=task.takes_images)
    check_layer_names(recipe.model, recipe.adapter, auto_model=task.auto_model, options=task.model_options())


def check_personal(recipe: Recipe, algorithm: Algorithm, keys: Sequence[Key], variant: str) -> None:
    """Refuse what a recipe wants of clients' personal tensors if the method has none, or nothing but them.

    Args:
        recipe: any.
        algorithm: its method.
        keys: every tensor of the adapter and the head.
        variant: the adapter's.

    Raises:
        ConfigError: with every such setting.
    """
    by_round = [[algorithm.plan(key, round) for key in keys] for round in range(1, recipe.rounds + 1)]
    has_personal = any(plan.trained and not (plan.sent or plan.received) for plans in by_round for plan in plans)
    always_shares = all(any(plan.trained and plan.received for plan in plans) for plans in by_round)
    mistakes = []
    if recipe.personal_state == "reconstruct" and not (has_personal and always_shares):
        lacks = "shares nothing in some round" if has_personal else "keeps nothing at the client"
        mistakes.append(Mistake("personal_state", f"'reconstruct' is of no use: {recipe.algorithm} {lacks}; use store"))
    if recipe.privacy.kind == "example" and any(algorithm.trains_halves(round + 1) for round in range(recipe.rounds)):
        why = (
            f"{recipe.algorithm} trains on halves of a client's rows in some rounds, which the accounting does not know"
        )
        mistakes.append(Mistake("privacy.kind", f"'example' does not go with the method: {why}; see its options"))
    mistakes += _of_class_prior(recipe, algorithm)
    if algorithm.pools_rows:
        mistakes += _of_pooling(recipe)
    if recipe.adaptation.freeze_shared and not has_personal and recipe.holdout_clients:
        mistakes.append(
            Mistake("adaptation.freeze_shared", f"{recipe.algorithm} keeps nothing at the client: use false")
        )
    if recipe.evaluation.global_model == "fit" and not VARIANTS[variant].is_product:
        mistakes.append(
            Mistake("evaluation.global_model", f"'fit' needs ΔW = s·B·A, which {variant} is not: use 'average'")
        )
    if mistakes:
        raise ConfigError(mistakes)


def _of_class_prior(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    """Yield the mistakes of a recipe whose clients' heads have how frequent each class is."""
    setting = "algorithm_options.class_prior"
    if not recipe.task.has_classes:
        if recipe.algorithm_options.get("class_prior"):
            yield Mistake(setting, f"task.kind = {recipe.task.kind!r} has no classes: leave it out")
        return
    if algorithm.class_prior and recipe.privacy.kind == "example":
        why = "what a client sends would depend on all of its rows at once, without noise"
        yield Mistake(setting, f"does not go with privacy.kind = 'example': {why}; set it to false")
    if algorithm.class_prior and recipe.training.weight_decay:
        why = "a decay of the head's bias would leave a part of the class frequencies in what is sent"
        yield Mistake(setting, f"does not go with training.weight_decay: {why}; set one of them to false or to 0")


def _of_pooling(recipe: Recipe) -> Iterator[Mistake]:
    """Yield the mistakes of a recipe whose clients do not train themselves."""
    name = recipe.algorithm
    if recipe.evaluation.evaluate_after != "aggregate":
        why = f"{name} trains nothing at a client, so there is nothing to measure before the aggregate: use 'aggregate'"
        yield Mistake("evaluation.evaluate_after", why)
    if recipe.evaluation.fit_head_epochs:
        why = (
            f"{name} trains one head on the rows of all clients, so there is no client whose head was not: set it to 0"
        )
        yield Mistake("evaluation.fit_head_epochs", why)
    if recipe.privacy.kind == "example":
        why = f"'example' does not go with {name}, in which every row leaves its client: use 'none'"
        yield Mistake("privacy.kind", why)


def check_layers(
    model: nn.Module, name: str, algorithm: Algorithm, adapter: AdapterSettings, global_model: str
) -> None:
    """Refuse layers whose update is not s·B·A of two matrices, where that is computed of every adapted layer.

    Args:
        model: PEFT's, with the adapter in it; its tensors may be without values.
        name: of the method.
        algorithm: the method.
        adapter: the recipe's ``[adapter]``.
        global_model: its ``evaluation.global_model``.

    Raises:
        ModelError: with the layers' names.
    """
    if algorithm.needs_product or algorithm.folds:
        who, mend = f"algorithm = {name!r} computes", "use a method that does not (fedsa, fedit)"
    elif global_model == "fit":
        who, mend = "evaluation.global_model = 'fit' computes", "use 'average'"
    elif adapter.ranks or len(algorithm.adapters) > 1:
        what = "adapter.ranks cuts" if adapter.ranks else f"algorithm = {name!r} adds up"
        who, mend = what, "leave ranks out" if adapter.ranks else "use a method of one adapter"
    else:
        return
    odd = unlike_products(model)
    if odd:
        first, kind = next(iter(odd.items()))
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise ModelError(
            f"{who} B·A of each layer as matrices, and {first}{more} is {kind}, whose update is no such product: "
            f"take it out of the adapter's layers, or {mend}"
        )


def check_single_items(recipe: Recipe, items: Sequence[IntArray], rows: Sequence[IntArray]) -> None:
    """Refuse a task that makes several items of a row, where rows are protected: each item is clipped by itself.

    Args:
        recipe: any.
        items: what each client trains.
        rows: what they are made of.

    Raises:
        ConfigError: it does.
    """
    if recipe.privacy.kind == "example" and any(len(some) != len(own) for some, own in zip(items, rows, strict=True)):
        what = f"{recipe.task.kind!r} trains several items of a row, which are not clipped together: use another task"
        raise ConfigError([Mistake("task.kind", f"does not go with privacy.kind = 'example': {what}")])


def check_tokens(model: PreTrainedModel, tokenizer: Any, encoded: Encoded) -> None:
    """Refuse rows with a token that the model has no vector for.

    Raises:
        ModelError: the tokenizer is another model's, or has tokens that the model was not made larger for.
    """
    try:
        vectors = cast(Any, model.get_input_embeddings()).num_embeddings
    except (NotImplementedError, AttributeError):  # a model without such a table, as of images
        return
    if not hasattr(tokenizer, "all_special_ids") or len(tokenizer) <= vectors:
        return
    items = np.flatnonzero(encoded.lengths)
    for start in range(0, len(items), 1000):
        largest = int(encoded.batch(items[start : start + 1000])["input_ids"].max())
        if largest >= vectors:
            raise ModelError(
                f"the tokenizer has {counted(len(tokenizer), 'token')} and the model vectors for {vectors:,}; the rows "
                f"have token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}): take the model's own tokenizer, "
                "or make the model larger with resize_token_embeddings(len(tokenizer)) and save both"
            )


def check_steady(model: AdaptedModel, task: Task, encoded: Encoded, items: IntArray) -> None:
    """Refuse a base model that would not stay as it is while clients train."""

    def run(adapted: nn.Module) -> None:
        batch = model.begin(encoded.batch(items), [len(items)], seeds=[0], batches=[0])
        task.losses(adapted, batch)

    model.check_steady(run)


def check_heads(recipe: Recipe, algorithm: Algorithm, model: AdaptedModel | EmptyModel, task: Task) -> None:
    """Refuse to fit heads alone, before training or for a measurement, where that does not go with the rest.

    Args:
        recipe: any.
        algorithm: its method.
        model: the base with its adapter.
        task: the task.

    Raises:
        ModelError: there is no head to fit alone, or the server would take the warm-up for a step of the training.
    """
    warmup = recipe.training.head_warmup_epochs
    settings = {
        "training.head_warmup_epochs": warmup,
        "evaluation.fit_head_epochs": recipe.evaluation.fit_head_epochs,
    }
    for name, epochs in settings.items():
        why = obstacle(model, task) if epochs else None
        if why:
            raise ModelError(
                f"{name} = {epochs} does not go with task.kind = {recipe.task.kind!r} and this model ({why}): set it "
                "to 0"
            )
    sent = any(key.factor.side is Side.HEAD and algorithm.plan(key, 1).sent for key in model.keys)
    if warmup and sent and recipe.server.optimizer != "none":
        raise ModelError(
            f"training.head_warmup_epochs = {warmup} does not go with server.optimizer = "
            f"{recipe.server.optimizer!r} where the head is sent, which would carry the warm-up on like a step of "
            "the training: set it to 0, or share_head = false"
        )


def check_base(task: Task, kind: str, algorithm: Algorithm, name: str, variant: str) -> None:
    """Refuse a task that asks the base model, where the model with its adapter off is not the base.

    Args:
        task: the task.
        kind: its name.
        algorithm: the method.
        name: its name.
        variant: the adapter's.

    Raises:
        ModelError: method or variant changes the base's weights.
    """
    if not task.asks_base:
        return
    why = f"task.kind = {kind!r} compares the model with its base, which is the model with its adapter off, and"
    if algorithm.folds:
        raise ModelError(f"{why} algorithm = {name!r} adds to the base's weights: use a method that does not (fedsa)")
    if not VARIANTS[variant].starts_at_zero:
        raise ModelError(f"{why} adapter.variant = {variant!r} takes its start from them: use 'lora'")


def check_weighable(algorithm: Algorithm, name: str, model: AdaptedModel | EmptyModel, task: Task, kind: str) -> None:
    """Refuse a method that weighs its adapters by what is in a row, where it cannot.

    Args:
        algorithm: the method.
        name: its name.
        model: the base with its adapter.
        task: the task.
        kind: its name.

    Raises:
        ModelError: the layers cannot be weighed row by row, or a row holds the answer too.
    """
    if not algorithm.references:
        return
    require_weighable(model.model)
    if not task.has_head:
        raise ModelError(
            f"{name} weighs its adapters by what is in a row, and with task.kind = {kind!r} that is the answer too: "
            "use another method, or an option that does not weigh"
        )


def refuse_simulated(recipe: Recipe, algorithm: Algorithm) -> None:
    """Refuse at a site what only a simulation can do.

    Raises:
        ConfigError: the recipe holds clients out, or its method puts all rows together.
    """
    mistakes = []
    if algorithm.pools_rows:
        mistakes.append(Mistake("algorithm", f"{recipe.algorithm} is of a simulation: rows stay at their sites"))
    if recipe.holdout_clients:
        why = "is of a simulation: set it to 0, and adapt such clients at their own sites"
        mistakes.append(Mistake("holdout_clients", why))
    if mistakes:
        raise ConfigError(mistakes, "the agreement")
