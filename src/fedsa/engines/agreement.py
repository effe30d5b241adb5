"""What a run writes before its first round, and what must still be so when it goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fedsa.data.clients import label_totals
from fedsa.errors import RunFolderError
from fedsa.federation import Federation
from fedsa.models import AdaptedModel, adapted_fingerprint, with_sorted_names
from fedsa.recipe import dump_recipe
from fedsa.store import Progress, RunFolder, recipe_of
from fedsa.types import SPLITS

__all__ = ["begin", "check_unchanged"]


def begin(federation: Federation, folder: RunFolder) -> Progress:
    """Write what does not change during the run, and return the progress of a run without rounds."""
    recipe, config = dump_recipe(federation.recipe), _adapter_config(federation.model)
    environment = _environment(federation.recipe.compute.model_dump())
    data, fingerprints = federation.fingerprint(), _fingerprints(recipe, config, federation)
    folder.begin(_run_id(federation, data, fingerprints, environment))
    folder.write_recipe(recipe)
    folder.write_json("environment.json", environment)
    folder.write_json("adapter_config.json", config)
    counts = {split: federation.label_counts(split) for split in SPLITS}
    totals = label_totals(counts)
    folder.register_clients(
        {
            client: {
                **{f"{split}_examples": sum(by_client[client]) for split, by_client in counts.items()},
                "labels": dict(zip(federation.rows.label_names, totals[client], strict=True)),
                **federation.majority(client),
                **({"held_out": True} if client in federation.held_out else {}),
            }
            for client in federation.everyone
        }
    )
    folder.write_table(
        "partition.json",
        {
            client: {name: part.tolist() for name, part in zip(SPLITS, parts, strict=True)}
            for client, parts in sorted(federation.rows.partition.clients.items())
        },
    )
    folder.save_initial(federation.model.initial)
    return Progress(data=data, fingerprints=fingerprints)


def _run_id(federation: Federation, data: str, fingerprints: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Return a hash of all that a run's tensors follow from: equal runs give equal files.

    Where model and rows lie does not belong to it; they have fingerprints.
    """
    recipe = federation.recipe
    without_places = {
        "model": recipe.model.model_copy(update={"path": ""}),
        "data": recipe.data.model_copy(update={"path": ""}),
    }
    told = {**fingerprints, "recipe": dump_recipe(recipe.model_copy(update=without_places))}
    return _hash(json.dumps([data, told, environment], sort_keys=True))[:32]


def check_unchanged(federation: Federation, folder: RunFolder, progress: Progress) -> None:
    """Refuse to go on with another federation than the run began with.

    Raises:
        RunFolderError: what is not the same, and what to do.
    """
    recipe = dump_recipe(federation.recipe)
    now = _fingerprints(recipe, _adapter_config(federation.model), federation)
    changed = {name for name, value in now.items() if progress.fingerprints.get(name) != value}
    versions = f"the versions of torch, transformers and peft in {folder.path / 'environment.json'}"
    if "recipe" in changed and not _is_of_older_settings(recipe, folder, progress):
        raise RunFolderError(_other_recipe(recipe, folder))
    changed.discard("recipe")
    if "adapter_config" in changed:
        raise RunFolderError(
            f"{folder.path}: the adapter's PEFT config is not the one that the run began with: use that of "
            f"{folder.path / 'adapter_config.json'}, and {versions}, or start a new run"
        )
    if progress.data != federation.fingerprint():
        raise RunFolderError(
            f"{folder.path}: the clients' rows are not those that the run began with, so it cannot go on: put "
            "the data (or the model's tokenizer) back as it was, or start a new run"
        )
    if changed:
        raise RunFolderError(
            f"{folder.path}: the base model's weights are not those that the run began with: put the model "
            f"({federation.recipe.model.path}) back as it was, use {versions}, or start a new run"
        )
    started, initial = folder.load_initial(), federation.model.initial
    if started.keys() != initial.keys():
        names = ", ".join(str(key) for key in sorted(started.keys() ^ initial.keys())[:3])
        raise RunFolderError(
            f"{folder.path}: the adapter's tensors are not those that the run began with ({names}, ...): use the same "
            f"target_modules and modules_to_save, and {versions}, or start a new run"
        )
    if any(not torch.equal(started[key], tensor) for key, tensor in initial.items()):
        raise RunFolderError(
            f"{folder.path}: the initial tensors are not those that the run began with: use {versions}"
        )


def _is_of_older_settings(recipe: str, folder: RunFolder, progress: Progress) -> bool:
    """Say whether a recipe differs from the run's only by settings that the run is older than, at their defaults."""
    is_the_runs = progress.fingerprints.get("recipe") == _hash(folder.recipe_text())
    return is_the_runs and dump_recipe(recipe_of(folder)) == recipe


def _other_recipe(recipe: str, folder: RunFolder) -> str:
    old, new = (dict(_flat(tomllib.loads(each))) for each in (folder.recipe_text(), recipe))
    differing = ", ".join(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
    return (
        f"{folder.path} was begun with other settings ({differing}; see its recipe.toml): go on with those, and with "
        "the versions and hardware in its environment.json, or start a new run"
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fingerprints(recipe: str, config: Mapping[str, Any], federation: Federation) -> dict[str, str]:
    # Where the model lay and which PEFT wrote the config change nothing: weights have a fingerprint of their own.
    told = {name: value for name, value in config.items() if name not in ("base_model_name_or_path", "peft_version")}
    return {
        "recipe": _hash(recipe),
        "adapter_config": _hash(json.dumps(told, sort_keys=True)),
        "base_model": adapted_fingerprint(federation.model),
        "base_as_loaded": federation.base,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _adapter_config(model: AdaptedModel) -> dict[str, Any]:
    """Return PEFT's config as PEFT writes it, but for the order of names."""
    with TemporaryDirectory() as place:
        model.config.save_pretrained(place)
        return with_sorted_names(json.loads((Path(place) / "adapter_config.json").read_text(encoding="utf-8")))


def _environment(compute: Mapping[str, Any]) -> dict[str, str]:
    versions = {
        name: importlib.metadata.version(name)
        for name in ("fedsa", "torch", "transformers", "peft", "datasets", "safetensors", "numpy")
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        **versions,
        **{name: str(value) for name, value in compute.items()},
    }
