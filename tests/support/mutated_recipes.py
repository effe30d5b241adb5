"""Recipes with mistakes of every kind, made from the schema: wrong types, depth, sizes, names, places."""

from __future__ import annotations

import copy
import datetime
import random
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from fedsa.recipe import Recipe


def deep(levels: int, *, table: bool = False) -> Any:
    """Return lists (or tables) within each other."""
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if table else [value]
    return value


VALUES: list[Any] = [
    *(
        "",
        " ",
        "x",
        "auto",
        "none",
        "0",
        "true",
        "ünïcødé \U0001f9ea",
        "\x1b[31mred\x07",
        "\u202ebackwards",
        "x" * 5000,
    ),
    *("~nobodyhere/x", "~", ".", "/", "/dev/null", "a\0b", "part:", "part:nothing", "objects:", "{", "{a.b[0]!r:>{x}}"),
    *("os:system", ":", "a:", ":b", "..:x", "fedsa:run", "collections.abc:Mapping", "json:JSONDecoder", "(", "*"),
    *(0, 1, 2, -1, 7, 10**6, 2**31, 2**63, 10**30, 10**400, 10**5000, -(10**5000)),
    *(0.0, 0.5, 1e-300, 1e30, 1e308, -1.5, float("inf"), float("-inf"), float("nan")),
    *(True, False, datetime.date(2020, 1, 1), datetime.time(1, 2), datetime.datetime(2020, 1, 1)),
    *(
        [],
        [""],
        ["lora"],
        ["text", "text"],
        ["x"] * 3000,
        [1, "a", 2.5, None],
        [[]],
        [{}],
        [10**5000],
        deep(20),
        deep(60),
    ),
    *({}, {"a": 1}, {"": ""}, {"x" * 5000: 1}, {"\x1b[2J": 1}, {"a.b": {"c": []}}, {"clients": -1}, {"kind": []}),
    *(deep(20, table=True), deep(60, table=True), deep(3000, table=True), {str(i): i for i in range(3000)}),
]
"""What is put where something else belongs."""


def fields(model: type[BaseModel] = Recipe, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the place of every setting and section of a recipe, with its type."""
    for name, field in model.model_fields.items():
        yield (*above, name), field.annotation
        for section in (field.annotation, *get_args(field.annotation)):  # where it comes in kinds, of each
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from fields(section, (*above, name))


FIELDS = list(fields())


def mutated(data: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return a copy of a recipe with one to four mutations; the same for the same seed."""
    rng = random.Random(seed)
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice([_wrong_value] * 6 + [_other_choice] * 3 + [_unknown_key, _lost, _swapped, _many_keys])(data, rng)
    return data


def _put(data: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    *above, last = place
    table = data
    for name in above:
        if not isinstance(table.get(name), dict):
            table[name] = {}
        table = table[name]
    table[last] = value


def _value(rng: random.Random) -> Any:
    return copy.copy(rng.choice(VALUES))


def _wrong_value(data: dict[str, Any], rng: random.Random) -> None:
    _put(data, rng.choice(FIELDS)[0], _value(rng))


def _other_choice(data: dict[str, Any], rng: random.Random) -> None:
    """Another of a setting's known words, or their list: what goes together is another question."""
    place, annotation = rng.choice([each for each in FIELDS if _words(each[1])])
    value = rng.choice(_words(annotation))
    _put(data, place, rng.choice([value, value, [value], {value: value}, value.upper()]))


def _words(annotation: Any) -> tuple[str, ...]:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


def _unknown_key(data: dict[str, Any], rng: random.Random) -> None:
    sections = [(), *(place for place, annotation in FIELDS if isinstance(annotation, type))]
    name = rng.choice([*VALUES[:12], "rank", "Rounds", "path", "kind", "é" * 300, "__class__", "model_config", "1"])
    _put(data, (*rng.choice(sections), str(name)), _value(rng))


def _lost(data: dict[str, Any], rng: random.Random) -> None:
    table = rng.choice([data, *(value for value in data.values() if isinstance(value, dict))])
    if table:
        del table[rng.choice(sorted(table))]


def _swapped(data: dict[str, Any], rng: random.Random) -> None:
    one, other = rng.choice(sorted(data, key=str)), rng.choice(sorted(data, key=str))
    data[one], data[other] = data[other], data[one]


def _many_keys(data: dict[str, Any], rng: random.Random) -> None:
    _put(data, rng.choice(FIELDS)[0], {f"{rng.random()}": _value(rng) for _ in range(200)})
