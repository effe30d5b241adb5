"""All that is wrong with a recipe, found before a run: its settings, its model without weights, its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from pydantic import ValidationError

from fedsa.algorithms import make_algorithm
from fedsa.callbacks import check_callbacks
from fedsa.client.training.autotune import refuse_cohort
from fedsa.data.rows import DealtRows, deal_rows, wanted_columns
from fedsa.data.sources import are_here, unreadable_clients
from fedsa.errors import ConfigError, DataError, FedsaError
from fedsa.federation.base_models import load_processor
from fedsa.federation.building import shapes_of
from fedsa.federation.checks import (
    check_base,
    check_early,
    check_heads,
    check_layers,
    check_personal,
    check_weighable,
)
from fedsa.federation.encoding import notes_on_texts
from fedsa.federation.resolving import client_ranks
from fedsa.models import resolve_compute
from fedsa.packages.parts import PARTS, PREFIX, is_cached
from fedsa.recipe import OBJECTS, Recipe, parse_recipe, refuse_objects, with_absolute_paths
from fedsa.server import held_out
from fedsa.steps import CHECKS
from fedsa.system.paths import is_about_files, told
from fedsa.tasks import make_task

__all__ = ["Examination", "Fault", "examine"]

_FOR_MODEL = {"algorithm", "algorithm_options", "share_head", "model", "adapter", "task"}
_FOR_DATA = {"data", "task", "seed"}
_LOOKED_AT = _FOR_MODEL | _FOR_DATA | {"compute"}
"""The keys at the top of a recipe whose settings say what model and rows must be."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        part: what it was found in: ``settings``, ``compute``, ``model`` or ``data``.
        where: the setting (dotted key) or the file; empty where the text itself says it.
        what: what is wrong, with the mend.
    """

    part: str
    where: str
    what: str


@final
@dataclass
class Examination:
    """What was found.

    Attributes:
        faults: all that is wrong, in the order in which a run would meet it.
        notes: sentences on the rows that a run would say.
        not_checked: what was not looked at, and why.
        clients: how many there are; None: the rows were not read.
        rows: how many there are, of all clients.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    not_checked: dict[str, str] = field(default_factory=dict)
    clients: int | None = None
    rows: int | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose failure is one more fault of a part; what comes after it is looked at all the same."""
        try:
            yield
        except ConfigError as error:
            self.faults += [Fault(name, mistake.where, mistake.what) for mistake in error.mistakes]
        except FedsaError as error:
            self.faults.append(Fault(name, "", str(error)))
        except OSError as error:
            if not is_about_files(error):
                raise
            self.faults.append(Fault(name, "", told(error)))


def examine(data: Mapping[str, Any], source: str, *, on_progress: Callable[[str], None] | None = None) -> Examination:
    """Look at all that can be wrong with a recipe. No weights are loaded, and no model or data set is fetched.

    Of a model on the hub the config and the tokenizer are fetched, as for a plan. Where settings are wrong, what does
    not depend on them is looked at all the same.

    Args:
        data: the recipe's raw data.
        source: what to call it in messages.
        on_progress: told what takes time.
    """
    tell = on_progress or (lambda text: None)
    found = Examination()
    recipe: Recipe | None = None
    with found.part("settings"):
        recipe = parse_recipe(data, source=source, checks=[*CHECKS, check_callbacks])
    wrong = {fault.where.partition(".")[0] for fault in found.faults}
    recipe = recipe or _without(data, wrong)
    if recipe is None:
        return _nothing_more(found)
    if not wrong & {"data", "model"}:  # else a stand-in may be there
        with found.part("settings"):
            refuse_objects(recipe, source)
        if OBJECTS in (recipe.data.path, recipe.model.path):
            return _nothing_more(found)
    with found.part("settings"):
        recipe = with_absolute_paths(recipe)
    if "compute" not in wrong:
        with found.part("compute"):
            resolve_compute(recipe.compute)
    rows = _look_at_rows(found, recipe, wrong, tell)
    _look_at_model(found, recipe, wrong, rows, tell)
    return found


def _nothing_more(found: Examination) -> Examination:
    why = "the settings must be right first"
    found.not_checked |= {"model": why, "data": why}
    return found


def _without(data: Mapping[str, Any], wrong: set[str]) -> Recipe | None:
    """What can be looked at of a recipe with mistakes: the sections on model and rows that have none.

    A section that is wrong has a stand-in, and what depends on it must not be looked at.
    """
    kept: dict[str, Any] = {key: value for key, value in data.items() if key in _LOOKED_AT - wrong}
    kept["rounds"] = 1
    kept.setdefault("model", {"path": OBJECTS})
    kept.setdefault("data", {"path": OBJECTS, "partition": {"kind": "iid", "clients": 1}})
    try:
        return Recipe.model_validate(kept)
    except ValidationError:  # it is too far from a recipe; its mistakes are told already
        return None


# -- the rows ----------------------------------------------------------------------------------------------------------


def _look_at_rows(found: Examination, recipe: Recipe, wrong: set[str], tell: Callable[[str], None]) -> DealtRows | None:
    """Read and deal out the rows, if they are here."""
    settings = recipe.data
    if wrong & _FOR_DATA:
        found.not_checked["data"] = _because(wrong & _FOR_DATA)
        return None
    rows: DealtRows | None = None
    with found.part("data"):
        name = settings.path.removeprefix(PREFIX)
        if settings.path.startswith(PREFIX) and name in PARTS and not is_cached(name):
            found.not_checked["data"] = _fetched(name)
            return None
        if not settings.path.startswith(PREFIX) and not are_here(settings) and _may_be_fetched(settings.path):
            found.not_checked["data"] = (
                f"{settings.path} is not on this machine: `fedsa data` fetches it from the hub and reads its rows"
            )
            return None
        tell("reading rows")
        rows = _dealt(found, recipe)
    if rows is None:
        return None
    everyone = sorted(rows.partition.clients)
    with found.part("data"):
        held_out(everyone, recipe.holdout_clients, recipe.seed)
    if "adapter" not in wrong:
        with found.part("data"):
            client_ranks(recipe.adapter, everyone)
    found.notes = rows.notes
    found.clients, found.rows = len(everyone), sum(len(part) for c in everyone for part in rows.partition.clients[c])
    return rows


def _dealt(found: Examination, recipe: Recipe) -> DealtRows | None:
    """Deal out the rows; where clients' files cannot be read, say it of each, and go on with the others.

    Raises:
        DataError: what is wrong with the rows, but for single files.
    """
    try:
        return deal_rows(recipe)
    except DataError:
        settings = recipe.data
        if settings.partition.kind != "files" or settings.partition.leave_out_unreadable:
            raise
        unreadable = unreadable_clients(settings, wanted_columns(recipe.task, settings.partition))
        if not unreadable:
            raise
    found.faults += [Fault("data", name, why) for name, why in unreadable.items()]
    partition = settings.partition.model_copy(update={"leave_out_unreadable": True})
    others = recipe.model_copy(update={"data": settings.model_copy(update={"partition": partition})})
    before = len(found.faults)
    with found.part("data"):
        deal_rows(others)
    if len(found.faults) > before and found.faults[-1].what.endswith(tuple(unreadable.values())):
        found.faults.pop()  # no file could be read: that was said of each
    return None  # notes and numbers would be of some clients alone


def _may_be_fetched(path: str) -> bool:
    """Whether a path that is not here may be a data set on the hub, which may be asked.

    Raises:
        DataError: it looks like a path.
    """
    from datasets import config

    from fedsa.data.reading.paths import is_local

    return not is_local(path) and not config.HF_HUB_OFFLINE


# -- the model ---------------------------------------------------------------------------------------------------------


def _look_at_model(
    found: Examination, recipe: Recipe, wrong: set[str], rows: DealtRows | None, tell: Callable[[str], None]
) -> None:
    """Make the adapted model without values, and ask of it what a run would."""
    if wrong & _FOR_MODEL:
        found.not_checked["model"] = _because(wrong & _FOR_MODEL)
        return
    name = recipe.model.path.removeprefix(PREFIX)
    if recipe.model.path.startswith(PREFIX) and name in PARTS and not is_cached(name):
        found.not_checked["model"] = _fetched(name)
        return
    before = len(found.faults)
    with found.part("model"):
        tell("reading the model's config")
        check_early(recipe)
        _check_adapted(found, recipe, rows, "" not in wrong and not wrong - _LOOKED_AT, tell)
    if recipe.task.is_own or len(found.faults) > before:
        return
    with found.part("model"):
        task = make_task(recipe.task, _classes(recipe, rows))
        tell("loading the tokenizer")
        processor = load_processor(recipe.model, task, recipe.task.image_side)
        if rows is not None:
            with found.part("data"):
                found.notes += notes_on_texts(recipe.model, recipe.task, rows, tokenizer=processor, on_progress=tell)


def _check_adapted(
    found: Examination, recipe: Recipe, rows: DealtRows | None, is_whole: bool, tell: Callable[[str], None]
) -> None:
    """Ask what a run asks of model, adapter, method and trainer together.

    Args:
        found: takes what is wrong.
        recipe: any.
        rows: tell the classes; None: they are not known.
        is_whole: the recipe has no mistakes; else its other settings are not those of the user.
        tell: told what is fetched.
    """
    task = make_task(recipe.task, _classes(recipe, rows))
    algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
    model = shapes_of(recipe, task, algorithm, on_progress=tell)
    with found.part("model"):
        check_layers(model.model, recipe.algorithm, algorithm, recipe.adapter, recipe.evaluation.global_model)
    with found.part("model"):
        check_weighable(algorithm, recipe.algorithm, model, task, recipe.task.kind)
    with found.part("model"):
        check_base(task, recipe.task.kind, algorithm, recipe.algorithm, recipe.adapter.variant)
    if not is_whole:
        return
    with found.part("settings"):
        check_personal(recipe, algorithm, model.keys, recipe.adapter.variant)
    with found.part("model"):
        check_heads(recipe, algorithm, model, task)
    with found.part("model"):
        obstacles = model.obstacles()
        if obstacles and recipe.training.trainer != "sequential":
            refuse_cohort(recipe.training, "; ".join(obstacles))


def _classes(recipe: Recipe, rows: DealtRows | None) -> Sequence[str]:
    if recipe.task.class_names:
        return recipe.task.class_names
    return rows.label_names if rows is not None else ["0", "1"]


def _because(wrong: set[str]) -> str:
    return f"first mend the mistakes in {', '.join(sorted(wrong))}"


def _fetched(part: str) -> str:
    size = PARTS[part].download_bytes / 1e6
    return f"{PREFIX}{part} is not on this machine: `fedsa run` fetches it ({size:.0f} MB)"
