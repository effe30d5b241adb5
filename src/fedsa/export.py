"""A client's adapter as a folder that PEFT and transformers load by themselves."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig, VeraConfig
from peft.tuners.vera.model import _kaiming_init
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from fedsa.adaptation import PersonalStates
from fedsa.adapters.algebra import RANK_DIMENSION
from fedsa.adapters.factors import VARIANTS, key_of
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.errors import RunFolderError, UserError, near
from fedsa.federation import fresh_base, load_processor
from fedsa.models import AdaptedModel, fit_padding, load_base, plain_state, quiet, with_sorted_names
from fedsa.parts import PREFIX
from fedsa.recipe import OBJECTS, Recipe
from fedsa.seeds import derive_seed
from fedsa.store import RunFolder, recipe_of, write_error
from fedsa.tasks import make_task
from fedsa.tasks.base import Task
from fedsa.types import Factor, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "card_of",
    "config_of",
    "export",
    "personal_state",
    "refuse_adapter",
    "require_empty",
    "weights_note",
    "write_model",
]

_STAGING = ".partial"
_NO_NAME = "a model that was loaded in Python"


def personal_state(folder: RunFolder, algorithm: Algorithm, client: str, round: int) -> State:
    """Return what a client would use after a round: its own tensors and the server's.

    Args:
        folder: the run.
        algorithm: the run's method.
        client: its id.
        round: the chosen or the final one; others are not kept.

    Raises:
        RunFolderError: there is no such client, or the round is not kept.
        UserError: the client was held out, and the round is not the chosen one.
    """
    return PersonalStates(folder, algorithm, round).of(client)


def export(
    run: Path,
    to: Path,
    *,
    clients: Sequence[str] | None = None,
    round: str = "chosen",
    merge: bool = False,
    base: PreTrainedModel | AdaptedModel | Callable[[], PreTrainedModel] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Path]:
    """Write clients' adapters in PEFT's format (or merged models), each with tokenizer and model card.

    Weights are written in fp32, whatever the run computed in. Adapters are for the base as it was before the run
    adapted it: PiSSA's and OLoRA's, which were trained on one that had changed, become LoRA of twice the rank.

    Args:
        run: a finished run's folder.
        to: one client's files go right here; several clients' into one sub-folder each.
        clients: client ids; None: all.
        round: ``chosen`` or ``final``.
        merge: write the whole model with the adapter's update added to its weights.
        base: the base model as it was before the run adapted it (it is copied), or a function that loads it anew;
            None: loaded by its name in the recipe, which a run of a loaded model does not have. A federation's own
            `AdaptedModel` does as well; it ends with a client's tensors in it. Its frozen weights are bf16 if the run
            computed in bf16: a merge then loads the base by its name all the same, and where it has none, merges into
            the bf16 values: what that rounding took from the base is lost.
        tokenizer: written beside the adapter; None: the one of the model in the recipe. Give it where the federation
            had one of its own.

    Returns:
        The folders, in the order of the clients.

    Raises:
        UserError: no such run, client or round, the run was of a loaded model and ``base`` or ``tokenizer`` is not
            given, the target is not empty, or the method's result is no adapter and ``merge`` is not given.
        ModelError: the base does not fit the run.
    """
    folder = RunFolder.open(run)
    summary, about = folder.read_json("summary.json"), folder.read_json("clients.json")
    unseen = {client for client, entry in about.items() if entry.get("held_out") and round == "final"}
    wanted = [client for client in about if client not in unseen] if clients is None else list(clients)
    for client in wanted:
        if client not in about:
            raise UserError(f"run {run} has no client {client!r}; {near(client, about)}")
    if round not in ("chosen", "final"):
        raise UserError(f"--round {round}: must be chosen or final (only these are kept)")
    number = int(summary["chosen_round"] if round == "chosen" else summary["rounds"])
    one = clients is not None and len(wanted) == 1
    targets = [to] if one else [to / about[client]["folder"] for client in wanted]
    for target in targets:
        require_empty(target)
    recipe = recipe_of(folder)
    if recipe.model.path == OBJECTS and (base is None or tokenizer is None):
        raise UserError(
            f"{run} is a run of a model that was loaded in Python: use result.export of what fedsa.run or fedsa.resume "
            "returned, or fedsa.export.export(run, to, base=..., tokenizer=...) with the base model as it was before "
            "the run (or a function that loads it) and its tokenizer"
        )
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    _refuse_gates(recipe, algorithm)
    if not merge:
        refuse_adapter(recipe, algorithm)
    task = make_task(recipe.task, list(next(iter(about.values()))["labels"]))
    tokenizer = tokenizer or load_processor(recipe, task)
    model = None
    states = PersonalStates(folder, algorithm, number)
    personal = {client: states.of(client) for client in wanted[:1]}  # what is missing is told before a model is loaded
    for client, target in zip(wanted, targets, strict=True):
        if model is None or merge:  # merging changes the base: each client needs its own
            model = _adapted(run, recipe, algorithm, task, base, tokenizer, merge=merge)
        state = personal.get(client) or states.of(client)
        history, score = _history(recipe, summary, number), _score(summary, client, round)
        score += weights_note(algorithm)
        card = card_of(recipe, model, summary, client, about[client], history=history, score=score, merged=merge)
        write_model(model, state, tokenizer, card, target, merge=merge)
    return targets


def write_model(
    model: AdaptedModel,
    state: State,
    tokenizer: PreTrainedTokenizerBase,
    card: ModelCard,
    target: Path,
    *,
    merge: bool = False,
) -> None:
    """Write a client's adapter, or the whole model with it, as PEFT and transformers load it.

    Args:
        model: the base with the adapter; it ends with the client's tensors in it, and merging changes its base.
        state: the client's tensors.
        tokenizer: written beside it.
        card: written as ``README.md``.
        target: an empty folder, or none yet.
        merge: write the whole model with the adapter's update added to its weights.

    Raises:
        UserError: the disk is full or the folder cannot be written; nothing is left in it.
    """
    model.write(state)
    with _written_whole(target) as staging, quiet():
        if merge:
            model.merge().save_pretrained(staging)
        elif VARIANTS[model.variant].starts_at_zero and _is_whole(model, state):
            named = {**plain_state(model.model), **_projections(model)}
            model.model.save_pretrained(str(staging), state_dict=named)
            _sort_names(staging / "adapter_config.json")
        else:
            _save_product(model, state, staging)
            _sort_names(staging / "adapter_config.json")
        tokenizer.save_pretrained(staging)
        card.save(staging / "README.md")


def require_empty(target: Path) -> None:
    """Refuse a target that something is in.

    Raises:
        UserError: it exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or {entry.name for entry in target.iterdir()} - {_STAGING}):
        raise UserError(f"{target} exists and is not an empty folder: give --to another one")


