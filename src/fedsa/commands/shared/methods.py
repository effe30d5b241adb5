"""What methods declare, as values that JSON can hold: tables and docs/algorithms.md are made of these."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, built_in_names, find_algorithm, origin
from fedsa.algorithms.base import Algorithm
from fedsa.commands.shared.settings import type_name
from fedsa.errors import UserError
from fedsa.plugins import raised
from fedsa.steps import SecureSum, Staleness
from fedsa.steps.base import Step
from fedsa.steps.int8 import Int8
from fedsa.steps.median import Median
from fedsa.steps.norm_bound import NormBound
from fedsa.steps.poison_score import PoisonScore
from fedsa.steps.server_optimizer import optimizer_refusal
from fedsa.steps.trimmed_mean import TrimmedMean
from fedsa.types import Factor, Key, Side

__all__ = ["ROUNDS", "STEPS_ON_SINGLE_UPDATES", "Entry", "describe", "describe_all"]

ROUNDS = range(1, 13)
"""The rounds whose plans are looked at."""

STEPS_ON_SINGLE_UPDATES: tuple[Step, ...] = (
    *(Median(), TrimmedMean(0.2), NormBound(1.0), PoisonScore(1.0, leave_out=True)),
    *(Staleness(0.5, 0), Int8()),
)
"""One of each kind of step for which the server must see single updates."""

Entry = Mapping[str, Any]


def describe_all(*, only_built_in: bool = False) -> list[dict[str, Any]]:
    """The description of every method, as `describe` gives it; for one that cannot be used, its name and ``broken``."""
    entries = []
    for name in built_in_names() if only_built_in else algorithm_names():
        try:
            entries.append(describe(name))
        except UserError as error:
            entries.append({"name": name, "broken": str(error)})
    return entries


def describe(name: str) -> dict[str, Any]:
    """The declarations of a method, as values that JSON can hold.

    Raises:
        UserError: there is none of that name, or it cannot be used.
    """
    cls = find_algorithm(name)
    try:
        algorithm = cls()
        return {
            "name": name,
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "package": cls.__module__.partition(".")[0] if ":" in name else origin(name),
            "summary": _summary(cls),
            "description": _sections(inspect.getdoc(cls) or "")[0],
            "source": cls.source,
            "exact": cls.exact,
            "additive": cls.is_additive(),
            "export": cls.export,
            "folds": cls.folds,
            "adapters": list(cls.adapters),
            "gated": cls.gated,
            "pools_rows": cls.pools_rows,
            "references": algorithm.references,
            "server_optimizer": _answer(optimizer_refusal(algorithm)),
            "robust_mean": _answer(Median().refusal(algorithm)),
            "overlap": _answer(Staleness(0.5, 0).refusal(algorithm)),
            "secure_aggregation": _answer(SecureSum().refusal(algorithm)),
            "head": _head(cls),
            "options": _options(cls, algorithm),
            "variants": {variant: _variant(algorithm, variant) for variant in VARIANTS},
        }
    except Exception as error:  # a plug-in's code: anything may come
        raise UserError(f"algorithm {name!r} cannot be described: {raised(error)}") from error


def _answer(refusal: str | None) -> dict[str, Any]:
    return {"ok": refusal is None, "reason": refusal}


def _head(cls: type[Algorithm]) -> dict[str, Any]:
    """Whether the head is sent by default, or leaves by another tensor, and whether ``share_head`` can change this."""
    method = cls()
    sent = method.share_head
    leaves = any(method.leaves(Key("classifier.weight", Factor.HEAD), round) for round in ROUNDS)
    try:
        cls(share_head=not sent)
    except ValueError:
        return {"sent": sent, "leaves": leaves, "optional": False}
    return {"sent": sent, "leaves": leaves, "optional": True}


def _variant(algorithm: Algorithm, variant: str) -> dict[str, Any]:
    """Why a variant is refused, with one rank and with mixed ranks; and the roles of its tensors."""
    refusal = algorithm.refusal(variant)
    if refusal is not None:
        return {"ok": False, "reason": refusal}
    keys = list(algorithm.whole({key: torch.zeros(1, 1) for key in _keys(algorithm, variant)}))
    plans = {key: [algorithm.plan(key, round) for round in ROUNDS] for key in keys}

    def named(which: Any) -> list[str]:
        return [_name(algorithm, key) for key in keys if which(key)]

    def stays_itself(key: Key) -> bool:
        return any(plan.trained for plan in plans[key]) and not any(plan.sent for plan in plans[key])

    roles = {
        "sent": named(lambda key: any(plan.sent for plan in plans[key])),
        "kept": named(lambda key: stays_itself(key) and not any(algorithm.leaves(key, round) for round in ROUNDS)),
        "leaves_by_another": named(
            lambda key: stays_itself(key) and any(algorithm.leaves(key, round) for round in ROUNDS)
        ),
        "frozen": named(
            lambda key: (
                algorithm.in_model(key)
                and not any(plan.trained for plan in plans[key])
                and key.factor.side is not Side.BASE
            )
        ),
        "received": named(lambda key: any(plan.received for plan in plans[key])),
    }
    by_round = [
        {
            "round": round,
            "trained": named(lambda key, at=place: plans[key][at].trained),
            "sent": named(lambda key, at=place: plans[key][at].sent),
        }
        for place, round in enumerate(ROUNDS)
    ]
    changes = any({**entry, "round": 1} != by_round[0] for entry in by_round)
    return {
        "ok": True,
        "reason": None,
        **roles,
        "not_in_every_round": named(lambda key: len(set(plans[key])) > 1),
        "rounds": by_round if changes else [],
        "sides_sent": _sides(algorithm, {key: own for key, own in plans.items() if key.factor is not Factor.NOTE}),
        "mixed_ranks": _answer(algorithm.refusal(variant, mixed_ranks=True)),
    }


def _keys(algorithm: Algorithm, variant: str) -> Iterator[Key]:
    factors = VARIANTS[variant].factors
    for adapter in algorithm.adapters:
        yield from (Key("layer", factor, adapter) for factor in factors if factor is not Factor.HEAD)
    yield from (Key("head", factor) for factor in factors if factor is Factor.HEAD)
    if algorithm.gated:
        yield Key("layer", Factor.GATE)
    if algorithm.folds:
        yield Key("layer", Factor.DELTA)


def _name(algorithm: Algorithm, key: Key) -> str:
    return key.factor.value if key.adapter == algorithm.adapters[0] else f"{key.adapter}/{key.factor.value}"


def _sides(algorithm: Algorithm, plans: Mapping[Key, Sequence[Any]]) -> list[str]:
    """The sides of the update that leave the client; with ~ if not in every round."""
    sides = []
    for side in (Side.A, Side.B, Side.WHOLE):
        sent = [[plan.sent for plan in own] for key, own in plans.items() if key.factor.side is side]
        if any(any(own) for own in sent):
            sides.append(side.value + ("" if any(all(own) for own in sent) else "~"))
    return sides


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """A docstring without its section Attributes, and the text of that section for each attribute."""
    before, _, rest = text.partition("\nAttributes:\n")
    body, _, after = rest.partition("\n\n")
    attributes: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(body).splitlines():
        match = re.fullmatch(r"(\w+): (.*)", line)
        if match:
            name = match[1]
            attributes[name] = match[2]
        elif name:
            attributes[name] += f" {line.strip()}"
    return "\n\n".join(part.strip() for part in (before, after) if part.strip()), attributes


def _summary(cls: type[Algorithm]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _options(cls: type[Algorithm], algorithm: Algorithm) -> list[dict[str, Any]]:
    about: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        about |= _sections(inspect.cleandoc(each.__doc__ or ""))[1]
    hints = get_type_hints(cls, include_extras=True)
    return [
        {
            "name": field.name,
            "type": _type(hints[field.name]),
            "default": getattr(algorithm, field.name),
            "description": about.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    ]


def _type(hint: Any) -> str:
    """A type in words; for an annotated type with its bounds."""
    if get_origin(hint) is not Annotated:
        return type_name(hint)
    plain, *constraints = get_args(hint)
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    inner = [each for one in constraints for each in getattr(one, "metadata", [one])]
    bounds = [f"{sign} {getattr(one, name)}" for one in inner for name, sign in signs.items() if hasattr(one, name)]
    return ", ".join([type_name(plain), *bounds])
