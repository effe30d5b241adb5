"""The vocabulary that every room shares: keys, factors, states and what travels between server and clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CLASS_NUMBER",
    "FRACTIONS",
    "FROZEN",
    "LOCAL",
    "NO_CLASS",
    "RECEIVED",
    "SHARED",
    "SPLITS",
    "Factor",
    "Gating",
    "Key",
    "Moment",
    "Payload",
    "Payloads",
    "Plan",
    "Results",
    "RoundRecord",
    "Side",
    "SplitName",
    "State",
    "Update",
    "gate_shape",
    "total_bytes",
    "total_elements",
]

CLASS_NUMBER = "__class_number__"
"""The column of shared rows that holds each row's class number."""


NO_CLASS = "rows"
"""What all rows are called where a task has no classes."""

FRACTIONS = frozenset({"accuracy", "accuracy_norm", "exact_match", "f1", "precision", "recall"})
"""The metrics that are parts of one, and are shown in per cent."""


class Side(StrEnum):
    """Which side of the weight update a factor is on.

    A is next to the layer's input (LoRA's A, VeRA's λ_d), B next to its output (LoRA's B, DoRA's magnitude, VeRA's
    λ_b), and HEAD is what is trained in full on top of the model. BASE is what the server adds to the frozen weights.
    WHOLE is what has no sides (IA³'s one vector, LoRA-XS's R, the gate of several adapters).
    """

    A = "A"
    B = "B"
    HEAD = "head"
    BASE = "base"
    WHOLE = "whole"


class Factor(StrEnum):
    """The role of one trained tensor in its adapter.

    MAGNITUDE is DoRA's: the length of each row of the weight. LoHa's ΔW is the elementwise product of two low-rank
    ones, HADAMARD_B1·HADAMARD_A1 (PEFT's hada_w1_a, hada_w1_b) and HADAMARD_B2·HADAMARD_A2. SCALE is IA³'s vector.
    MIDDLE is LoRA-XS's R between frozen B and A. GATE weighs several adapters of one layer (`Gating`). NOTE is no part
    of an adapter: a number of a step that travels beside the tensors, and is named after the step.
    """

    A = "A"
    B = "B"
    MAGNITUDE = "magnitude"
    LAMBDA_D = "lambda_d"
    LAMBDA_B = "lambda_b"
    HADAMARD_A1 = "hadamard_a1"
    HADAMARD_A2 = "hadamard_a2"
    HADAMARD_B1 = "hadamard_b1"
    HADAMARD_B2 = "hadamard_b2"
    SCALE = "scale"
    MIDDLE = "R"
    GATE = "gate"
    HEAD = "head"
    DELTA = "delta"
    NOTE = "note"

    @property
    def side(self) -> Side:
        """The side of the weight update that this factor is on."""
        return _SIDES[self]

    def shape(self, *, out: int, width: int, rank: int) -> tuple[int, ...]:
        """The shape of this factor in a layer with weights of shape (out, width), without axes of length 1.

        >>> Factor.B.shape(out=4, width=3, rank=2), Factor.MAGNITUDE.shape(out=4, width=3, rank=2)
        ((4, 2), (4,))
        """
        sizes = {"out": out, "in": width, "rank": rank}
        return tuple(sizes[name] for name in _SHAPES[self])


_SHAPES = {
    Factor.A: ("rank", "in"),
    Factor.LAMBDA_D: ("rank",),
    Factor.HADAMARD_A1: ("rank", "in"),
    Factor.HADAMARD_A2: ("rank", "in"),
    Factor.B: ("out", "rank"),
    Factor.MAGNITUDE: ("out",),
    Factor.LAMBDA_B: ("out",),
    Factor.HADAMARD_B1: ("out", "rank"),
    Factor.HADAMARD_B2: ("out", "rank"),
    Factor.SCALE: ("out",),
    Factor.MIDDLE: ("rank", "rank"),
    Factor.DELTA: ("out", "in"),
}
"""Each factor's sizes, but for those that do not follow from the layer alone (a gate, a head)."""

Gating: TypeAlias = Literal["token", "layer", "free"]
"""What a layer's gate gives its adapters: shares of each token, softmax(G·x) of its input x; shares of all tokens,
softmax(g), equal at the start; or free numbers g, 1 at the start. An adapter's update is multiplied by what it gets."""


def gate_shape(gating: Gating, adapters: int, width: int) -> tuple[int, ...]:
    """The shape of ``Factor.GATE`` in a layer whose input has ``width`` features."""
    return (adapters, width) if gating == "token" else (adapters,)


