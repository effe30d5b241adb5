"""What a run writes before its first round, and what must not have changed when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.client.evaluation import majority_accuracy
from fedsa.data.partition import label_counts, label_totals
from fedsa.errors import RunFolderError
from fedsa.federation import Federation, adapter_config, spec_of
from fedsa.models import adapted_fingerprint
from fedsa.recipe import agreed_settings, dump_recipe
from fedsa.store import Progress, RunFolder, recipe_of
from fedsa.system.environment import environment
from fedsa.types import SPLITS

__all__ = ["begin", "check_unchanged"]


def begin(federation: Federation, folder: RunFolder) -> Progress:
    """Write the files that do not change during the run, and return the progress of a run without rounds."""
    agreement = federation.agreement
    compute = federation.recipe.compute.model_dump()
    machine = environment("fedsa", "torch", "transformers", "peft", "datasets", "safetensors", "numpy")
    machine |= {name: str(value) for name, value in compute.items()}
    data, fingerprints = federation.data_fingerprint, _fingerprints(agreement, federation)
    folder.begin(_run_id(federation, data, fingerprints, machine))
    folder.write_recipe(dump_recipe(federation.recipe))
    folder.write_json("environment.json", machine)
    folder.write_text(AGREEMENT, agreement.text())
    folder.write_json("adapter_config.json", adapter_config(federation.model))
    folder.register_clients(_about_clients(federation))
    folder.write_table(
        "partition.json",
        {
            client: {name: part.tolist() for name, part in zip(SPLITS, parts, strict=True)}
            for client, parts in sorted(federation.rows.partition.clients.items())
        },
    )
    folder.save_initial(federation.model.initial)
    return Progress(data=data, fingerprints=fingerprints)


def _about_clients(federation: Federation) -> dict[str, dict[str, Any]]:
    """What ``clients.json`` says of each client."""
    rows, partition = federation.rows, federation.rows.partition
    counts = {split: label_counts(partition, rows.labels, len(rows.label_names), split) for split in SPLITS}
    totals = label_totals(counts)
    about: dict[str, dict[str, Any]] = {}
    for client in federation.everyone:
        entry: dict[str, Any] = {f"{split}_examples": sum(by_client[client]) for split, by_client in counts.items()}
        entry["labels"] = dict(zip(rows.label_names, totals[client], strict=True))
        if federation.recipe.task.has_classes:  # there is a most frequent class to guess
            splits = partition.clients[client]
            entry["train_labels"] = counts["train"][client]
            entry["majority"] = majority_accuracy(rows.labels[splits.train], rows.labels[splits.test])
        if client in federation.held_out:
            entry["held_out"] = True
        about[client] = entry
    return about


def _run_id(federation: Federation, data: str, fingerprints: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """A hash of everything that decides a run's tensors: equal runs give equal files.

    The places of model and rows are not part of it: model and rows have fingerprints.
    """
    recipe = federation.recipe
    without_places = {
        "model": recipe.model.model_copy(update={"path": ""}),
        "data": recipe.data.model_copy(update={"path": ""}),
    }
    told = {**fingerprints, "recipe": dump_recipe(recipe.model_copy(update=without_places))}
    return _hash(json.dumps([data, told, environment], sort_keys=True))[:32]


def check_unchanged(federation: Federation, folder: RunFolder, progress: Progress) -> None:
    """Refuse to go on with another federation than the run began with. A machine's own settings may be others.

    Raises:
        RunFolderError: something is not the same; it says what to do.
    """
    now = federation.agreement
    begun = _agreement_of(folder, progress, now)
    changed = begun.differences(now)
    settings = [name for name in changed if name in now.setting_names | begun.setting_names]
    versions = f"the versions of torch, transformers and peft in {folder.path / 'environment.json'}"
    if settings:
        raise RunFolderError(
            f"{folder.path} was begun with other settings ({', '.join(settings)}; see its recipe.toml): go on with "
            "those, and with the versions in its environment.json, or start a new run"
        )
    if any(name.startswith("adapter.config.") for name in changed):
        raise RunFolderError(
            f"{folder.path}: the adapter's PEFT config is not the one that the run began with: use that of "
            f"{folder.path / 'adapter_config.json'}, and {versions}, or start a new run"
        )
    about = folder.read_json("clients.json").values()
    if federation.class_priors and not any("train_labels" in each for each in about):
        raise RunFolderError(
            f"{folder.path} was begun by a version of fedsa without class priors, which this one would add: go on with "
            "that version, or start a new run"
        )
    if progress.data != federation.data_fingerprint or {"labels", "metric", "ranks"} & {*changed}:
        raise RunFolderError(
            f"{folder.path}: the clients' rows are not those that the run began with, so it cannot go on: put "
            "the data (or the model's tokenizer) back as it was, or start a new run"
        )
    if "adapter.base" in changed or not _has_same_weights(federation, folder, progress):
        raise RunFolderError(
            f"{folder.path}: the base model's weights are not those that the run began with: put the model "
            f"({federation.recipe.model.path}) back as it was, use {versions}, or start a new run"
        )
    if {"adapter.tensors", "adapter.scaling"} & {*changed}:
        names = ", ".join(sorted(begun.adapter.tensors.keys() ^ now.adapter.tensors.keys())[:3])
        raise RunFolderError(
            f"{folder.path}: the adapter's tensors are not those that the run began with ({names}, ...): use the same "
            f"target_modules and modules_to_save, and {versions}, or start a new run"
        )
    if changed:
        raise RunFolderError(
            f"{folder.path}: the initial tensors are not those that the run began with: use {versions}"
        )


def _agreement_of(folder: RunFolder, progress: Progress, now: Agreement) -> Agreement:
    """The agreement that a run began with. A run from before agreements existed has it in its other files."""
    settings = agreed_settings(recipe_of(folder))  # with the defaults of settings that the run is older than
    if folder.has(AGREEMENT):
        begun = Agreement.parse(folder.read_text(AGREEMENT), str(folder.path / AGREEMENT))
        return begun.model_copy(update={"settings": settings})
    base = progress.fingerprints.get("base_as_loaded", "") if now.adapter.base else ""
    return Agreement(
        settings=settings,
        labels=now.labels,
        metric=now.metric,
        adapter=spec_of(folder.read_json("adapter_config.json"), folder.load_initial(), now.adapter.scaling, base),
        ranks=now.ranks,
    )


def _has_same_weights(federation: Federation, folder: RunFolder, progress: Progress) -> bool:
    """Whether the base computes with the weights that the run began with. In another precision they may differ."""
    begun, here = recipe_of(folder), federation.recipe
    if (begun.compute.precision, begun.model.quantization) != (here.compute.precision, here.model.quantization):
        return True
    return progress.fingerprints.get("base_model") == adapted_fingerprint(federation.model)


def _fingerprints(agreement: Agreement, federation: Federation) -> dict[str, str]:
    return {
        "agreement": agreement.fingerprint(),
        "base_model": adapted_fingerprint(federation.model),
        "base_as_loaded": federation.base,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
