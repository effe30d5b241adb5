"""What a server and its sites must have in common, as one value that can be written down, compared and hashed.

A machine's own choices are not in it: where model and rows lie, the device, the precision, the attention kernel, how
many clients go through the model in one pass. It has shapes and hashes, but no tensor's values and nothing of any row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.errors import ConfigError, Mistake, UserError
from fedsa.messages import digest_of
from fedsa.recipe import OBJECTS, Recipe, Scope, is_resolved, mistakes_of, parse_recipe
from fedsa.steps import CHECKS, Chain, make_chain
from fedsa.store.seals import sealed_table, unsealed_table
from fedsa.texts.json_text import parsed_json
from fedsa.types import Key, Side, State

__all__ = ["AGREEMENT", "AdapterSpec", "Agreement", "TensorSpec", "hash_of_state", "over"]

AGREEMENT = "agreement.json"
"""The name of the file in the folders of runs, servers and sites."""


_MOST_NUMBERS = 2**36
"""In a tensor; a stranger's file could ask for any memory."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@final
class TensorSpec(_Part):
    """A tensor without its values.

    Attributes:
        shape: its sizes.
        dtype: torch's name of its type.
    """

    shape: tuple[Annotated[int, Field(ge=0, le=2**31)], ...]
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"

    @field_validator("shape")
    @classmethod
    def _can_be_held(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"a tensor of more than {_MOST_NUMBERS:,} numbers")
        return shape