_SIDES = {
    Factor.A: Side.A,
    Factor.LAMBDA_D: Side.A,
    Factor.HADAMARD_A1: Side.A,
    Factor.HADAMARD_A2: Side.A,
    Factor.B: Side.B,
    Factor.MAGNITUDE: Side.B,
    Factor.LAMBDA_B: Side.B,
    Factor.HADAMARD_B1: Side.B,
    Factor.HADAMARD_B2: Side.B,
    Factor.SCALE: Side.WHOLE,
    Factor.MIDDLE: Side.WHOLE,
    Factor.GATE: Side.WHOLE,
    Factor.HEAD: Side.HEAD,
    Factor.DELTA: Side.BASE,
    Factor.NOTE: Side.WHOLE,
}


class Key(NamedTuple):
    """The name of one tensor of a client's adapter; ordered and hashable.

    Attributes:
        module: the layer it adapts, as the base model names it; for the head, its parameter's name.
        factor: its role.
        adapter: the PEFT adapter's name.
    """

    module: str
    factor: Factor
    adapter: str = "default"

    def __str__(self) -> str:
        return f"{self.module}:{self.factor.value}:{self.adapter}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Return the key that ``str(key)`` gave.

        Raises:
            ValueError: the text is not a key's.

        >>> Key.parse("layer.0.query:lambda_d:default")
        Key(module='layer.0.query', factor=<Factor.LAMBDA_D: 'lambda_d'>, adapter='default')
        """
        parts = text.rsplit(":", 2)
        if len(parts) != 3:
            raise ValueError(f"not a tensor key: {text!r} (expected module:factor:adapter)")
        return cls(parts[0], Factor(parts[1]), parts[2])


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
RECEIVED = Plan(trained=False, sent=False, received=True)


State: TypeAlias = "Mapping[Key, Tensor]"
"""Named tensors. Functions that take a State do not change it."""


SplitName: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, SplitName, SplitName] = ("train", "validation", "test")
"""The parts of a client's rows."""

Moment: TypeAlias = Literal["aggregate", "training"]
"""After what a client is measured: it has taken in the aggregate, or just its own local training."""

Results: TypeAlias = "dict[str, dict[str, float]]"
"""Client id to its metrics."""


@dataclass(frozen=True)
class Payload:
    """What the server sends to one client at the start of a round.

    Attributes:
        client: the client's id.
        round: the round it belongs to, counted from 1.
        version: the server's version that the tensors bring the client to: the number of rounds that have ended.
        tensors: every received tensor that is newer than what the client holds, in the dtype of the wire.
        held: the version that the client is known to hold: a client of an older one could not use the tensors.
    """

    client: str
    round: int
    version: int
    tensors: State
    held: int = 0


class Payloads(Mapping[str, Payload]):
    """The payloads of a round by client id, in the order in which clients train. Each is made when it is looked up.

    Args:
        round: the round they are for.
        clients: ids, sorted.
        make: returns a client's payload.
    """

    def __init__(self, round: int, clients: Iterable[str], make: Callable[[str], Payload]) -> None:
        self.round = round
        self._clients, self._make = dict.fromkeys(clients), make

    def __getitem__(self, client: str) -> Payload:
        if client not in self._clients:
            raise KeyError(client)
        return self._make(client)

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


@dataclass(frozen=True)
class Update:
    """What one client sends after its local training: the sent tensors only.

    Attributes:
        client: the client's id.
        round: the round it belongs to, counted from 1.
        num_examples: rows in the client's training set (>= 1), not rows processed.
        tensors: exactly the tensors that the sharing plan declares sent, in the dtype of the wire.
        metrics: numbers about the local training (``loss``, ``steps``, ``seconds``).
        base_version: the server's version that the client trained from: its payload's; None: that of the round's start.
        staleness: rounds by which it came late. The server sets it, and `base`.
        base: of an update that came late, what the client had of each tensor before it trained; else None.
    """

    client: str
    round: int
    num_examples: int
    tensors: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    base_version: int | None = None
    staleness: int = 0
    base: State | None = None


@dataclass(frozen=True)
class RoundRecord:
    """What the server knows about a finished round.

    Attributes:
        round: counted from 1.
        clients: ids that were asked to train, sorted.
        finished: ids whose update was aggregated, sorted; where rounds overlap, some were asked in an earlier round.
        download_bytes: sent to each that was asked, as on the wire without framing.
        upload_bytes: received from each finished client.
        train_metrics: each finished client's own numbers.
        rejected: ids whose update was not taken, or came and does not count, each with the reason.
        verdicts: where a step looks at all updates together, its numbers about each client's.
        staleness: where rounds overlap, the rounds by which each finished client's update came late.
    """

    round: int
    clients: tuple[str, ...]
    finished: tuple[str, ...]
    download_bytes: Mapping[str, int]
    upload_bytes: Mapping[str, int]
    train_metrics: Mapping[str, Mapping[str, float]]
    rejected: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    staleness: Mapping[str, int] = field(default_factory=dict)


def total_bytes(tensors: State) -> int:
    """Return the number of bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def total_elements(tensors: State) -> int:
    """Return the number of elements of all tensors together."""
    return sum(tensor.numel() for tensor in tensors.values())
