"""What is wrong with a recipe's data, in a user's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedsa.errors import Mistake, near
from fedsa.recipe.kinds import OWN, ByKind, by_kind
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
    """The mistakes that pydantic found in data for a model, in words for users."""
    # A hint for each of a hundred thousand unknown keys takes a minute, and is not shown.
    return [_mistake(entry, model, hint=number < 100) for number, entry in enumerate(error.errors(include_url=False))]


def _mistake(entry: Mapping[str, Any], model: type[BaseModel], *, hint: bool) -> Mistake:
    location = [part for part in entry["loc"] if isinstance(part, str | int)]
    where = _shown(location, model)
    *parents, last = location or [""]
    match entry["type"]:
        case "extra_forbidden":
            section = _section(parents, model)
            others = [kind for kind, of in section.kinds.items() if last in of.model_fields]
            if others:
                others = [kind for kind in others if kind != OWN] or others
                goes = f"`{last}` does not go with {section.kind}; it goes with {', '.join(others)}"
                return Mistake(_shown(parents, model), goes)
            known = section.names if hint else []
            return Mistake(where, f"unknown key; {_near_key(str(last), known)}" if known else "unknown key")
        case "missing" if _section(parents, model).kinds:
            return Mistake(_shown(parents, model), f"{_section(parents, model).kind} needs `{last}`")
        case "missing":
            return Mistake(where, "is missing; add it to the recipe" if model is Recipe else "is missing; add it")
        case "union_tag_invalid" | "union_tag_not_found":
            return Mistake(where, _no_kind(entry["input"], _section(location, model)))
        case "value_error":
            return Mistake(where, str(entry["ctx"]["error"]))
        case _:
            message = str(entry["msg"])
            return Mistake(where, f"{message[0].lower()}{message[1:]} (got {brief(entry['input'])})")


def _no_kind(data: Any, section: _Section) -> str:
    """What to say of a section's data that tells no kind that there is."""
    if section.by is None or not isinstance(data, Mapping):
        return f"must be a table of settings (got {brief(data)})"
    given = data.get(section.by.name)
    known = [kind for kind in section.kinds if kind != OWN]
    own = f" (a {section.parts[-1]} of your own is {OWN})" if OWN in section.kinds else ""
    return f"{section.by.name} = {brief(given)}: {near(given if isinstance(given, str) else '', known)}{own}"


def _shown(location: Sequence[str | int], model: type[BaseModel]) -> str:
    """A location as a user would write it: dotted, without the kinds that pydantic puts in."""
    return ".".join(_key(part) for part in _section(location, model).parts)


@dataclass(frozen=True)
class _Section:
    """What lies at a location in a model's data.

    Attributes:
        parts: the location without the kinds that pydantic puts in.
        model: the section there; None where there is none, or its kind is not known.
        by: tells its kind, where it comes in kinds.
        kinds: all that it could be.
        kind: which it is, as ``kind = 'generation'``.
    """

    parts: tuple[str | int, ...]
    model: type[BaseModel] | None
    by: ByKind | None = None
    kinds: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    kind: str = ""

    @property
    def names(self) -> list[str]:
        """The settings that it may have, of whatever kind it is."""
        models = self.kinds.values() or [self.model]
        return list(dict.fromkeys(name for model in models if model for name in model.model_fields))


def _section(location: Sequence[str | int], model: type[BaseModel]) -> _Section:
    """The section at a location in a model's data."""
    found = _Section((), model)
    rest = iter(location)
    for part in rest:
        parts = (*found.parts, part)
        if isinstance(part, int):  # the place in a list, whose entries' model was taken already
            found = replace(found, parts=parts)
            continue
        setting = found.model.model_fields.get(part) if found.model else None
        by = by_kind(setting) if setting else None
        if setting is not None and by is not None:
            kinds, kind = by.sections(setting.annotation), str(next(rest, ""))
            found = _Section(parts, kinds.get(kind), by, kinds, f"{by.name} = {kind!r}")
        else:
            annotation = setting.annotation if setting else None
            inner = next((of for of in (*get_args(annotation), annotation) if _is_model(of)), None)
            found = _Section(parts, inner)
    return found


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


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
