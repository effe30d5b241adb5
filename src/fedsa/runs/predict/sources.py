"""Where adapters come from that are asked: a run's folder, or a folder that an export has written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from fedsa.algorithms import make_algorithm
from fedsa.errors import RunFolderError, UserError
from fedsa.federation import adapt_base, fresh_base, load_named_base, load_processor, on_this_machine, own_copy
from fedsa.models import AdaptedModel, adapted_fingerprint
from fedsa.recipe import OBJECTS, DataSettings, Recipe, TaskSettings
from fedsa.runs.export import ABOUT, config_of, load_adapter, read_about, task_of
from fedsa.runs.personal import PersonalStates
from fedsa.store import RunFolder, check_base, label_names_of, recipe_of, require_clients
from fedsa.tasks import make_task
from fedsa.tasks.base import Task
from fedsa.texts.words import counted, cut
from fedsa.types import State

__all__ = ["Loaded", "Source", "open_source"]

_BATCH = 32  # rows of a forward pass, where no recipe says it


class Loaded(NamedTuple):
    """What adapters are asked through.

    Attributes:
        model: the base with an adapter in it.
        task: not fitted to the model yet.
        processor: the tokenizer, or the image processor.
        state: of a client: its tensors.
    """

    model: AdaptedModel
    task: Task
    processor: Any
    state: Callable[[str], State]


@final
@dataclass(frozen=True)
class Source:
    """Adapters that can be asked.

    Attributes:
        path: the folder.
        clients: every client's id.
        round: whose tensors the adapters are.
        settings: the task's.
        load: loads the base model.
        data: how files of rows are read; None: found by looking.
        batch_size: rows of a forward pass.
        together: clients that go through the model at once; 0: one by one.
        pack: several short texts go through the model as one row.
        notes: whole sentences on the adapters that a user should know.
    """

    path: Path
    clients: tuple[str, ...]
    round: int
    settings: TaskSettings
    load: Callable[[], Loaded]
    data: DataSettings | None = None
    batch_size: int = _BATCH
    together: int = 0
    pack: bool = False
    notes: tuple[str, ...] = field(default=())


def open_source(
    path: Path,
    *,
    round: str = "chosen",
    base: Any = None,
    tokenizer: Any = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Source:
    """Open a run's folder, or one with an exported adapter, whatever a path is.

    Args:
        path: the folder.
        round: of a run: ``chosen`` or ``final``.
        base: the base model; None: loaded by its name.
        tokenizer: None: the model's own.
        tell: told what takes time.

    Raises:
        UserError: it is neither, or cannot be used.
    """
    if round not in ("chosen", "final"):
        raise UserError(f"--round {cut(round, 80)}: must be chosen or final, as `round` in Python; only these are kept")
    if (path / "recipe.toml").is_file():
        if isinstance(base, str):
            raise UserError(
                "--base goes with an exported adapter: a run's base model is the one that its recipe names (in Python, "
                "`base` is the model itself or a function that loads it)"
            )
        return _of_run(path, round=round, base=base, tokenizer=tokenizer, tell=tell)
    if (path / "adapter_config.json").is_file() or (path / ABOUT).is_file():
        return _of_adapter(path, base=base, tokenizer=tokenizer, tell=tell)
    raise UserError(f"{path} {_what_is_there(path)}")


def _what_is_there(path: Path) -> str:
    """Return why a path is neither a run nor an adapter, and what to give in its place."""
    if not path.is_dir():
        return "does not exist" if not path.exists() else "is a file: give a run folder, or the folder of an adapter"
    if (path / "run" / "recipe.toml").is_file():
        return f"is the folder of a site: give the run in it, {path / 'run'}"
    inside = sorted(entry.name for entry in path.iterdir() if (entry / "adapter_config.json").is_file())
    if inside:
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        return f"holds several adapters: give one of them ({', '.join(inside[:5])}{more})"
    return "is neither a run folder (no recipe.toml in it) nor an exported adapter (no adapter_config.json)"


def _of_run(path: Path, *, round: str, base: Any, tokenizer: Any, tell: Callable[[str], None]) -> Source:
    """Open a run, finished or not; see `open_source`.

    Raises:
        UserError: it has no finished round, or its base model is needed and not given.
    """
    folder = RunFolder.open(path)
    progress = folder.progress()
    if progress is None or progress.round < 0:
        raise RunFolderError(f"{path} has no finished round yet: `fedsa resume {path}` goes on with it")
    require_clients(folder)
    recipe = on_this_machine(recipe_of(folder))
    if recipe.model.path == OBJECTS and (base is None or tokenizer is None):
        raise UserError(
            f"{path} is a run of a model that was loaded in Python: use fedsa.predict(run, rows, base=..., "
            "tokenizer=...) with the base model as it was before the run (or a function that loads it) and its "
            "tokenizer, or result.predictor() of what fedsa.run returned"
        )
    number = progress.round if round == "final" or progress.chosen_round is None else progress.chosen_round
    notes = []
    if not folder.is_measured:
        which = "the best so far" if number == progress.chosen_round and round == "chosen" else "its last one"
        far = f"{progress.round} of {counted(recipe.rounds, 'round')}"
        notes.append(f"{path} is not finished ({far}): round {number}, {which}, is asked.")
    about: Mapping[str, Mapping[str, Any]] = folder.read_json("clients.json")
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    if algorithm.references:
        notes.append(
            f"{recipe.algorithm} weighs its adapters for each row by the client's training rows, which are not here: "
            "each adapter has weight 1, as in an export, so predictions can differ from those that the run measured."
        )

    def load() -> Loaded:
        task = make_task(recipe.task, label_names_of(about))
        processor = tokenizer or load_processor(recipe.model, task, recipe.task.image_side)
        torch.set_num_threads(recipe.compute.threads)
        model = _model_of_run(folder, recipe, task, base, tell)
        return Loaded(model, task, processor, PersonalStates(folder, algorithm, number).of)

    is_cohort = recipe.training.trainer == "cohort"
    return Source(
        path=path,
        clients=tuple(about),
        round=number,
        settings=recipe.task,
        load=load,
        data=recipe.data,
        batch_size=recipe.evaluation.batch_size,
        together=recipe.training.cohort_size if is_cohort else 0,
        pack=is_cohort and bool(recipe.training.packing),
        notes=tuple(notes),
    )


def _model_of_run(
    folder: RunFolder, recipe: Recipe, task: Task, base: Any, tell: Callable[[str], None]
) -> AdaptedModel:
    """Return the base with the run's adapter in it.

    Raises:
        RunFolderError: its weights are not those that the run was trained on.
    """
    if isinstance(base, AdaptedModel):
        check_base(folder, recipe, adapted_fingerprint(base), "base_model")
        return base
    tell("loading the model")
    given = own_copy(base)
    if given is None:
        plain, _ = load_named_base(recipe.model, recipe.compute, recipe.seed, task, tell)
    else:
        plain = fresh_base(given)
    adapted = adapt_base(recipe, plain, config_of(folder), task, clients=None)
    check_base(folder, recipe, adapted.base)
    return adapted.model


def _of_adapter(path: Path, *, base: Any, tokenizer: Any, tell: Callable[[str], None]) -> Source:
    """Open an exported adapter; see `open_source`.

    Raises:
        UserError: it is damaged, or its base model is not there.
    """
    about = read_about(path)

    def load() -> Loaded:
        own = base if isinstance(base, str) else own_copy(base)
        loaded = load_adapter(path, base=own, tokenizer=tokenizer, tell=tell)
        return Loaded(loaded.model, loaded.task, loaded.processor, lambda client: loaded.state)

    return Source(path, (about.client,), about.round, task_of(path, about), load)
