"""A federation, wired: model, data, clients, method. Made from a recipe or from Python objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from fedsa.adapters.factors import VARIANT_FACTORS
from fedsa.algorithms import check_algorithm, make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.data.clients import SplitName
from fedsa.data.partition import label_counts
from fedsa.data.sharing import ClientTable, SharedRows, share_rows, share_tables
from fedsa.errors import DataError
from fedsa.models import (
    AdaptedModel,
    load_base,
    load_tokenizer,
    peft_config_of,
    position_limit,
    resolve_compute,
    variant_of,
    with_drawn_layers,
)
from fedsa.recipe import OBJECTS, AdapterSettings, ModelSettings, Recipe, TaskSettings, parse_recipe
from fedsa.seeds import derive_seed
from fedsa.tasks.base import Encoded, Task
from fedsa.tasks.classification import Classification
from fedsa.types import Factor

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Federation"]

Progress = Callable[[str], None]


@final
@dataclass(frozen=True)
class Federation:
    """Everything a run needs, in memory. Engines drive it; nothing in it changes but the model's adapter tensors.

    Attributes:
        recipe: resolved: no ``auto`` left in it.
        algorithm: the method.
        model: the base with its adapter, shared by all clients.
        tokenizer: the base model's.
        task: the task.
        encoded: every row, as tokens.
        rows: the rows as text, and who holds which.
    """

    recipe: Recipe
    algorithm: Algorithm
    model: AdaptedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    encoded: Encoded
    rows: SharedRows

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, on_progress: Progress | None = None) -> Federation:
        """Return the federation that a recipe describes.

        Args:
            recipe: as `parse_recipe` gives it.
            on_progress: told what takes time (fetching, loading, tokenising).

        Raises:
            UserError: the recipe's model, adapter or data cannot be used.
            FetchError: a packaged part could not be fetched.
        """
        tell = on_progress or (lambda text: None)
        rows = share_rows(recipe, on_progress=tell)
        task = _task(recipe.task, rows.label_names)
        tell("loading the model")
        base, drawn = _base(recipe, task, tell)
        seed = derive_seed(recipe.seed, "init")
        config = with_drawn_layers(peft_config_of(recipe.adapter, task_type=task.peft_task_type, seed=seed), drawn)
        return cls._build(recipe, base, load_tokenizer(recipe.model), config, task, rows, tell)

    @classmethod
    def from_objects(
        cls,
        model: str | PreTrainedModel,
        peft_config: PeftConfig,
        clients: Mapping[str, ClientTable] | Sequence[ClientTable],
        *,
        rounds: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        task: TaskSettings | Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
        **settings: Any,
    ) -> Federation:
        """Return a federation made of Python objects.

        Args:
            model: hub name or local folder, or a loaded model with a fitting head, which is adapted in place.
            peft_config: a PEFT ``LoraConfig`` or ``VeraConfig``; it is copied.
            clients: client id to its rows, or a list of rows (ids ``client-1``, ...). A client's rows are one
                ``datasets.Dataset`` (split by ``data.partition``'s fractions) or a ``DatasetDict`` with ``train``,
                ``validation`` and ``test``.
            rounds: communication rounds.
            tokenizer: needed with a loaded model; else the model's own.
            task: columns and labels; see `TaskSettings`.
            on_progress: told what takes time.
            settings: any other top-level key of a recipe, e.g. ``algorithm="fedsa"``, ``training={"batch_size": 8}``.

        Raises:
            UserError: something does not fit; a ConfigError lists all mistakes in the settings.
        """
        tell = on_progress or (lambda text: None)
        named = clients if isinstance(clients, Mapping) else _numbered(clients)
        recipe = _recipe_of_objects(model, peft_config, rounds, task, settings)
        rows = share_tables(named, recipe)
        the_task = _task(recipe.task, rows.label_names)
        if isinstance(model, str):
            (base, drawn), tokenizer = _base(recipe, the_task, tell), tokenizer or load_tokenizer(recipe.model)
        elif tokenizer is None:
            raise DataError("give tokenizer=... with a loaded model, or give the model as a name")
        else:
            base, drawn = model, set()
            if base.config.num_labels != len(rows.label_names):
                raise DataError(
                    f"the model's head has {base.config.num_labels} classes, the clients' rows have "
                    f"{len(rows.label_names)} ({', '.join(rows.label_names)}): load the model with that num_labels"
                )
        config = with_drawn_layers(peft_config, drawn)
        config.task_type = the_task.peft_task_type
        return cls._build(recipe, base, tokenizer, config, the_task, rows, tell)

    @classmethod
    def _build(
        cls,
        recipe: Recipe,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: PeftConfig,
        task: Task,
        rows: SharedRows,
        tell: Progress,
    ) -> Federation:
        compute = resolve_compute(recipe.compute)
        model = AdaptedModel(
            base, config, seed=derive_seed(recipe.seed, "init"), device=compute.device, precision=compute.precision
        )
        if base.config.pad_token_id is None:  # a decoder finds a row's last token by it
            no_pad = tokenizer.pad_token_id is None
            base.config.pad_token_id = tokenizer.eos_token_id if no_pad else tokenizer.pad_token_id
        algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
        tell("tokenising")
        used = np.unique(np.concatenate([part for parts in rows.partition.clients.values() for part in parts]))
        chosen = model.config.target_modules
        adapter = {"r": recipe.adapter.rank, "target_modules": chosen if isinstance(chosen, str) else sorted(chosen)}
        limit = position_limit(base, tokenizer)
        shortened = recipe.task.model_copy(update={"max_length": min(recipe.task.max_length, limit)})
        resolved = recipe.model_copy(
            update={
                "compute": compute,
                "share_head": algorithm.share_head,
                "adapter": recipe.adapter.model_copy(update=adapter),
                "task": shortened,
            }
        )
        encoded = task.encode(rows.table, used, tokenizer, limit=limit)
        return cls(resolved, algorithm, model, tokenizer, task, encoded, rows)

    @property
    def clients(self) -> tuple[str, ...]:
        """Client ids, sorted."""
        return tuple(sorted(self.rows.partition.clients))

    def fingerprint(self) -> str:
        """Return a hash of every client's rows, tokens and labels: a resumed run must have the same."""
        digest = hashlib.sha256(self.encoded.fingerprint().encode())
        for client in self.clients:
            digest.update(json.dumps(client).encode())
            for part in self.rows.partition.clients[client]:
                digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
        return digest.hexdigest()

    def label_counts(self, split: SplitName) -> Mapping[str, Sequence[int]]:
        """Return, for each client, its number of rows of each class in a split."""
        return label_counts(self.rows.partition, self.rows.labels, len(self.rows.label_names), split)

    def sharing_plan(self) -> list[dict[str, Any]]:
        """Return what happens to each factor in the first round: tensors, parameters, trained, sent, received."""
        table: dict[Factor, dict[str, Any]] = {}
        for key, tensor in self.model.initial.items():
            plan = self.algorithm.plan(key, 1)
            entry = table.setdefault(
                key.factor, {"factor": key.factor.value, "tensors": 0, "parameters": 0, **plan._asdict()}
            )
            entry["tensors"] += 1
            entry["parameters"] += tensor.numel()
        return [table[factor] for factor in VARIANT_FACTORS[self.model.variant] if factor in table]


def _task(settings: TaskSettings, label_names: Sequence[str]) -> Task:
    return Classification(tuple(settings.text_columns), tuple(label_names), settings.max_length)


def _base(recipe: Recipe, task: Task, tell: Progress) -> tuple[PreTrainedModel, set[str]]:
    return load_base(
        recipe.model,
        auto_model=task.auto_model,
        options=task.model_options(),
        seed=derive_seed(recipe.seed, "init"),
        on_progress=tell,
    )


def _numbered(clients: Sequence[ClientTable]) -> dict[str, ClientTable]:
    width = len(str(len(clients)))
    return {f"client-{number:0{width}d}": table for number, table in enumerate(clients, start=1)}


def _recipe_of_objects(
    model: str | PreTrainedModel,
    peft_config: PeftConfig,
    rounds: int,
    task: TaskSettings | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> Recipe:
    """Return the recipe that tells, as far as a recipe can, what the objects are."""
    variant, config = variant_of(peft_config), peft_config.to_dict()
    targets = config["target_modules"]
    adapter = {
        "variant": variant,
        "r": config["r"],
        "target_modules": sorted(targets) if isinstance(targets, set | list | tuple) else targets,
        "dropout": config["vera_dropout" if variant == "vera" else "lora_dropout"],
        "lora_alpha": config.get("lora_alpha", AdapterSettings().lora_alpha),
    }
    path = model if isinstance(model, str) else model.config._name_or_path or OBJECTS
    partition = {"kind": "files", **settings.get("partition", {})}
    rest = {name: value for name, value in settings.items() if name != "partition"}
    data = {
        "rounds": rounds,
        **rest,
        "model": ModelSettings(path=path).model_dump(),
        "adapter": adapter,
        "task": task.model_dump() if isinstance(task, TaskSettings) else dict(task or {}),
        "data": {"path": OBJECTS, "partition": partition},
    }
    return parse_recipe(data, source="Federation.from_objects", checks=[check_algorithm])