@final
class AdapterSpec(_Part):
    """The adapter that all clients train, without its values.

    Attributes:
        tensors: every tensor of the adapter and the head, of the full rank, by ``str(key)``; in the model's order.
        scaling: s in ΔW = s·B·A of each module that has one; the method's own scale is part of it.
        config: PEFT's config as JSON, without the base's place and PEFT's version.
        base: hash of the base model's weights as they are loaded; empty: they have 4 or 8 bits, and are not compared.
        initial: hash of the tensors that every client starts from.
    """

    tensors: dict[str, TensorSpec]
    scaling: dict[str, float]
    config: dict[str, Any]
    base: str
    initial: str

    @field_validator("tensors")
    @classmethod
    def _have_names_of_keys(cls, tensors: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        for name in tensors:
            Key.parse(name)
        return tensors

    def empty(self) -> State:
        """The tensors without values, on the device ``meta``; but zeros for what is added to the base's weights."""
        tensors: dict[Key, torch.Tensor] = {}
        for name, spec in self.tensors.items():
            key = Key.parse(name)
            device = "cpu" if key.factor.side is Side.BASE else "meta"
            tensors[key] = torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
        return tensors


@final
class Agreement(_Part):
    """What server and sites must have in common.

    Attributes:
        settings: the agreed settings of the resolved recipe, defaults written out.
        labels: the names of the classes, in order of their number; empty where the task has none, or names them itself.
        metric: the task's, by which the round is chosen.
        adapter: the adapter, without values.
        ranks: client id to its rank, of the clients whose rank is less than the adapter's.
    """

    settings: dict[str, Any]
    labels: tuple[str, ...]
    metric: str
    adapter: AdapterSpec
    ranks: dict[str, Annotated[int, Field(gt=0)]]

    @cached_property
    def recipe(self) -> Recipe:
        """The agreed settings as a recipe; a machine's own settings have their defaults, and paths lead nowhere.

        Raises:
            ConfigError: they are not the settings of a recipe.
        """
        return parse_recipe(over(_NOWHERE, self.settings), source="the agreement", checks=CHECKS)

    @cached_property
    def algorithm(self) -> Algorithm:
        """The method with its options."""
        return make_algorithm(self.recipe.algorithm, self.recipe.algorithm_options, self.recipe.share_head)

    @cached_property
    def steps(self) -> Chain:
        """What happens to updates between client and server."""
        return make_chain(self.recipe.steps)

    @property
    def needs_initial_values(self) -> bool:
        """The server computes with the values of the initial tensors: shapes are not enough for it."""
        # Where ranks differ, a mean has the initial values in the rows and columns that no update has.
        return self.algorithm.needs_initial_values or self.steps.needs_values or bool(self.ranks)

    def recipe_with(self, own: Mapping[str, Any]) -> Recipe:
        """The agreed settings and a machine's own ones as a recipe.

        Args:
            own: as in a recipe: where this machine has the model (``{"model": {"path": ...}}``) and its rows, what it
                computes with. An agreed setting may be repeated, but not changed.

        Raises:
            ConfigError: with every mistake.
        """
        agreed, given = _flat(self.settings), _flat(own)
        changed = [
            Mistake(name, f"is agreed upon as {agreed[name]!r} (got {value!r}): leave it out")
            for name, value in given.items()
            if name in agreed and agreed[name] != value
        ]
        if changed:
            raise ConfigError(changed, "this machine's settings")
        data = over(own, self.settings)
        return parse_recipe(data, source="the agreement with this machine's settings", checks=CHECKS)

    def first_state(self, initial: State | None = None) -> ServerState:
        """The server's state before the first round.

        Args:
            initial: the tensors that every client starts from; None: shapes are enough for the method.

        Raises:
            UserError: the initial tensors are needed and not given, or are not those that were agreed upon.
        """
        if initial is None and self.needs_initial_values:
            raise UserError(
                f"algorithm = {self.recipe.algorithm!r} with these settings computes with the initial tensors on the "
                "server: a site must send them once"
            )
        if initial is not None and hash_of_state(initial) != self.adapter.initial:
            raise UserError("the initial tensors are not those that were agreed upon")
        return self.algorithm.init({**self.adapter.empty(), **(initial or {})}, self.adapter.scaling)

    def differences(self, other: Agreement) -> tuple[str, ...]:
        """The names of what differs in another agreement: settings by their dotted keys, then the other parts."""
        one, two = (_flat(each.settings) for each in (self, other))
        settings = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
        parts = [name for name in ("labels", "metric", "ranks") if getattr(self, name) != getattr(other, name)]
        mine, theirs = self.adapter, other.adapter
        adapter = [name for name in AdapterSpec.model_fields if getattr(mine, name) != getattr(theirs, name)]
        if not (mine.base and theirs.base) and "base" in adapter:
            adapter.remove("base")
        configs = [name for name in mine.config | theirs.config if mine.config.get(name) != theirs.config.get(name)]
        named = [f"config.{each}" for each in configs] + [name for name in adapter if name != "config"]
        return (*settings, *parts, *(f"adapter.{name}" for name in named))

    def settings_changed_in(self, recipe: Recipe) -> tuple[str, ...]:
        """The dotted keys of agreed settings that differ in a recipe. Settings that a run chooses are left out."""
        agreed, given = _flat(self.settings), _flat(recipe.of_scope(Scope.AGREED))
        chosen = {name for name, field, _ in recipe.entries() if is_resolved(field)}
        names = sorted((agreed.keys() | given.keys()) - chosen)
        longest = "task.max_length"  # the model may take less than the recipe asks for
        if longest in agreed and longest in given:
            given[longest] = min(given[longest], agreed[longest])
        return tuple(name for name in names if agreed.get(name) != given.get(name))

    @property
    def setting_names(self) -> frozenset[str]:
        """The dotted keys of the agreed settings."""
        return frozenset(_flat(self.settings))

    def fingerprint(self) -> str:
        """A hash of all of it: equal agreements have equal ones, on every machine."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The agreement as JSON; `parse` reads it."""
        return sealed_table({"format": _FORMAT, **self.model_dump(mode="json")})

    @classmethod
    def parse(cls, text: str, source: str = "the agreement") -> Agreement:
        """The agreement that a text holds.

        Args:
            text: as `text` gives it.
            source: the name of its place, for messages.

        Raises:
            UserError: the text is no agreement, or one of another version of fedsa. Every mistake is named.
        """
        try:
            data = parsed_json(text)
        except ValueError:
            raise UserError(f"{source} is not JSON: take the file as it was written") from None
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise UserError(
                f"{source} is not an agreement of format {_FORMAT}: write it again with this version of fedsa"
            )
        try:
            data = unsealed_table(text, older=("format", *cls.model_fields))
        except ValueError as error:
            raise UserError(f"{source} is damaged ({error}): take the file as it was written") from None
        del data["format"]
        try:
            agreement = cls.model_validate(data)
            agreement.fingerprint()
        except ValidationError as error:
            raise ConfigError(mistakes_of(error, cls), source) from None
        except ValueError:
            raise UserError(f"{source} is nested too deeply: take the file as it was written") from None
        return agreement

    @classmethod
    def read(cls, path: str | Path) -> Agreement:
        """The agreement that a file holds.

        Raises:
            UserError: the file cannot be read, or holds no agreement.
        """
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the agreement {path}: {error}") from None


_FORMAT = 1

_NOWHERE = {"model": {"path": OBJECTS}, "data": {"path": OBJECTS, "partition": {"kind": "files"}}}
"""Paths of a machine that has neither the model nor rows."""


def hash_of_state(state: State) -> str:
    """A hash of tensors, with their names, shapes and types. What the server adds to the base is left out."""
    return digest_of("", {str(key): tensor for key, tensor in state.items() if key.factor.side is not Side.BASE})


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in tables, those above in place of those below."""
    result = dict(below)
    for name, value in above.items():
        own = result.get(name)
        result[name] = over(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return result


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys."""

    def each(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in table.items():
            if isinstance(value, Mapping):
                yield from each(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(each(settings, ""))
