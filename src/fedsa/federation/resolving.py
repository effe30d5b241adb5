"""What a recipe leaves open, written out: by PEFT, by transformers, by the hub, by defaults, and by measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedsa.accounting import epsilon_of, noise_multiplier_for, require_accountant
from fedsa.client.training.autotune import choose_attention, choose_training, compile_model
from fedsa.errors import ConfigError, DataError, Mistake, ModelError, near
from fedsa.models import AdaptedModel, checkpoint_activations, resolve_compute
from fedsa.packages.parts import PREFIX
from fedsa.recipe import (
    DEFAULT_LOCAL_STEPS,
    OBJECTS,
    AdapterSettings,
    ClientPrivacySettings,
    ComputeSettings,
    NoPrivacySettings,
    Recipe,
    with_absolute_paths,
)
from fedsa.server import sample_size
from fedsa.system.process import give_back
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "client_ranks",
    "for_newcomer",
    "on_this_machine",
    "with_choices",
    "with_count_noise",
    "with_measured",
    "with_noise",
    "written_out",
]

_KERNELS = ("eager", "sdpa", "flash_attention_2")
"""The attention kernels that a recipe can name."""


def client_ranks(settings: AdapterSettings, clients: Sequence[str]) -> dict[str, int]:
    """Return the ranks that a recipe's ``adapter.ranks`` gives, of the clients whose rank is less than the adapter's.

    Args:
        settings: the section.
        clients: every client's id, sorted: a list of ranks is dealt to them in turn.

    Raises:
        DataError: it names a client that there is not.
    """
    given = settings.ranks or {}
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(clients))
        if unknown:
            raise DataError(f"adapter.ranks: there is no client {unknown[0]!r}; {near(unknown[0], clients)}")
    else:
        given = {client: given[number % len(given)] for number, client in enumerate(clients)}
    return {client: rank for client, rank in given.items() if rank < settings.rank}


def on_this_machine(recipe: Recipe) -> Recipe:
    """Return a run's recipe with its device if that is here, else with what this machine has."""
    return recipe.model_copy(update={"compute": _usable(recipe.compute)})


def _usable(settings: ComputeSettings) -> ComputeSettings:
    """Return a run's settings if its device is here, else what this machine has."""
    try:
        return resolve_compute(settings)
    except ModelError:
        return resolve_compute(ComputeSettings(gradient_checkpointing=settings.gradient_checkpointing))


def written_out(recipe: Recipe, base: PreTrainedModel, config: Any, limit: int | None) -> Recipe:
    """Return the recipe with what was chosen written out: by PEFT, by transformers, by the hub, by defaults."""
    training = recipe.training
    longest = recipe.task.max_length if limit is None else min(recipe.task.max_length, limit)
    names = {name: getattr(config, name, None) for name in ("target_modules", "feedforward_modules")}
    adapter = {"r": recipe.adapter.rank} | {
        name: value if isinstance(value, str) else sorted(value) for name, value in names.items() if value is not None
    }
    if training.local_steps is None and training.local_epochs is None:
        training = training.model_copy(update={"local_steps": DEFAULT_LOCAL_STEPS})
    model: dict[str, Any] = {}
    if recipe.model.path == OBJECTS and base.config._attn_implementation in _KERNELS:  # the user's own model keeps it
        model["attn_implementation"] = base.config._attn_implementation
    commit = getattr(base.config, "_commit_hash", None)
    if commit and _is_hub_name(recipe.model.path):
        model["revision"] = commit
    return with_absolute_paths(
        recipe.model_copy(
            update={
                "model": recipe.model.model_copy(update=model),
                "adapter": recipe.adapter.model_copy(update=adapter),
                "task": recipe.task.model_copy(update={"max_length": longest}),
                "training": training,
            }
        )
    )


def with_noise(recipe: Recipe, rounds: int) -> Recipe:
    """The recipe with the noise that client-level privacy needs for its ``target_epsilon``, if that is left open.

    Args:
        recipe: any.
        rounds: the most that a client is asked to train in.

    Raises:
        ConfigError: a ``noise_multiplier`` stands beside ``target_epsilon`` with which more is spent.
        MissingExtraError: the library that accounts for privacy is not installed.
    """
    privacy = recipe.privacy
    if privacy.kind != "none":
        require_accountant()
    if not isinstance(privacy, ClientPrivacySettings) or privacy.target_epsilon is None:
        return recipe
    target, delta, noise = privacy.target_epsilon, privacy.target_delta, privacy.noise_multiplier
    if noise is None:
        noise = noise_multiplier_for(target, delta, rounds)
        return recipe.model_copy(update={"privacy": privacy.model_copy(update={"noise_multiplier": noise})})
    spent = epsilon_of(noise, rounds, delta)
    if spent > target:
        why = (
            f"with {noise:g} a client spends ε = {spent:.3g} in {counted(rounds, 'round')}, and target_epsilon is "
            f"{target:g}: give one of the two, and leave the other out"
        )
        raise ConfigError([Mistake("privacy.noise_multiplier", why)])
    return recipe


