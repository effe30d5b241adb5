"""What a federation's server and sites must hold alike, taken from its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedsa.agreement import AdapterSpec, Agreement, TensorSpec, hash_of_state
from fedsa.errors import DisagreementError
from fedsa.models import AdaptedModel, with_sorted_names
from fedsa.recipe import Recipe, agreed_settings
from fedsa.tasks.base import Task
from fedsa.types import State

__all__ = ["adapter_config", "agreement_of", "refuse_differences", "spec_of"]


def agreement_of(
    recipe: Recipe, model: AdaptedModel, task: Task, labels: Sequence[str], ranks: Mapping[str, int], base: str
) -> Agreement:
    """The agreement that a federation's parts come to.

    Args:
        recipe: resolved.
        model: the base with its adapter.
        task: the task.
        labels: the names of the label column's values, in order of their number.
        ranks: of the clients whose rank is less than the adapter's.
        base: hash of the base model as it was loaded.
    """
    named = recipe.task.has_classes or recipe.task.is_own  # else they only say how rows are dealt out, on one machine
    adapter = spec_of(adapter_config(model), model.initial, model.scaling, "" if recipe.model.quantization else base)
    return Agreement(
        settings=agreed_settings(recipe),
        labels=tuple(labels) if named else (),
        metric=task.metric,
        adapter=adapter,
        ranks=dict(ranks),
    )


def spec_of(config: Mapping[str, Any], initial: State, scaling: Mapping[str, float], base: str) -> AdapterSpec:
    """An adapter without its values.

    Args:
        config: as `adapter_config` gives it.
        initial: the tensors that every client starts from.
        scaling: s of each module that has one.
        base: hash of the base model as it was loaded; empty: not compared.
    """
    beside = ("base_model_name_or_path", "peft_version")  # weights have a hash of their own
    return AdapterSpec(
        tensors={
            str(key): TensorSpec.model_validate(
                {"shape": tuple(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            )
            for key, tensor in initial.items()
        },
        scaling=dict(scaling),
        config={name: _without_repeats(value) for name, value in config.items() if name not in beside},
        base=base,
        initial=hash_of_state(initial),
    )


def _without_repeats(value: Any) -> Any:
    """A list of PEFT's config without repeats: PEFT names a head again whenever it reads its own config."""
    return list(dict.fromkeys(value)) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


def adapter_config(model: AdaptedModel) -> dict[str, Any]:
    """PEFT's config of an adapter as PEFT writes it, but for the order of names."""
    with TemporaryDirectory() as place:
        model.config.save_pretrained(place)
        return with_sorted_names(json.loads((Path(place) / "adapter_config.json").read_text(encoding="utf-8")))


_MENDS = {
    "adapter.base": "the base model's weights are not those that were agreed upon: take the same model",
    "adapter.tensors": "the model has other layers or sizes than the one that was agreed upon: take the same model",
    "adapter.initial": "the adapter does not start from the tensors that were agreed upon: use the same versions of "
    "torch, transformers and peft",
}


def refuse_differences(agreed: Agreement, here: Agreement) -> None:
    """Refuse a federation that does not hold what was agreed upon.

    Raises:
        DisagreementError: with the first reason that its user can mend.
    """
    names = agreed.differences(here)
    if names:
        told = next((_MENDS[name] for name in _MENDS if name in names), "use the same versions of fedsa and of PEFT")
        raise DisagreementError(f"this machine does not hold what was agreed upon ({', '.join(names)}): {told}")
