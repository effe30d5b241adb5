"""The contract of an algorithm: who trains, sends and receives which tensor, and how updates are put together.

An algorithm is one file in this folder: a frozen dataclass whose fields are its options. All of it is pure: state goes
in, state comes out. What it does not say is FedAvg: the weighted mean of what clients sent.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import TypeAdapter, ValidationError

from fedsa.errors import ConfigError, Mistake, UserError, near
from fedsa.types import Key, Payload, State, Update

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FROZEN",
    "LOCAL",
    "SHARED",
    "Algorithm",
    "Plan",
    "ServerState",
    "algorithm_names",
    "check_algorithm",
    "find_algorithm",
    "make_algorithm",
    "weighted_mean",
]


class Plan(NamedTuple):
    """What happens to one tensor in one round.

    Attributes:
        trained: the client's optimiser changes it.
        sent: the client sends it to the server after training.
        received: the server's value replaces the client's before training, whenever the server's is newer.
    """

    trained: bool
    sent: bool
    received: bool


SHARED = Plan(trained=True, sent=True, received=True)
LOCAL = Plan(trained=True, sent=False, received=False)
FROZEN = Plan(trained=False, sent=False, received=False)


@dataclass(frozen=True)
class ServerState:
    """All that the server knows about tensors.

    Attributes:
        tensors: the server's value of every adapter tensor; of those that are never sent, the initial value.
        versions: the round that last gave a tensor a new value; 0 is the initial value, which every client holds.
    """

    tensors: State
    versions: Mapping[Key, int]


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """A federated method. Fields are its options.

    Attributes:
        share_head: send and average the classification head too; each method's default is its paper's.
    """

    share_head: bool = False

    source: ClassVar[str]
    """The paper, e.g. ``arXiv:2410.01463``."""
    additive: ClassVar[bool] = True
    """The server needs only Σ wᵢxᵢ of what clients send, so sums can be streamed or masked."""
    export: ClassVar[str] = "adapter"
    """What a client's result is: a plain ``adapter`` (all that exists so far)."""

    @abstractmethod
    def plan(self, key: Key, round: int) -> Plan:
        """Return what happens to the tensor ``key`` in ``round`` (counted from 1). Depends on nothing else."""

    def init(self, initial: State) -> ServerState:
        """Return the server's first state, made of the initial tensors that every client starts from."""
        return ServerState(dict(initial), dict.fromkeys(initial, 0))

    def broadcast(self, state: ServerState, round: int, held: int) -> Payload:
        """Return what a client needs before it trains in ``round``.

        Args:
            state: the server's state.
            round: the round that begins.
            held: the newest version that the client has taken in; 0 is the initial state.
        """
        newer = {
            key: tensor
            for key, tensor in state.tensors.items()
            if state.versions[key] > held and self.plan(key, round).received
        }
        return Payload(round, newer)

    def absorb(self, tensors: State, payload: Payload) -> State:
        """Return a client's tensors after it took in what the server sent."""
        return {**tensors, **payload.tensors}

    def aggregate(
        self, state: ServerState, updates: Sequence[Update], weights: Sequence[int], round: int
    ) -> ServerState:
        """Return the server's state after a round.

        Args:
            state: the state before.
            updates: in canonical client order; none at all leaves every value as it was.
            weights: one count > 0 per update; only their ratios matter.
            round: the round that ends.
        """
        sent = [key for key in state.tensors if self.plan(key, round).sent]
        tensors = dict(state.tensors)
        if updates:
            tensors |= {key: weighted_mean([update.tensors[key] for update in updates], weights) for key in sent}
        # Clients changed their own copy of what they sent: it is newer here even when nobody's update arrived.
        return ServerState(tensors, {**state.versions, **dict.fromkeys(sent, round)})

    def head_plan(self) -> Plan:
        """Return the plan of the classification head, as ``share_head`` says."""
        return SHARED if self.share_head else LOCAL


def weighted_mean(tensors: Iterable[Tensor], weights: Sequence[int]) -> Tensor:
    """Return Σ wᵢxᵢ / Σ wᵢ, summed in the order given.

    Args:
        tensors: of one shape and floating dtype.
        weights: one count > 0 per tensor. As whole numbers their ratios are exact: a common factor changes no bit, and
            a single tensor comes back as it is.

    Returns:
        A new tensor of the same shape and dtype.
    """
    whole = sum(weights)
    first, *rest = (tensor * (weight / whole) for tensor, weight in zip(tensors, weights, strict=True))
    for term in rest:
        first += term
    return first


def algorithm_names() -> list[str]:
    """Return the names of the algorithms in this folder: their file names, sorted."""
    import fedsa.algorithms as folder

    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__) if module.name != "base")


def find_algorithm(name: str) -> type[Algorithm]:
    """Return the algorithm of a name.

    Args:
        name: a file name in this folder, or ``package.module:Class`` for an algorithm that lives elsewhere.

    Raises:
        UserError: there is none of that name, or it is no Algorithm.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise UserError(f"algorithm {name!r} cannot be imported: {error}") from None
        if not (inspect.isclass(found) and issubclass(found, Algorithm)) or inspect.isabstract(found):
            raise UserError(
                f"{name!r} is no algorithm: it must be a class that derives from fedsa.algorithms.base.Algorithm"
            )
        return found
    if name not in algorithm_names():
        raise UserError(f"unknown algorithm {name!r}; {near(name, algorithm_names())}")
    module = importlib.import_module(f"fedsa.algorithms.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Algorithm) and value.__module__ == module.__name__
    )
    return found


def make_algorithm(name: str, options: Mapping[str, Any], share_head: bool | None = None) -> Algorithm:
    """Return the algorithm of a name with its options, each checked against the field's type.

    Args:
        name: as for `find_algorithm`.
        options: by field name.
        share_head: None is the method's own default.

    Raises:
        UserError: no such algorithm.
        ConfigError: options that it does not have, or of a wrong type or value.
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
    own = known - {"share_head"}
    return f"{name} has no such option; {near(option, own) if own else 'it has none'}"


def check_algorithm(data: Mapping[str, Any]) -> list[Mistake]:
    """Return the mistakes in a recipe's raw data about its algorithm and the algorithm's options."""
    name = data.get("algorithm", "fedsa")
    options, share_head = data.get("algorithm_options", {}), data.get("share_head")
    if not (isinstance(name, str) and isinstance(options, Mapping) and isinstance(share_head, bool | None)):
        return []  # a wrong type is the recipe's own mistake to report
    try:
        make_algorithm(name, options, share_head)
    except ConfigError as error:
        return list(error.mistakes)
    except UserError as error:
        return [Mistake("algorithm", str(error))]
    return []
