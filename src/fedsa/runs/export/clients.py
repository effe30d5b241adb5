"""Which clients' adapters of a run are written, where to, and into which base."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.errors import UserError, near
from fedsa.federation import fresh_base, load_processor, own_copy
from fedsa.models import AdaptedModel, adapted_fingerprint, fit_padding, load_base, plain_fingerprint
from fedsa.recipe import OBJECTS, GenerationSettings, MultipleChoiceSettings, TaskSettings
from fedsa.runs.export.about import about_of
from fedsa.runs.export.base import base_of
from fedsa.runs.export.card import card_of, history_of, score_of, weights_note
from fedsa.runs.export.folders import config_of, projections, write_model
from fedsa.runs.export.targets import Journal
from fedsa.runs.personal import PersonalStates
from fedsa.seeds import derive_seed
from fedsa.store import FinishedRun, RunFolder, require_clients
from fedsa.tasks import make_task
from fedsa.tasks.base import Task
from fedsa.tasks.chat import own_stops, stops_of, with_template
from fedsa.tasks.writer import begin_of
from fedsa.texts.words import counted, cut
from fedsa.types import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["export", "personal_state", "refuse_adapter"]

_WRITING = ("generation", "multiple_choice", "language_modeling", "chat", "dpo")
"""Kinds of task whose card has code that writes."""


def personal_state(folder: RunFolder, algorithm: Algorithm, client: str, round: int) -> State:
    """The tensors that a client would use after a round: its own and the server's.

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
    with_base: bool = True,
) -> list[Path]:
    """Write clients' adapters in PEFT's format (or merged models), each with tokenizer and model card.

    Weights are written in fp32, whatever the run computed in. Adapters are for the base as it was before the run
    adapted it: PiSSA's and OLoRA's, which were trained on one that had changed, become LoRA of twice the rank.

    An export that was interrupted can be repeated: the folders that it finished are left as they are.

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
        with_base: write a copy of the base model, with the classes' names, into ``to / "base"`` where transformers and
            PEFT need one to load the adapters by themselves: then ``adapter_config.json`` names that folder. False:
            it names the base on the hub, or none.

    Returns:
        The folders, in the order of the clients.

    Raises:
        UserError: no such run, client or round, the run was of a loaded model and ``base`` or ``tokenizer`` is not
            given, the target is not empty, or the method's result is no adapter and ``merge`` is not given.
        ModelError: the base does not fit the run.
    """
    finished = FinishedRun.open(run)
    require_clients(finished.folder)
    folder, recipe, summary, about = finished.folder, finished.recipe, finished.summary, finished.clients
    unseen = {client for client, entry in about.items() if entry.get("held_out") and round == "final"}
    wanted = [client for client in about if client not in unseen] if clients is None else list(clients)
    for client in wanted:
        if client not in about:
            raise UserError(f"run {run} has no client {client!r}; {near(client, about)}")
    if round not in ("chosen", "final"):
        raise UserError(f"--round {cut(round, 80)}: must be chosen or final, as `round` in Python; only these are kept")
    number = int(summary["chosen_round"] if round == "chosen" else summary["rounds"])
    one = clients is not None and len(wanted) == 1
    targets = [to] if one else [to / about[client]["folder"] for client in wanted]
    whose = {"run": folder.run, "round": number, "merge": merge, "fedsa": version("fedsa")}
    journal = Journal(to, whose)
    written = {target for target in targets if journal.is_finished(target)}
    if recipe.model.path == OBJECTS and (base is None or tokenizer is None):
        raise UserError(
            f"{run} is a run of a model that was loaded in Python: use result.export of what fedsa.run or fedsa.resume "
            "returned, or fedsa.runs.export(run, to, base=..., tokenizer=...) with the base model as it was before "
            "the run (or a function that loads it) and its tokenizer"
        )
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    _refuse_gates(recipe.algorithm, algorithm)
    if not merge:
        refuse_adapter(recipe.algorithm, algorithm, recipe.adapter.variant)
    task = make_task(recipe.task, finished.label_names)
    tokenizer = tokenizer or load_processor(recipe.model, task, recipe.task.image_side)
    if task.chats:
        with_template(tokenizer)
    model, known = None, None
    states = PersonalStates(folder, algorithm, number)
    personal = {client: states.of(client) for client in wanted[:1]}  # what is missing is told before a model is loaded
    for client, target in zip(wanted, targets, strict=True):
        if target in written:
            continue
        if model is None or merge:  # merging changes the base: each client needs its own
            model = _adapted(finished, algorithm, task, base, tokenizer, merge=merge)
        known = known or base_of(
            recipe.model, recipe.compute, model, task, tokenizer, to, copy=None if with_base and not merge else False
        )
        state = personal.get(client) or states.of(client)
        history, score = history_of(summary, number), score_of(summary, client, round)
        score += weights_note(algorithm)
        stops = _more_stops(model, recipe.task, tokenizer)
        ends = tokenizer.convert_ids_to_tokens(list(stops)) if stops else []  # one of images has no tokens
        card = card_of(
            recipe,
            summary,
            client,
            about[client],
            known,
            target,
            history=history,
            score=score,
            merged=merge,
            ends=ends,
            begin=begin_of(tokenizer) if recipe.task.kind == "language_modeling" else "",
        )
        if merge and stops:
            _stop_at(model, stops)
        told = about_of(
            recipe,
            finished.label_names,
            known,
            client=client,
            run=folder.run,
            round=number,
            fingerprint=finished.base_fingerprint,
            merged=merge,
        )
        write_model(model, state, tokenizer, card, target, base=known, about=told, merge=merge, journal=journal)
    journal.close()
    return targets