def with_count_noise(recipe: Recipe, asked: int) -> Recipe:
    """The recipe with the noise on the count of adaptive clipping, where it is left open; σ is written out already.

    A 20th of the clients is the paper's. With σ itself the noise on the updates is larger by 15 %, never more.

    Args:
        recipe: any.
        asked: clients that are asked in a round.
    """
    privacy = recipe.privacy
    if not isinstance(privacy, ClientPrivacySettings) or privacy.clipping == "fixed":
        return recipe
    noise = privacy.noise_multiplier or 0.0
    if privacy.count_noise is not None:
        if noise and 2 * privacy.count_noise <= noise:
            why = f"is not more than half of the noise_multiplier {noise:g} that target_epsilon needs: raise it"
            raise ConfigError([Mistake("privacy.count_noise", why)])
        return recipe
    count = max(asked / 20, noise) if noise else 0.0
    return recipe.model_copy(update={"privacy": privacy.model_copy(update={"count_noise": count})})


def with_choices(
    recipe: Recipe,
    model: AdaptedModel,
    task: Task,
    encoded: Encoded,
    trained: Sequence[IntArray],
    tell: Callable[[str], None],
) -> tuple[Recipe, tuple[tuple[str, str], ...]]:
    """The recipe with what is chosen by measuring written out, and which settings that are: (section, name).

    Args:
        recipe: resolved otherwise.
        model: the base with its adapter.
        task: the task.
        encoded: every row, as tokens.
        trained: each client's training rows.
        tell: told what takes time.
    """
    tell("measuring what trains fastest")
    torch.set_num_threads(recipe.compute.threads)
    if recipe.compute.gradient_checkpointing:
        checkpoint_activations(model)
    kernel_is_open = recipe.model.attn_implementation is None and model.attention in _KERNELS
    if kernel_is_open:
        name = choose_attention(recipe.training, model=model, task=task, encoded=encoded, rows=np.concatenate(trained))
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"attn_implementation": name})})
    training = choose_training(
        recipe.training,
        recipe.compute,
        model=model,
        task=task,
        encoded=encoded,
        rows=trained,
        clients=sample_size(recipe.fraction_train, len(trained)),
        row_by_row=recipe.privacy.kind == "example",
        tell=tell,
    )
    if recipe.compute.compile:
        tell("compiling")
        tell(compile_model(model, task, encoded, np.concatenate(trained), training))
    give_back()
    is_open = {
        ("model", "attn_implementation"): kernel_is_open,
        ("training", "trainer"): recipe.training.trainer == "auto",
        ("training", "cohort_size"): not recipe.training.cohort_size,
        ("training", "packing"): recipe.training.packing is None,
    }
    measured = tuple(name for name, left_open in is_open.items() if left_open)
    return recipe.model_copy(update={"training": training}), measured


def with_measured(recipe: Recipe, other: Recipe, measured: Sequence[tuple[str, str]], model: AdaptedModel) -> Recipe:
    """A recipe with the choices that were measured here as they are in another; the model gets the attention kernel.

    Args:
        recipe: resolved on this machine.
        other: the run's, which may have been begun on another machine.
        measured: the settings that were measured here: (section, name).
        model: a kernel that it does not have here stays as it was chosen here.
    """
    kernel = other.model.attn_implementation
    for section, name in measured:
        if name == "attn_implementation" and not (kernel and model.set_attention(kernel)):
            continue
        settings = getattr(recipe, section).model_copy(update={name: getattr(getattr(other, section), name)})
        recipe = recipe.model_copy(update={section: settings})
    return recipe


def _is_hub_name(path: str) -> bool:
    return path != OBJECTS and not path.startswith(PREFIX) and not Path(path).expanduser().exists()


def for_newcomer(recipe: Recipe) -> Recipe:
    """Return a run's recipe as it is for one client that was not in the run, on this machine."""
    training = recipe.training.model_copy(update={"trainer": "sequential", "cohort_size": 0, "packing": None})
    adapter = recipe.adapter.model_copy(update={"ranks": None})
    # What a newcomer trains stays with it, so it needs no noise.
    update = {"training": training, "adapter": adapter, "holdout_clients": 0.0, "privacy": NoPrivacySettings()}
    return on_this_machine(recipe).model_copy(update=update)
