"""A federation's parts from Python objects: the recipe that tells what they are, and a loaded model as the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsa.data.rows import ClientTable
from fedsa.errors import DataError, Mistake
from fedsa.federation.base_models import fresh_base
from fedsa.models import layers_outside_the_base, names_of, turn_head, variant_of
from fedsa.recipe import OBJECTS, ModelSettings, Recipe, TaskSettings, parse_recipe
from fedsa.steps import CHECKS
from fedsa.tasks.base import Task
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

__all__ = ["fitted_base", "numbered", "recipe_of_objects"]

_NAMES_IN_CONFIGS = {
    "r": ("r",),
    "lora_alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout", "vera_dropout"),
    "target_modules": ("target_modules",),
    "feedforward_modules": ("feedforward_modules",),
    "modules_to_save": ("modules_to_save",),
}
"""A recipe's settings of the adapter, and what PEFT's configs call them: at most one of the names is in a config."""


def fitted_base(model: PreTrainedModel, task: Task, notes: list[str]) -> tuple[PreTrainedModel, set[str]]:
    """Return a loaded model as a federation's base, and its layers outside the base, which are trained.

    Args:
        model: with a head that fits the task; it is changed in place.
        task: the task.
        notes: added to where a user should know something of the model.

    Raises:
        DataError: its head has another number of classes than the rows.
        ModelError: it has an adapter already, or is quantised.
    """
    options = task.model_options()
    wanted = options.get("id2label", {})
    if task.has_head and model.config.num_labels != options["num_labels"]:
        raise DataError(
            f"the model's head has {counted(int(model.config.num_labels or 0), 'class', 'classes')}, the clients' "
            f"rows have {options['num_labels']} ({', '.join(wanted.values())}): load the model with that num_labels"
        )
    base, drawn = fresh_base(model), layers_outside_the_base(model)
    known = names_of(model.config)
    told = turn_head(base, known, list(wanted.values())) if known and wanted else None
    notes += [told] if told else []
    return base, drawn


def numbered(clients: Sequence[ClientTable]) -> dict[str, ClientTable]:
    """Clients by ids of their own: ``client-1``, ``client-2``, ..., as wide as the largest number."""
    width = len(str(len(clients)))
    return {f"client-{number:0{width}d}": table for number, table in enumerate(clients, start=1)}


def recipe_of_objects(
    model: ModelSettings | Mapping[str, Any] | None,
    peft_config: PeftConfig,
    rounds: int,
    task: TaskSettings | Mapping[str, Any] | None,
    partition: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> Recipe:
    """Return the recipe that tells, as far as a recipe can, what the objects are.

    Raises:
        ConfigError: with every mistake in the settings, those that the objects rule out among them.
    """
    adapter = _adapter_of_object(peft_config)
    ruled_out = {"data": "give `partition=`", "adapter": "give it in peft_config"}
    mistakes = [
        Mistake(name, f"comes from the objects; {mend}") for name, mend in ruled_out.items() if name in settings
    ]
    if isinstance(partition, Mapping) and "kind" in partition:
        mistakes.append(Mistake("partition.kind", "the clients bring their own rows: leave it out"))
    if partition is None or isinstance(partition, Mapping):
        partition = {"kind": "files", **(partition or {})}
    data = {
        "rounds": rounds,
        **{name: value for name, value in settings.items() if name not in ("data", "adapter")},
        "model": {"path": OBJECTS} if model is None else model,
        "adapter": adapter,
        "task": {} if task is None else task,
        "data": {"path": OBJECTS, "partition": partition},
    }
    return parse_recipe(data, source="Federation.from_objects", checks=[*CHECKS, lambda _: mistakes])


def _adapter_of_object(peft_config: PeftConfig) -> dict[str, Any]:
    """Return a recipe's adapter section that tells what a PEFT config is, with what goes with its variant alone."""
    config = peft_config.to_dict()
    config["modules_to_save"] = config.get("modules_to_save") or None
    adapter: dict[str, Any] = {"variant": variant_of(peft_config)}
    for setting, names in _NAMES_IN_CONFIGS.items():
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if value is not None:
            adapter[setting] = sorted(value) if isinstance(value, set | list | tuple) else value
    return adapter