def config_of(run: Path) -> PeftConfig:
    """Return PEFT's description of a run's adapter, ready to be trained.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    try:
        with quiet():
            config: PeftConfig = PeftConfig.from_pretrained(str(run))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{run / 'adapter_config.json'} is missing or damaged ({error}): restore it from a copy"
        ) from error
    config.inference_mode = False
    return config


def refuse_adapter(recipe: Recipe, algorithm: Algorithm) -> None:
    """Refuse to write an adapter where a client's result is none.

    Raises:
        UserError: why, and what to do.
    """
    _refuse_gates(recipe, algorithm)
    reason = None
    if algorithm.folds:
        reason = f"{recipe.algorithm} adds to the base model's own weights, which no adapter holds"
    elif algorithm.export == "merged model":
        reason = f"what a client has by {recipe.algorithm} is no adapter of the base model"
    elif len(algorithm.adapters) > 1 and not VARIANTS[recipe.adapter.variant].is_product:
        reason = (
            f"{recipe.algorithm} has {len(algorithm.adapters)} adapters for each client, and those of variant "
            f"{recipe.adapter.variant} cannot be put together as one"
        )
    if reason:
        raise UserError(f"{reason}: write whole models with --merge (in Python merge=True)")


def _refuse_gates(recipe: Recipe, algorithm: Algorithm) -> None:
    """Refuse to write what no file that PEFT or transformers load can hold.

    Raises:
        UserError: each layer weighs its adapters for each token.
    """
    if algorithm.gated:
        raise UserError(
            f"{recipe.algorithm} weighs its adapters anew for each token, which neither an adapter of PEFT's nor "
            "merged weights can: there is nothing to write; for adapters in PEFT's format use another method"
        )


def _is_whole(model: AdaptedModel, state: State) -> bool:
    """Say whether the client's adapter is the model's: the only one, of the same ranks, by PEFT's usual name."""
    return model.adapters == ("default",) and all(
        tensor.shape == model.initial[key].shape for key, tensor in state.items()
    )


def _save_product(model: AdaptedModel, state: State, folder: Path) -> None:
    """Write a client's adapters as one LoRA of all their ranks together, with the same s.

    [B₁ B₂]·[A₁; A₂] = B₁A₁ + B₂A₂. Where adapters began with an update that was taken out of the base, that is taken
    off again, by [B, -B₀]·[A; A₀]: what is written goes onto the base as it was before the run.

    Args:
        model: with the adapters in it; it tells PEFT's names.
        state: the client's tensors.
        folder: where to.
    """
    tensors, ranks = {}, {}
    for name, _ in model.model.named_parameters():
        key = key_of(name, trained=False)
        if key is None or key.adapter != model.adapters[0]:
            continue
        value = state[key]
        if key.factor in RANK_DIMENSION:
            parts = [state[key._replace(adapter=adapter)] for adapter in model.adapters]
            if not VARIANTS[model.variant].starts_at_zero:
                parts.append(-model.initial[key] if key.factor is Factor.B else model.initial[key])
            value = torch.cat(parts, dim=RANK_DIMENSION[key.factor])
            ranks[key.module] = value.shape[RANK_DIMENSION[key.factor]]
        tensors[_plain_name(name, key.adapter)] = value.float().contiguous()
    config = _product_config(model, ranks)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(str(folder))


