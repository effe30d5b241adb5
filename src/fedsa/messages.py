"""Messages between a server and its sites, as bytes: tensors in the safetensors format, and one entry of JSON.

A message says what it is (`kind`), which run and round it belongs to, and carries the states of some clients. Clients
that are sent the same tensors share one copy. Nothing here can carry code. What comes from the other side is not
trusted: its size, kind, names and digest are checked before anything is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsa.errors import ProtocolError
from fedsa.texts.words import counted
from fedsa.types import Key, State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MOST_BYTES", "Kind", "Message", "decode", "digest_of", "encode"]

Kind: TypeAlias = Literal["setup", "ready", "step", "update", "refuse", "finish"]
"""setup and ready: before the first round; step: train, measure or add up; update: the answer to a step; refuse: why a
message cannot be answered, or, from the server, why an answer was not taken; finish: the run is over."""

MOST_BYTES = 2**31
"""A longer message is refused before it is read."""

_ENTRY = "fedsa"
_DIGITS = 64  # of the digest, before the JSON
_VERSION = 1


@final
@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: see `Kind`.
        run: the run's id.
        round: the round it belongs to.
        about: further values, of the types that JSON has.
        states: client id to tensors.
    """

    kind: Kind
    run: str
    round: int
    about: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, State] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """A message as bytes; equal messages give equal bytes."""
    groups: list[State] = []
    places: dict[str, int] = {}
    for client, state in sorted(message.states.items()):
        places[client] = next((place for place, other in enumerate(groups) if _same(state, other)), len(groups))
        if places[client] == len(groups):
            groups.append(state)
    tensors = _apart(
        {f"{place}|{key}": tensor.contiguous() for place, state in enumerate(groups) for key, tensor in state.items()}
    )
    entry = {
        "version": _VERSION,
        "kind": message.kind,
        "run": message.run,
        "round": message.round,
        "about": message.about,
        "groups": places,
    }
    text = json.dumps(entry, ensure_ascii=False, allow_nan=False, sort_keys=True)
    # One entry of metadata: safetensors does not fix the order of several, and equal messages are equal bytes.
    data = save(tensors, {_ENTRY: digest_of(text, tensors) + text})
    if len(data) > MOST_BYTES:
        raise ProtocolError(f"a message of {counted(len(data), 'byte')}: more than {MOST_BYTES:,} are not taken")
    return data


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with a copy of each that shares memory with one before it: safetensors does not write such ones.

    A client of a lower rank is sent a part of what another one is sent.
    """
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def decode(data: bytes, *, run: str | None = None, most_bytes: int = MOST_BYTES) -> Message:
    """The message that bytes hold; each state's tensors are in the order of their names.

    Args:
        data: the bytes.
        run: the run that the message must belong to; None: any.
        most_bytes: a longer message is refused.

    Raises:
        ProtocolError: the message is too long, damaged, of another version or of another run. Nothing of it was used.
    """
    if len(data) > most_bytes:
        raise ProtocolError(f"a message of {counted(len(data), 'byte')}: more than {most_bytes:,} are not taken")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        digest, text = header[_ENTRY][:_DIGITS], header[_ENTRY][_DIGITS:]
        # The library gives another order at each call; equal messages are to be equal in all that follows.
        entry, tensors = json.loads(text, parse_constant=_refuse_constant), dict(sorted(load(data).items()))
        json.dumps(entry, ensure_ascii=False).encode()  # half a character can be written to no file
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"a damaged message: {type(error).__name__}") from None
    if digest != digest_of(text, tensors):
        raise ProtocolError("a damaged message: its digest is of other bytes")
    return _checked(entry, tensors, run)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of a message")


def _checked(entry: Any, tensors: Mapping[str, Tensor], run: str | None) -> Message:
    """The message of a decoded entry and its tensors, after all of it was checked."""
    fields = {"version": int, "kind": str, "run": str, "round": int, "about": dict, "groups": dict}
    if not isinstance(entry, dict) or any(type(entry.get(name)) is not kind for name, kind in fields.items()):
        raise ProtocolError("a message that lacks an entry, or has one of the wrong type")
    if entry["version"] != _VERSION:
        raise ProtocolError(f"a message of version {entry['version']}: this fedsa speaks version {_VERSION}")
    if entry["kind"] not in get_args(Kind):
        raise ProtocolError("a message of an unknown kind")
    if run is not None and entry["run"] != run:
        raise ProtocolError(f"a message of another run than {run!r}")
    groups: dict[int, dict[Key, Tensor]] = {place: {} for place in entry["groups"].values() if type(place) is int}
    try:
        for name, tensor in tensors.items():
            place, _, key = name.partition("|")
            groups[int(place)][Key.parse(key)] = tensor
        states = {client: groups[place] for client, place in entry["groups"].items()}
    except (KeyError, ValueError, TypeError):
        raise ProtocolError("a message with a tensor whose name is not one") from None
    return Message(entry["kind"], entry["run"], entry["round"], entry["about"], states)


def _same(one: State, two: State) -> bool:
    """Say whether two states hold the same tensors, bit for bit."""
    if one is two:
        return True
    if one.keys() != two.keys():
        return False
    return all(one[key] is two[key] or _bits_are_equal(one[key], two[key]) for key in one)


def _bits_are_equal(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(_bits(one), _bits(two))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A hash of a text and of tensors with their names, shapes and types."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bits(tensor).numpy().tobytes())
    return digest.hexdigest()