def refuse_adapter(name: str, algorithm: Algorithm, variant: str) -> None:
    """Refuse to write an adapter where a client's result is none.

    Args:
        name: of the method.
        algorithm: the method.
        variant: the adapter's.

    Raises:
        UserError: why, and what to do.
    """
    _refuse_gates(name, algorithm)
    reason = None
    if algorithm.folds:
        reason = f"{name} adds to the base model's own weights, which no adapter holds"
    elif algorithm.export == "merged model":
        reason = f"what a client has by {name} is no adapter of the base model"
    elif len(algorithm.adapters) > 1 and not VARIANTS[variant].is_product:
        reason = (
            f"{name} has {counted(len(algorithm.adapters), 'adapter')} for each client, and those of "
            f"variant {variant} cannot be put together as one"
        )
    if reason:
        raise UserError(f"{reason}: write whole models with --merge (in Python `merge=True`)")


def _refuse_gates(name: str, algorithm: Algorithm) -> None:
    """Refuse to write what no file that PEFT or transformers load can hold.

    Raises:
        UserError: each layer weighs its adapters for each token.
    """
    if algorithm.gated == "token":
        raise UserError(
            f"{name} weighs its adapters for each token. Neither a PEFT adapter nor merged weights can do this, "
            "so there is nothing to write: for adapters in PEFT's format use another method"
        )


def _adapted(
    run: FinishedRun,
    algorithm: Algorithm,
    task: Task,
    base: PreTrainedModel | AdaptedModel | Callable[[], PreTrainedModel] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    merge: bool,
) -> AdaptedModel:
    """Return the base with the run's adapter in it; one to be merged is nobody else's.

    Raises:
        RunFolderError: its weights are not those that the run was trained on.
    """
    recipe = run.recipe
    if isinstance(base, AdaptedModel):
        run.check_base(adapted_fingerprint(base), "base_model")
        if not merge:
            return base
        if base.precision == "fp32" and not recipe.model.quantization:
            return copy.deepcopy(base)
        if recipe.model.path == OBJECTS:
            return _in_fp32(base)
        base = None
    seed = derive_seed(recipe.seed, "init")
    given = own_copy(base)
    if given is None:
        plain, _ = load_base(recipe.model, auto_model=task.auto_model, options=task.model_options(), seed=seed)
    else:
        plain = fresh_base(given)
    config = config_of(run.folder)
    run.check_base(plain_fingerprint(plain, config))
    if not task.takes_images:
        fit_padding(plain, tokenizer)
    return AdaptedModel(
        plain, config, seed=seed, adapters=algorithm.adapters, folds=algorithm.folds, gated=algorithm.gated
    )


def _more_stops(model: AdaptedModel, task: TaskSettings, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens at which the run's model stops to write; none where those are its own settings' already."""
    if task.kind not in _WRITING:
        return ()
    base = model.model.get_base_model()
    chat = task.shape is not None or (isinstance(task, GenerationSettings | MultipleChoiceSettings) and task.chat)
    stops = stops_of(base, tokenizer, chat=chat)
    return () if {*stops} <= {*own_stops(base)} else stops


def _stop_at(model: AdaptedModel, stops: Sequence[int]) -> None:
    """Make a model's own settings name the tokens at which it stops to write."""
    settings: Any = cast(Any, model.model.get_base_model()).generation_config
    settings.eos_token_id = list(stops)
    settings._from_model_config = False  # they are no longer what its config.json says


def _in_fp32(model: AdaptedModel) -> AdaptedModel:
    """Return a copy whose frozen weights are fp32, as they would be merged into; the values are those in use."""
    copied = copy.deepcopy(model)
    copied.model.float()
    for name, value in projections(copied).items():
        copied.model.get_buffer(name).copy_(value)
    return copied
