"""A client that was not in a finished run, taken to an adapter of its own from the run's result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import torch

from fedsa.algorithms import make_algorithm
from fedsa.data.rows import deal_client
from fedsa.errors import UserError
from fedsa.federation import Federation, newcomer, own_copy
from fedsa.recipe import OBJECTS, AdaptationSettings, Recipe, Start
from fedsa.runs.export import (
    about_of,
    base_of,
    card_of,
    config_of,
    refuse_adapter,
    require_empty,
    weights_note,
    write_model,
)
from fedsa.runs.onboarding import Onboarding
from fedsa.runs.personal import PersonalStates
from fedsa.store import FinishedRun, require_clients
from fedsa.tasks.writer import begin_of
from fedsa.texts.words import counted, cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedsa.types import State

__all__ = ["AdaptResult", "Tried", "adapt"]


@dataclass(frozen=True)
class Tried:
    """One way to an adapter, and what it came to.

    Attributes:
        start: where the personal tensors began.
        freeze_shared: only they were trained.
        before: ``validation`` and ``test``, each with the task's metric, ``loss`` and ``examples``: before training.
        after: the same after it.
    """

    start: str
    freeze_shared: bool
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]


@final
@dataclass(frozen=True)
class AdaptResult:
    """A newcomer's adapter.

    Attributes:
        client: its id: the name of its file or folder.
        run: the run folder.
        round: whose result was begun with: the one that the run chose.
        metric: the task's.
        examples: rows of each split.
        length: ``steps`` or ``epochs`` of the training.
        chosen: the way that was taken: the best on validation; of equals that with the lower loss there.
        tried: every way that was tried, in the order tried.
        path: the folder that the adapter was written into, or None.
        notes: what is to be known of how its rows were cut.
    """

    client: str
    run: Path
    round: int
    metric: str
    examples: dict[str, int]
    length: dict[str, int]
    chosen: Tried
    tried: tuple[Tried, ...]
    path: Path | None
    notes: tuple[str, ...] = ()


def adapt(
    run: str | Path,
    data: str | Path,
    *,
    to: str | Path | None = None,
    start: Start | None = None,
    freeze_shared: bool | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    compare: bool = False,
    base: PreTrainedModel | Callable[[], PreTrainedModel] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    with_base: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> AdaptResult:
    """Take a client that was not in a federation to an adapter of its own, from a finished run's chosen round.

    Its rows are cut into train, validation and test as those of the run's clients. Nothing is written into the run
    folder.

    Args:
        run: a finished run's folder.
        data: the client's rows: a local file or folder with the columns that the run's recipe names.
        to: an empty folder for the adapter in PEFT's format; None: it is only measured.
        start: where its personal tensors begin; None: as the run's ``adaptation.start``.
        freeze_shared: train the personal tensors only; None: as ``adaptation.freeze_shared``.
        steps: optimiser steps; None: ``epochs``, or as the run's recipe says.
        epochs: passes over its training rows.
        learning_rate: None: as ``adaptation.learning_rate``, or that of the run's training, which may be too high for a
            client that begins with what others have trained.
        compare: try every start, with the shared tensors frozen and not, and take the best on validation. Starts that
            need ``adaptation.share_personal`` are left out where the run's recipe does not have it.
        base: the base model as it was before the run (it is copied), or a function that loads it; None: loaded by its
            name in the recipe, which a run of a loaded model does not have.
        tokenizer: None: the named model's.
        with_base: as for `fedsa.runs.export`.
        on_progress: told what takes time.

    Raises:
        UserError: the run is not finished, the rows do not fit, the clients do not share what the start needs, or the
            target is not empty.
        TrainingError: the training went wrong.
    """
    run, target, tell = Path(run), None if to is None else Path(to), on_progress or (lambda text: None)
    finished = FinishedRun.open(run)
    require_clients(finished.folder)
    folder, recipe, summary = finished.folder, finished.recipe, finished.summary
    settings = _settings(recipe.adaptation, start, freeze_shared, steps, epochs, learning_rate, compare=compare)
    if target is not None:
        require_empty(target)
        algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
        refuse_adapter(recipe.algorithm, algorithm, recipe.adapter.variant)
    if recipe.model.path == OBJECTS and (base is None or tokenizer is None):
        raise UserError(
            f"{run} is a run of a model that was loaded in Python: use fedsa.adapt(run, data, base=..., tokenizer=...) "
            "with the base model as it was before the run (or a function that loads it) and its tokenizer"
        )
    tell("reading rows")
    client = _name(Path(data))
    rows, notes = deal_client(client, str(data), recipe, finished.label_names, newcomer=True)
    tell("loading the model")
    federation = newcomer(
        recipe,
        config_of(folder),
        rows,
        model=own_copy(base),
        tokenizer=tokenizer,
        on_progress=tell,
    )
    finished.check_base(federation.base)
    torch.set_num_threads(federation.recipe.compute.threads)
    states = PersonalStates(folder, federation.algorithm, int(summary["chosen_round"]))
    onboarding = Onboarding(federation, states, settings)
    choices = onboarding.choices() if compare else [(settings.start, settings.freeze_shared)]
    metric, tried, best = federation.task.metric, [], None
    for number, (own_start, freeze) in enumerate(choices, start=1):
        tell(f"training, {number} of {len(choices)}")
        splits: Sequence[Any] = ("validation", "test")
        (adapted,) = onboarding.take_in([client], own_start, freeze_shared=freeze, splits=splits)
        before, after = ({split: dict(moment[split]) for split in splits} for moment in (adapted.before, adapted.after))
        tried.append(Tried(own_start, freeze, before, after))
        rank = (after["validation"][metric], -after["validation"]["loss"])
        if best is None or rank > best[0]:
            best = rank, tried[-1], adapted.tensors
    _, chosen, tensors = cast("tuple[Any, Tried, State]", best)
    examples = dict(zip(("train", "validation", "test"), map(len, rows.partition.clients[client]), strict=True))
    result = AdaptResult(
        client,
        run,
        int(summary["chosen_round"]),
        metric,
        examples,
        settings.length,
        chosen,
        tuple(tried),
        target,
        tuple(notes),
    )
    if target is not None:
        _write(federation, recipe, summary, result, tensors, rows.label_names, target, folder.run, with_base=with_base)
    return result


def _settings(
    settings: AdaptationSettings,
    start: Start | None,
    freeze_shared: bool | None,
    steps: int | None,
    epochs: int | None,
    learning_rate: float | None,
    *,
    compare: bool,
) -> AdaptationSettings:
    """Return the run's settings with those that are given in their place.

    Raises:
        UserError: they contradict each other, or the clients did not agree to what they need.
    """
    if compare and (start is not None or freeze_shared is not None):
        raise UserError(
            "--compare (in Python `compare`) tries every start, frozen and not: leave --start and --freeze-shared out "
            "(in Python `start` and `freeze_shared`)"
        )
    if steps is not None and epochs is not None:
        raise UserError("give --steps or --epochs, not both (in Python `steps` or `epochs`)")
    for name, value in (("steps", steps), ("epochs", epochs)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1, as `{name}` in Python")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise UserError(
            f"--learning-rate {learning_rate:g}: must be a number greater than 0, as `learning_rate` in Python"
        )
    if start not in (None, "initial", "mean", "nearest"):
        raise UserError(f"--start {cut(str(start), 80)}: must be initial, mean or nearest, as `start` in Python")
    if start in ("mean", "nearest") and not settings.share_personal:
        raise UserError(
            f"--start {start} (in Python `start={start!r}`) averages the personal tensors of the run's clients, which "
            "then leave the clients. The run's recipe does not allow this: use the start `initial`, or a run with "
            "adaptation.share_personal = true"
        )
    update: dict[str, Any] = {}
    if start is not None:
        update["start"] = start
    if freeze_shared is not None:
        update["freeze_shared"] = freeze_shared
    if steps is not None or epochs is not None:
        update |= {"steps": steps, "epochs": epochs}
    if learning_rate is not None:
        update["learning_rate"] = learning_rate
    return settings.model_copy(update=update)


def _name(data: Path) -> str:
    """Return the newcomer's id.

    >>> _name(Path("rows/new.site.csv.gz")), _name(Path("rows/site"))
    ('new.site', 'site')
    """
    name = data.resolve().name if data.name in ("", "..") else data.name
    return Path(name.removesuffix(".gz")).stem or name


def _write(
    federation: Federation,
    recipe: Recipe,
    summary: dict[str, Any],
    result: AdaptResult,
    tensors: State,
    label_names: Sequence[str],
    target: Path,
    run: str,
    *,
    with_base: bool,
) -> None:
    """Write the adapter with a card that says what it is."""
    metric, chosen = result.metric, result.chosen
    length = ", ".join(counted(count, name.removesuffix("s")) for name, count in result.length.items())
    history = (
        f"This client was not in the federation of {counted(summary['clients'], 'client')} that fedsa trained by the "
        f"method `{recipe.algorithm}` ({summary['source']}), adapter variant `{summary['variant']}`. It began with the "
        f"result of round {result.round} of {summary['rounds']} (start: {chosen.start}) and trained {length} on its "
        f"own rows{', with what the clients share frozen' if chosen.freeze_shared else ''}."
    )
    before, after = chosen.before["test"], chosen.after["test"]
    score = (
        f"- Test {metric} on this client's own rows: {before[metric]:.4f} before, {after[metric]:.4f} after "
        f"({counted(int(after['examples']), 'row')}){weights_note(federation.algorithm)}"
    )
    about = {**{f"{split}_examples": count for split, count in result.examples.items()}, "labels": list(label_names)}
    model, tokenizer = federation.model, federation.tokenizer
    copied = None if with_base else False
    base = base_of(recipe.model, recipe.compute, model, federation.task, tokenizer, target, copy=copied)
    begin = begin_of(tokenizer) if recipe.task.kind == "language_modeling" else ""
    card = card_of(recipe, summary, result.client, about, base, target, history=history, score=score, begin=begin)
    told = about_of(
        recipe,
        label_names,
        base,
        client=result.client,
        run=run,
        round=result.round,
        fingerprint=federation.base,
    )
    write_model(model, tensors, tokenizer, card, target, base=base, about=told)
