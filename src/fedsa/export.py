"""A client's adapter as a folder that PEFT and transformers load by themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig
from safetensors import SafetensorError

from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.client import personal_tensors
from fedsa.errors import RunFolderError, UserError, near
from fedsa.models import AdaptedModel, load_base, load_tokenizer, quiet, with_sorted_names
from fedsa.recipe import Recipe
from fedsa.seeds import derive_seed
from fedsa.store import RunFolder, recipe_of, write_error
from fedsa.tasks.classification import Classification
from fedsa.types import State

__all__ = ["export", "personal_state"]

_STAGING = ".partial"


def personal_state(folder: RunFolder, algorithm: Algorithm, client: str, round: int) -> State:
    """Return what a client would use after a round: its own tensors and the server's.

    Args:
        folder: the run.
        algorithm: the run's method.
        client: its id.
        round: the chosen or the final one; others are not kept.

    Raises:
        RunFolderError: there is no such client, or the round is not kept.
    """
    initial = folder.load_initial()
    server = ServerState(*folder.load_server(round)) if round else algorithm.init(initial)
    return personal_tensors(algorithm, initial, server, folder.load_client(client, round), round)


def export(
    run: Path, to: Path, *, clients: Sequence[str] | None = None, round: str = "chosen", merge: bool = False
) -> list[Path]:
    """Write clients' adapters in PEFT's format (or merged models), each with tokenizer and model card.

    Args:
        run: a finished run's folder.
        to: one client's files go right here; several clients' into one sub-folder each.
        clients: client ids; None: all.
        round: ``chosen`` or ``final``.
        merge: write the whole model with the adapter's update added to its weights.

    Returns:
        The folders, in the order of the clients.

    Raises:
        UserError: no such run, client or round, or the target is not empty.
    """
    folder = RunFolder.open(run)
    summary, about = folder.read_json("summary.json"), folder.read_json("clients.json")
    wanted = list(about) if clients is None else list(clients)
    for client in wanted:
        if client not in about:
            raise UserError(f"run {run} has no client {client!r}; {near(client, about)}")
    if round not in ("chosen", "final"):
        raise UserError(f"--round {round}: must be chosen or final (only these are kept)")
    number = int(summary["chosen_round"] if round == "chosen" else summary["rounds"])
    one = clients is not None and len(wanted) == 1
    targets = [to] if one else [to / about[client]["folder"] for client in wanted]
    for target in targets:
        if target.exists() and (not target.is_dir() or {entry.name for entry in target.iterdir()} - {_STAGING}):
            raise UserError(f"{target} exists and is not an empty folder: give --to another one")
    recipe = recipe_of(folder)
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    task = Classification(tuple(recipe.task.text_columns), tuple(_label_names(about)), recipe.task.max_length)
    tokenizer = load_tokenizer(recipe.model)
    model = None
    for client, target in zip(wanted, targets, strict=True):
        if model is None or merge:  # merging changes the base: each client needs its own
            model = _model(run, recipe, task)
        model.write(personal_state(folder, algorithm, client, number))
        with _written_whole(target) as staging, quiet():
            if merge:
                model.model.merge_and_unload(safe_merge=True).save_pretrained(staging)
            else:
                model.model.save_pretrained(str(staging))
                _sort_names(staging / "adapter_config.json")
            tokenizer.save_pretrained(staging)
            _card(recipe, summary, client, number, about[client], merged=merge).save(staging / "README.md")
    return targets


def _sort_names(path: Path) -> None:
    """Write PEFT's config again in one order: equal states, equal bytes."""
    config = with_sorted_names(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Give a folder to write into; its files move to ``target`` once all are there.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left in it.
    """
    staging, made = target / _STAGING, not target.exists()
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        for file in sorted(staging.iterdir()):
            file.replace(target / file.name)
        staging.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            with suppress(OSError):
                target.rmdir()
        if isinstance(error, OSError):
            raise write_error(target, error) from error
        raise UserError(f"cannot write {target}: {error}") from error


def _label_names(about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next(iter(about.values()))["labels"])


def _model(run: Path, recipe: Recipe, task: Classification) -> AdaptedModel:
    seed = derive_seed(recipe.seed, "init")
    base, _ = load_base(recipe.model, auto_model=task.auto_model, options=task.model_options(), seed=seed)
    try:
        config = PeftConfig.from_pretrained(str(run))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run / 'adapter_config.json'} is missing or damaged ({error}): restore it from a copy"
        ) from error
    config.inference_mode = False
    return AdaptedModel(base, config, seed=seed)


def _card(
    recipe: Recipe, summary: Mapping[str, Any], client: str, round: int, about: Mapping[str, Any], *, merged: bool
) -> ModelCard:
    metric = summary["metric"]
    result = summary["per_client"][client]["test" if round == summary["chosen_round"] else "test_final"]
    local = recipe.model.path.startswith("part:") or Path(recipe.model.path).exists()
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=None if local else recipe.model.path,
        tags=["federated-learning", "fedsa", recipe.algorithm, summary["variant"]],
        pipeline_tag="text-classification",
    )
    shared = ", ".join(entry["factor"] for entry in summary["sharing_plan"] if entry["sent"]) or "nothing"
    kept = (
        ", ".join(entry["factor"] for entry in summary["sharing_plan"] if entry["trained"] and not entry["sent"])
        or "nothing"
    )
    labels = list(about["labels"])
    load = (
        """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""
        if merged
        else f"""from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained("BASE", num_labels={len(labels)})
model = PeftModel.from_pretrained(base, "FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""
    )
    return ModelCard(f"""---
{data.to_yaml()}
---

# {"Model" if merged else "Adapter"} of client {client!r}

Trained with fedsa in a federation of {summary["clients"]} clients by the method `{recipe.algorithm}` \
({summary["source"]}), adapter variant `{summary["variant"]}`; this is round {round} of {summary["rounds"]}.
Averaged over clients: {shared}. Never left the client: {kept}.

- Base model: `{recipe.model.path}`
- Classes, in order of their number: {", ".join(f"{number} = {name}" for number, name in enumerate(labels))}
- Rows of this client: {about["train_examples"]} for training, {about["validation_examples"]} for validation, \
{about["test_examples"]} for test
- Test {metric} on this client's own rows: {result[metric]:.4f} ({result["examples"]} rows)

```python
{load}
```
""")