def _plain_name(name: str, adapter: str) -> str:
    """Return a parameter's name in PEFT's files, where the adapter's own name does not stand.

    >>> _plain_name("base_model.model.query.lora_A.default.weight", "default")
    'base_model.model.query.lora_A.weight'
    >>> _plain_name("base_model.model.classifier.modules_to_save.default.bias", "default")
    'base_model.model.classifier.bias'
    """
    saved = f".modules_to_save.{adapter}."
    if saved in name:
        return name.replace(saved, ".")
    before, _, after = name.rpartition(f".{adapter}")
    return before + after


def _product_config(model: AdaptedModel, ranks: Mapping[str, int]) -> Any:
    """Return PEFT's config of an adapter of other ranks, with an alpha that leaves each layer's s as it is."""
    config = copy.deepcopy(model.config)
    alphas = {
        module: model.scaling[module] * (math.sqrt(rank) if config.use_rslora else rank)
        for module, rank in ranks.items()
    }
    (config.r, config.lora_alpha), _ = Counter((ranks[module], alphas[module]) for module in ranks).most_common(1)[0]
    config.rank_pattern = {module: rank for module, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {module: alpha for module, alpha in alphas.items() if alpha != config.lora_alpha}
    config.init_lora_weights, config.inference_mode = True, True
    config.base_model_name_or_path = config.base_model_name_or_path or getattr(
        model.model.get_base_model(), "name_or_path", None
    )
    return config


def _sort_names(path: Path) -> None:
    """Write PEFT's config again in one order: equal states, equal bytes."""
    config = with_sorted_names(json.loads(path.read_text(encoding="utf-8")))
    if config.get("init_lora_weights") == "lora_xs":  # a name that PEFT does not know: what is written is plain LoRA
        config["init_lora_weights"] = True
    if config["modules_to_save"]:  # PEFT adds the heads again to those that it has read
        config["modules_to_save"] = sorted(set(config["modules_to_save"]))
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


def _adapted(
    run: Path,
    recipe: Recipe,
    algorithm: Algorithm,
    task: Task,
    base: PreTrainedModel | AdaptedModel | Callable[[], PreTrainedModel] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    merge: bool,
) -> AdaptedModel:
    """Return the base with the run's adapter in it; one to be merged is nobody else's."""
    if isinstance(base, AdaptedModel):
        if not merge:
            return base
        if base.precision == "fp32" and not recipe.model.quantization:
            return copy.deepcopy(base)
        if recipe.model.path == OBJECTS:
            return _in_fp32(base)
        base = None
    seed = derive_seed(recipe.seed, "init")
    if base is None:
        plain, _ = load_base(recipe.model, auto_model=task.auto_model, options=task.model_options(), seed=seed)
    else:  # a model can be called too
        given, is_model = cast(Any, base), isinstance(base, nn.Module)
        plain = fresh_base(copy.deepcopy(given) if is_model else given())
    if not task.takes_images:
        fit_padding(plain, tokenizer)
    return AdaptedModel(plain, config_of(run), seed=seed, adapters=algorithm.adapters, folds=algorithm.folds)


def _in_fp32(model: AdaptedModel) -> AdaptedModel:
    """Return a copy whose frozen weights are fp32, as they would be merged into; the values are those in use."""
    copied = copy.deepcopy(model)
    copied.model.float()
    for name, value in _projections(copied).items():
        copied.model.get_buffer(name).copy_(value)
    return copied


def _projections(model: AdaptedModel) -> dict[str, Tensor]:
    """Return VeRA's frozen projections in fp32 where the model holds them in bf16: drawn again from their key."""
    if not isinstance(model.config, VeraConfig) or model.precision == "fp32":
        return {}
    generator = torch.Generator("cpu").manual_seed(model.config.projection_prng_key)
    names = ("base_model.vera_A.default", "base_model.vera_B.default")  # PEFT draws them in this order
    return {name: _kaiming_init(tuple(model.model.get_buffer(name).shape), generator) for name in names}


def _name(recipe: Recipe, model: AdaptedModel) -> str:
    """Return the name that a user can load the base model by, as far as it has one."""
    return recipe.model.path if recipe.model.path != OBJECTS else model.config.base_model_name_or_path or _NO_NAME


def _history(recipe: Recipe, summary: Mapping[str, Any], number: int) -> str:
    """Return a card's sentence on where a client's tensors come from."""
    return (
        f"Trained with fedsa in a federation of {summary['clients']} clients by the method `{recipe.algorithm}` "
        f"({summary['source']}), adapter variant `{summary['variant']}`; this is round {number} of {summary['rounds']}."
    )


def _score(summary: Mapping[str, Any], client: str, round: str) -> str:
    """Return a card's line on the score of a client's exported tensors."""
    metric = summary["metric"]
    unseen = summary.get("unseen", {}).get("per_client", {})
    if client in unseen:
        before, after = (unseen[client][moment] for moment in ("before", "after"))
        return (
            "- This client was held out of the federation, and was taken to an adapter of its own afterwards. Test "
            f"{metric} on its own rows: {before[metric]:.4f} before, {after[metric]:.4f} after "
            f"({after['examples']} rows)"
        )
    which = "test" if round == "chosen" else "test_final"
    if summary["evaluated_after"] != "aggregate":  # the tensors here are those after it
        which += "_after_aggregate"
    result = summary["per_client"][client].get(which)
    return (
        f"- Test {metric} on this client's own rows, after receiving the aggregate: {result[metric]:.4f} "
        f"({result['examples']} rows)"
        if result
        else f"- Test {metric} after receiving the aggregate: not measured in this run"
    )


def weights_note(algorithm: Algorithm) -> str:
    """Return what a card adds to a score where it was measured with weights that no file can hold."""
    if not algorithm.references:
        return ""
    return (
        "\n- **That is not quite what is here**: it was measured with the adapters "
        f"{' and '.join(algorithm.adapters)} weighed for each row by its likeness to {algorithm.references} training "
        "rows of the client, which static weights cannot do. Here each has weight 1, as in training; that was not "
        "measured"
    )


def card_of(
    recipe: Recipe,
    model: AdaptedModel,
    summary: Mapping[str, Any],
    client: str,
    about: Mapping[str, Any],
    *,
    history: str,
    score: str,
    merged: bool = False,
) -> ModelCard:
    """Return the card of a client's model.

    Args:
        recipe: the run's.
        model: whose base is named.
        summary: the run's.
        client: its id.
        about: its numbers of rows (``train_examples``, ...) and ``labels``.
        history: a sentence: where the tensors come from.
        score: a list's line: what they are worth.
        merged: it is a whole model.
    """
    base_name = _name(recipe, model)
    local = base_name == _NO_NAME or base_name.startswith(PREFIX) or Path(base_name).exists()
    labels = list(about["labels"])
    task = make_task(recipe.task, labels)
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        base_model=None if local else base_name,
        tags=["federated-learning", "fedsa", recipe.algorithm, summary["variant"]],
        pipeline_tag=task.pipeline_tag,
    )
    shared = ", ".join(entry["factor"] for entry in summary["sharing_plan"] if entry["sent"]) or "nothing"
    kept = (
        ", ".join(entry["factor"] for entry in summary["sharing_plan"] if entry["trained"] and not entry["sent"])
        or "nothing"
    )
    stayed = "Never left the client"
    if recipe.adaptation.share_personal:
        stayed = "Kept at the client in the rounds, and put together afterwards where that was asked for"
    classes = ""
    if recipe.task.has_classes:
        named = ", ".join(f"{index} = {name}" for index, name in enumerate(labels))
        classes = f"- Classes, in order of their number: {named}\n"
    outputs = task.model_options().get("num_labels")
    auto, what = ("AutoImageProcessor", "processor") if task.takes_images else ("AutoTokenizer", "tokenizer")
    load = (
        f"""from transformers import {task.auto_model}, {auto}

model = {task.auto_model}.from_pretrained("FOLDER")
{what} = {auto}.from_pretrained("FOLDER")"""
        if merged
        else f"""from peft import PeftModel
from transformers import {task.auto_model}, {auto}

base = {task.auto_model}.from_pretrained("BASE"{f", num_labels={outputs}" if task.has_head else ""})
model = PeftModel.from_pretrained(base, "FOLDER").eval()
{what} = {auto}.from_pretrained("FOLDER")"""
    )
    return ModelCard(f"""---
{data.to_yaml()}
---

# {"Model" if merged else "Adapter"} of client {client!r}

{history}
Averaged over clients: {shared}. {stayed}: {kept}.

- Base model: {base_name if base_name == _NO_NAME else f"`{base_name}`"}
{classes}- Rows of this client: {about["train_examples"]} for training, {about["validation_examples"]} for validation, \
{about["test_examples"]} for test
{score}

```python
{load}
```
""")
