"""A site's answers to messages: bytes in, bytes out, whatever carries them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from fedsa.client.site import Site
from fedsa.errors import FedsaError, ProtocolError
from fedsa.messages import Message, decode, encode
from fedsa.types import Payload, Payloads

if TYPE_CHECKING:
    from fedsa.types import State

__all__ = ["Answers"]


@final
class Answers:
    """Answers the messages of one run for a site. A message that comes again is answered with the same bytes.

    Args:
        site: trains and measures its clients.
        run: the run's id.
        fingerprint: of what server and sites must hold alike.
    """

    def __init__(self, site: Site, run: str, fingerprint: str) -> None:
        self._site, self._run, self._fingerprint = site, run, fingerprint
        self._last: tuple[str, bytes] | None = None  # the digest of the last message, and its answer

    def handle(self, data: bytes) -> bytes:
        """Return the answer to a message; to one that cannot be answered, a refusal that says why."""
        name = hashlib.sha256(data).hexdigest()
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        round = 0
        try:
            message = decode(data, run=self._run)
            round = message.round
            answer = encode(self._answer(message))
        except FedsaError as error:
            return encode(Message("refuse", self._run, round, {"why": str(error)}))
        self._last = name, answer
        return answer

    def _answer(self, message: Message) -> Message:
        if message.kind == "setup":
            return self._ready(message.about)
        if message.kind == "finish":
            return Message("ready", self._run, message.round)
        if message.kind != "step":
            raise ProtocolError(f"a site does not answer a message of kind {message.kind!r}")
        unknown = sorted(set(message.states) - set(self._site.rows))
        if unknown:
            raise ProtocolError(f"this site has no client {unknown[0]!r}")
        payloads = _payloads(message)
        if message.about.get("do") == "train":
            return self._trained(payloads)
        if message.about.get("do") == "evaluate":
            return self._measured(payloads, message.about)
        raise ProtocolError("a step that says neither train nor evaluate")

    def _ready(self, about: Mapping[str, Any]) -> Message:
        """Say who is here; with the initial tensors, where the server wants their values."""
        if about.get("fingerprint") != self._fingerprint:
            raise ProtocolError("the server's settings are not this site's: both must have the same recipe and model")
        site = self._site
        examples = {client: len(splits.train) for client, splits in site.rows.items()}
        states: dict[str, State] = {"initial": site.learner.model.initial} if about.get("initial") else {}
        return Message(
            "ready", self._run, 0, {"examples": examples, "scaling": dict(site.learner.model.scaling)}, states
        )

    def _trained(self, payloads: Payloads) -> Message:
        updates = {update.client: update for update in self._site.train(payloads)}
        about = {
            client: {
                "num_examples": update.num_examples,
                "metrics": dict(update.metrics),
                "base_version": update.base_version,
            }
            for client, update in updates.items()
        }
        states = {client: update.tensors for client, update in updates.items()}
        return Message("update", self._run, payloads.round, {"updates": about}, states)

    def _measured(self, payloads: Payloads, about: Mapping[str, Any]) -> Message:
        split, moment = about.get("split"), about.get("moment")
        if split not in ("validation", "test") or moment not in ("aggregate", "training"):
            raise ProtocolError("a step that does not say which rows are measured, or after what")
        metrics = dict(self._site.evaluate(payloads, split, moment))
        return Message("update", self._run, payloads.round, {"metrics": metrics})


def _payloads(message: Message) -> Payloads:
    """Return the payloads of a step.

    Raises:
        ProtocolError: it does not say the version of each client's tensors.
    """
    versions = message.about.get("versions")
    if not isinstance(versions, dict) or any(type(versions.get(client)) is not int for client in message.states):
        raise ProtocolError("a step that does not say the version of its tensors")

    def made(client: str) -> Payload:
        return Payload(client, message.round, versions[client], message.states[client])

    return Payloads(message.round, sorted(message.states), made)
