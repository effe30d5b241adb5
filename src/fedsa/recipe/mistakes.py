"""What is wrong with a recipe's data, in a user's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedsa.errors import Mistake, near
from fedsa.recipe.recipe import Recipe
from fedsa.texts.words import brief, cut

__all__ = ["LEVELS", "is_deep", "mistakes_of", "unwritable"]

LEVELS = 32
"""Of tables and lists within each other. Python's own limit ends a deeper look in a RecursionError."""

_LARGEST = 3e38
"""Of a number that torch takes for tensors of fp32, as a learning rate say."""


def is_deep(data: Any) -> bool:
    """Lists or tables lie within each other deeper than in any settings."""
    return any(not mistake.where for mistake in unwritable(data))


def unwritable(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what no settings can hold: depth, whole numbers of more than 64 bits, and others that fp32 has not."""
    level: list[tuple[tuple[str, ...], Any]] = [((), data)]
    for _ in range(LEVELS):
        inner = []
        for place, value in level:
            if isinstance(value, int) and value.bit_length() > 63:
                yield Mistake(".".join(map(_key, place)), f"{brief(value)} is too large, use a number below 2^63")
            elif isinstance(value, float) and _LARGEST < abs(value) < float("inf"):
                yield Mistake(".".join(map(_key, place)), f"{value:g} is too large, use a number below {_LARGEST:g}")
            elif isinstance(value, Mapping):
                inner += [((*place, str(key)), each) for key, each in value.items()]
            elif isinstance(value, list | tuple):
                inner += [(place, each) for each in value]
        level = inner
    if level:
        yield Mistake("", f"lists or tables lie within each other more than {LEVELS} deep: take some out")


def mistakes_of(error: ValidationError, model: type[BaseModel]) -> list[Mistake]:
    """Return what pydantic found wrong with data for a model, in a user's words."""
    # A hint for each of a hundred thousand unknown keys takes a minute, and is not shown.
    return [_mistake(entry, model, hint=number < 100) for number, entry in enumerate(error.errors(include_url=False))]


def _mistake(entry: Mapping[str, Any], model: type[BaseModel], *, hint: bool) -> Mistake:
    location = [part for part in entry["loc"] if isinstance(part, str | int)]
    where = ".".join(_key(part) for part in location)
    match entry["type"]:
        case "extra_forbidden":
            known = _fields(location[:-1], model) if hint else []
            return Mistake(where, f"unknown key; {_near_key(str(location[-1]), known)}" if known else "unknown key")
        case "missing":
            return Mistake(where, "is missing; add it to the recipe" if model is Recipe else "is missing; add it")
        case "value_error":
            return Mistake(where, str(entry["ctx"]["error"]))
        case _:
            message = str(entry["msg"])
            return Mistake(where, f"{message[0].lower()}{message[1:]} (got {brief(entry['input'])})")


def _key(part: str | int) -> str:
    """Return a part of a key as TOML would have it."""
    return cut(part, 80) if isinstance(part, str) and part.replace("-", "_").isidentifier() else brief(part)


_OTHER_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "epochs": "rounds",
}
"""Names that other libraries have for a setting: nothing in their spelling leads from one to the other."""


def _near_key(name: str, known: Sequence[str]) -> str:
    other = _OTHER_NAMES.get(name)
    return f"did you mean {other!r}?" if other in known else near(name, known)


def _fields(location: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Return the names of the fields of the settings at a location in a model's data."""
    for part in location:
        if isinstance(part, int):  # the place in a list, whose entries' model was taken already
            continue
        annotation = model.model_fields[part].annotation
        annotation = next((of for of in (*get_args(annotation), annotation) if _is_model(of)), None)
        if annotation is None:
            return []
        model = annotation
    return list(model.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
