"""Federated methods, one file each, and their look-up by name. What a method is: see `fedsa.algorithms.base`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms.base import Algorithm
from fedsa.errors import ConfigError, Mistake, UserError, near
from fedsa.plugins import declared, load_class, package_of
from fedsa.types import Factor, Key

__all__ = [
    "GROUP",
    "algorithm_in",
    "algorithm_names",
    "built_in_names",
    "check_algorithm",
    "find_algorithm",
    "make_algorithm",
    "origin",
]

GROUP = "fedsa.algorithms"
"""The entry points under which installed packages declare algorithms."""


def built_in_names() -> list[str]:
    """The names of the algorithms in this folder: their file names, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def algorithm_names() -> list[str]:
    """The names of all algorithms in this folder and in installed packages, sorted. None of them is imported."""
    return sorted({*built_in_names(), *declared(GROUP)})


def origin(name: str) -> str:
    """The package that has the algorithm ``name`` of `algorithm_names`.

    Raises:
        UserError: several packages declare the name.
    """
    return "fedsa" if name in built_in_names() else package_of(_entry_point(name))


def find_algorithm(name: str) -> type[Algorithm]:
    """The class of the algorithm ``name``.

    Args:
        name: a file name in this folder; a name that an installed package declares as an entry point of the group
            ``fedsa.algorithms``; or ``package.module:Class`` for a class that is installed or in the current folder.

    Raises:
        UserError: there is none of that name, or it cannot be imported, or it is no Algorithm.
    """
    if ":" in name:
        return _complete(name, load_class("algorithm", name, Algorithm))
    if name in built_in_names():
        module = importlib.import_module(f"fedsa.algorithms.{name}")
        (found,) = (
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, Algorithm) and value.__module__ == module.__name__
        )
        return found
    if name not in declared(GROUP):
        raise UserError(f"unknown algorithm {name!r}; {near(name, algorithm_names())}")
    entry = _entry_point(name)
    try:
        return _complete(name, load_class("algorithm", f"{entry.module}:{entry.attr}", Algorithm))
    except UserError as error:
        raise UserError(f"algorithm {name!r} of the package {package_of(entry)} is broken: {error}") from error


def _entry_point(name: str) -> EntryPoint:
    entries = declared(GROUP)[name]
    if len(entries) > 1:
        packages = ", ".join(f"{package_of(entry)} ({entry.value})" for entry in entries)
        raise UserError(f"several packages declare an algorithm {name!r}: {packages}; use one as package.module:Class")
    return entries[0]


def _complete(name: str, found: type[Algorithm]) -> type[Algorithm]:
    """Refuse a class that has no ``source``, or an option without a default."""
    if not isinstance(getattr(found, "source", None), str):
        raise UserError(
            f"{name!r} does not name its paper: add source: ClassVar[str] to the class, '-' if there is none"
        )
    required = [field.name for field in dataclasses.fields(found) if _is_required(field)]
    if required:
        raise UserError(f"{name!r} has options without a default: {', '.join(required)}; give each one a default")
    return found


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def make_algorithm(name: str, options: Mapping[str, Any], share_head: bool | None = None) -> Algorithm:
    """The algorithm ``name`` with its options, each checked against the field's type.

    Args:
        name: as for `find_algorithm`.
        options: values by field name.
        share_head: None is the method's own default.

    Raises:
        UserError: there is no such algorithm.
        ConfigError: options that the algorithm does not have, or of a wrong type or value.
    """
    cls = find_algorithm(name)
    given = dict(options) | ({} if share_head is None else {"share_head": share_head})
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = [
        Mistake(f"algorithm_options.{option}", _unknown_option(name, option, known))
        for option in options
        if option not in known or option == "share_head"
    ]
    if unknown:
        raise ConfigError(unknown)
    try:
        return TypeAdapter(cls).validate_python(given)
    except ValidationError as error:
        raise ConfigError(
            [
                Mistake(
                    ".".join(["algorithm_options", *map(str, entry["loc"])]) if entry["loc"] else "algorithm",
                    str(entry["ctx"]["error"]) if entry["type"] == "value_error" else entry["msg"],
                )
                for entry in error.errors(include_url=False)
            ]
        ) from None


def _unknown_option(name: str, option: str, known: set[str]) -> str:
    if option == "share_head":
        return "give share_head at the top level of the recipe"
    return f"{name} has no such option; {near(option, known - {'share_head'})}"


def algorithm_in(data: Mapping[str, Any]) -> Algorithm | None:
    """The algorithm in a recipe's raw data; None if a type is wrong, which `fedsa.recipe` reports.

    Raises:
        UserError: as `make_algorithm`.
    """
    name, options, share_head = (
        data.get("algorithm", "fedsa"),
        data.get("algorithm_options", {}),
        data.get("share_head"),
    )
    if not (isinstance(name, str) and isinstance(options, Mapping) and isinstance(share_head, bool | None)):
        return None
    return make_algorithm(name, options, share_head)


def check_algorithm(data: Mapping[str, Any]) -> list[Mistake]:
    """The mistakes in a recipe's raw data about its algorithm and the algorithm's options."""
    name = data.get("algorithm", "fedsa")
    try:
        algorithm = algorithm_in(data)
    except ConfigError as error:
        return list(error.mistakes)
    except UserError as error:
        return [Mistake("algorithm", str(error))]
    if algorithm is None:
        return []
    return [
        *_adapter_mistakes(name, algorithm, data),
        *_start_mistakes(name, algorithm, data),
    ]


def _adapter_mistakes(name: str, algorithm: Algorithm, data: Mapping[str, Any]) -> list[Mistake]:
    adapter = data.get("adapter", {})
    variant = adapter.get("variant", "lora") if isinstance(adapter, Mapping) else None
    if not isinstance(variant, str) or variant not in VARIANTS:
        return []
    reason = algorithm.refusal(variant, mixed_ranks=bool(adapter.get("ranks")))
    return [Mistake("algorithm", f"{name} does not go with adapter.variant = {variant!r}: {reason}")] if reason else []


def _start_mistakes(name: str, algorithm: Algorithm, data: Mapping[str, Any]) -> list[Mistake]:
    adapter = data.get("adapter", {})
    if not isinstance(adapter, Mapping) or adapter.get("own_initial_a") is not True:
        return []
    variant = adapter.get("variant", "lora")
    known = isinstance(variant, str) and variant in VARIANTS
    reason = _own_start_refusal(algorithm, variant) if known else None
    return [Mistake("adapter.own_initial_a", f"does not go with {name}: {reason}")] if reason else []


def _own_start_refusal(algorithm: Algorithm, variant: str) -> str | None:
    """Say why clients cannot draw initial A's of their own; None: they can."""
    if VARIANTS[variant].fixed_start:
        return f"{variant} has no A to draw: {VARIANTS[variant].fixed_start}"
    if not any(algorithm.keeps(Key("layer", Factor.A, adapter)) for adapter in algorithm.adapters):
        return "no A stays at the client: sent, received or frozen, it is one for all (use local or alora)"
    return None
