"""A site's half of secure aggregation: it answers four questions about one sum, each once."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np

from fedsa.errors import ProtocolError
from fedsa.secure.primitives import (
    SECRET_BYTES,
    agreed_key,
    derived,
    new_secret,
    open_sealed,
    public_key,
    seal,
    split,
    stream,
)
from fedsa.texts.words import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FEWEST", "PAIR", "SELF", "Party", "as_bytes", "as_text", "mask_key", "pair_mask", "threshold"]

FEWEST = 3
"""Sites in a sum. Of a sum of two, each of them knows the other's part."""

SELF, PAIR = "self", "pair"
"""The two secrets of a party: what its own mask is made of, and what the masks with the others are made of."""


def threshold(parties: int) -> int:
    """How many parties must help to open a sum: more than half of those that have told their keys.

    So a server cannot have one half of the parties give away one secret of a party, and the other half its other one.

    >>> [threshold(parties) for parties in (3, 4, 5, 10)]
    [2, 3, 3, 6]
    """
    return parties // 2 + 1


def mask_key(secret: bytes, context: str) -> bytes:
    """The private key that the masks with the others are made of."""
    return derived(secret, f"{context}|masks")


@final
@dataclass
class Party:
    """One site in one sum. What it must not forget can be written down with `text`, and read with `parse`.

    Attributes:
        name: the site's.
        context: names the run, the round and the attempt: keys for one are of no use in another.
        channel: its private key for the shares that the others send it.
        secrets: `SELF` and `PAIR` to the two secrets that are shared out.
        roster: every party's public keys (``channel``, ``pair``), by name; empty before they are known.
        sealed: for every other party its shares, encrypted.
        received: for every party whose shares have come, its shares of `SELF` and `PAIR`.
        masked: a hash of the values that it has masked: other values behind the same masks would show the difference.
        opened: the parties whose sum it has helped to open; empty before.
    """

    name: str
    context: str
    channel: str
    secrets: dict[str, str]
    roster: dict[str, dict[str, str]] = field(default_factory=dict)
    sealed: dict[str, str] = field(default_factory=dict)
    received: dict[str, dict[str, str]] = field(default_factory=dict)
    masked: str = ""
    opened: list[str] = field(default_factory=list)

    @classmethod
    def new(cls, name: str, context: str) -> Party:
        """A party with new secrets.

        Args:
            name: the site's.
            context: names the run, the round and the attempt.
        """
        channel = as_text(derived(new_secret() + new_secret(), "channel"))
        return cls(name, context, channel, {SELF: as_text(new_secret()), PAIR: as_text(new_secret())})

    @property
    def public(self) -> dict[str, str]:
        """Its public keys."""
        channel, pair = (public_key(key) for key in (as_bytes(self.channel), self._pair_key))
        return {"channel": as_text(channel), "pair": as_text(pair)}

    def share(self, roster: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """Encrypted shares of its secrets for each other party.

        Args:
            roster: every party's public keys.

        Raises:
            ProtocolError: there are too few parties, it is not among them, or it has been asked with others before.
        """
        if self.roster and self.roster != roster:
            raise ProtocolError("other keys than those that this site has shared its secrets for")
        if len(roster) < FEWEST:
            raise ProtocolError(f"a sum of {counted(len(roster), 'site')} would show single ones: {FEWEST} are needed")
        if roster.get(self.name) != self.public:
            raise ProtocolError("the keys of all sites do not have this site's own")
        if len({keys.get("pair") for keys in roster.values()}) < len(roster):
            raise ProtocolError("two sites with one key")
        if self.roster:
            return self.sealed
        names = sorted(roster)
        least = threshold(len(names))
        own, pair = (split(as_bytes(self.secrets[kind]), least, len(names)) for kind in (SELF, PAIR))
        for name, one, two in zip(names, own, pair, strict=True):
            if name == self.name:
                self.received[name] = {SELF: as_text(one), PAIR: as_text(two)}
            else:
                key = self._channel_key(roster[name], self.name, name)
                self.sealed[name] = as_text(seal(key, one + two, f"{self.context}|{self.name}|{name}"))
        self.roster = {name: dict(keys) for name, keys in roster.items()}
        return self.sealed

    def mask(self, values: NDArray[np.uint64], sealed: Mapping[str, str]) -> NDArray[np.uint64]:
        """Values behind masks that cancel in the sum over all whose shares have come.

        Args:
            values: integers of 64 bits.
            sealed: the shares that each other party has encrypted for this one.

        Raises:
            ProtocolError: too few shares have come, one is not for this party, or it has masked other values before.
        """
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        if self.masked and self.masked != digest:
            raise ProtocolError("other values than those that this site has masked before")
        if not self.roster:
            raise ProtocolError("this site has not shared its secrets yet")
        others = {name for name in self.received if name != self.name}
        if others and others != {*sealed}:
            raise ProtocolError("other sites than those that this site has made its masks for")
        if not {*sealed} < {*self.roster} or self.name in sealed:
            raise ProtocolError("shares of a site whose keys are not known")
        if len(sealed) + 1 < max(threshold(len(self.roster)), FEWEST):
            raise ProtocolError(f"shares of {counted(len(sealed), 'other site')} are too few for a sum")
        received = {}
        for name, text in sealed.items():
            key = self._channel_key(self.roster[name], name, self.name)
            content = open_sealed(key, as_bytes(text), f"{self.context}|{name}|{self.name}")
            if len(content) != 2 * SECRET_BYTES:
                raise ProtocolError("shares that are none")
            received[name] = {SELF: as_text(content[:SECRET_BYTES]), PAIR: as_text(content[SECRET_BYTES:])}
        self.received |= received
        self.masked = digest
        masked = values + stream(derived(as_bytes(self.secrets[SELF]), f"{self.context}|{SELF}"), len(values))
        for name in sealed:
            masked += pair_mask(self._pair_key, self.roster[name], self.context, self.name, name, len(values))
        return masked

    def help_open(self, survivors: Collection[str]) -> dict[str, dict[str, str]]:
        """Its shares of what opens a sum: of `SELF` for those that are in it, of `PAIR` for those that are not.

        Args:
            survivors: the parties that are in the sum.

        Raises:
            ProtocolError: they are too few or others than those whose shares have come, this party is not among them,
                or it has helped to open another sum: two sums of one round would show a single site.
        """
        chosen = sorted({*survivors})
        if self.opened and self.opened != chosen:
            raise ProtocolError("this site has helped to open another sum of this round: a second one is refused")
        if len(self.received) < FEWEST:
            raise ProtocolError("this site has sent nothing to this sum")
        if not {*chosen} <= {*self.received} or self.name not in chosen:
            raise ProtocolError("a sum of other sites than those that have taken part")
        needed = max(threshold(len(self.roster)), FEWEST)
        if len(chosen) < needed:
            raise ProtocolError(
                f"a sum of {len(chosen)} of {counted(len(self.roster), 'site')} is not opened: {needed} are needed"
            )
        self.opened = chosen
        return {
            SELF: {name: self.received[name][SELF] for name in chosen},
            PAIR: {name: self.received[name][PAIR] for name in sorted({*self.received} - {*chosen})},
        }

    def text(self) -> str:
        """All that the party must not forget, as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Party:
        """The party that wrote `text`.

        Raises:
            TypeError: something is missing.
        """
        return cls(**values)

    @property
    def _pair_key(self) -> bytes:
        return mask_key(as_bytes(self.secrets[PAIR]), self.context)

    def _channel_key(self, keys: Mapping[str, str], sender: str, receiver: str) -> bytes:
        purpose = f"{self.context}|shares|{sender}|{receiver}"
        return agreed_key(as_bytes(self.channel), as_bytes(keys.get("channel")), purpose)


def pair_mask(
    private: bytes, keys: Mapping[str, str], context: str, name: str, other: str, count: int
) -> NDArray[np.uint64]:
    """The mask of a party with another one. The other's is the same with the other sign.

    Args:
        private: the party's key for it.
        keys: the other's public keys.
        context: names the run, the round and the attempt.
        name: the party's.
        other: the other's.
        count: the number of integers.
    """
    first, second = sorted((name, other))
    mask = stream(agreed_key(private, as_bytes(keys.get("pair")), f"{context}|{first}|{second}"), count)
    return mask if name == first else np.negative(mask)


def as_text(content: bytes) -> str:
    """Bytes as a text that JSON can hold."""
    return base64.b64encode(content).decode()


def as_bytes(text: Any) -> bytes:
    """The bytes that `as_text` wrote.

    Raises:
        ProtocolError: it did not.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise ProtocolError("a key or a share that is none") from None
