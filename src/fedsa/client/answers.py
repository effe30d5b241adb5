"""A site's answers to messages: bytes in, bytes out. What carries the bytes does not matter."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from fedsa.adapters.algebra import fits
from fedsa.client.masking import STAGES, Masking
from fedsa.client.sent import SentAnswers
from fedsa.client.site import Site
from fedsa.client.trained_once import TrainedOnce
from fedsa.errors import FedsaError, ProtocolError, TrainingError
from fedsa.messages import Message, decode, encode
from fedsa.texts.escapes import for_terminal
from fedsa.texts.words import counted
from fedsa.types import SPLITS, Payload, Payloads, Side

if TYPE_CHECKING:
    from fedsa.types import State

__all__ = ["Answers", "log", "refusal"]


@final
class Answers:
    """Answers the messages of one run for a site. A message that comes again is answered with the same bytes.

    Refusals are not kept: the next try may succeed.

    Args:
        site: trains and measures its clients.
        run: the run's id.
        fingerprint: of the agreement.
        sent: keeps the answers, and lists them for the site's owner.
        trains: False: its clients are measured only, whatever the server asks for.
        on_finish: is called with the run's summary at its end, before the site says that it is done.
        masking: secure aggregation: what was trained leaves the site only through this; None: as it is.
        trained_once: with differential privacy: refuses to train a round again from another message; None: it may.
    """

    def __init__(
        self,
        site: Site,
        run: str,
        fingerprint: str,
        sent: SentAnswers,
        *,
        trains: bool = True,
        on_finish: Callable[[Mapping[str, Any]], None] = lambda summary: None,
        masking: Masking | None = None,
        trained_once: TrainedOnce | None = None,
    ) -> None:
        self._site, self._run, self._fingerprint, self._sent = site, run, fingerprint, sent
        self._trains, self._on_finish, self._masking = trains, on_finish, masking
        self._trained_once = trained_once

    def handle(self, data: bytes) -> bytes:
        """The answer to a message; where it cannot be answered, a refusal that says why."""
        round = 0
        try:
            message = decode(data, run=self._run)
            round = message.round
            if message.kind == "refuse":
                return self._heard(message)
            known = self._sent.find(data)
            if known is not None:
                return known
            answer = self._answer(message)
            content = encode(answer)
            self._sent.keep(data, answer, content)
        except (ProtocolError, TrainingError) as error:
            log(f"refused, round {round}: {error}")
            return self._refusal(round, str(error))
        except FedsaError as error:  # it may name something of the site's
            log(str(error))
            return self._refusal(round, "it cannot go on: its own log says why")
        return content

    def _refusal(self, round: int, why: str) -> bytes:
        return refusal(lambda: self._sent, self._run, round, why)

    def _heard(self, message: Message) -> bytes:
        """Write into the site's log why the server has not taken an answer, and say so."""
        why = for_terminal(str(message.about.get("why"))[:300])
        log(f"round {message.round}: the server has not taken what this site sent: {why}")
        answer = Message("ready", self._run, message.round)
        content = encode(answer)
        self._sent.list_only(answer, content)
        return content

    def _answer(self, message: Message) -> Message:
        if message.kind == "setup":
            return self._ready(message.about)
        if message.kind == "finish":
            self._on_finish(message.about.get("summary") or {})
            return Message("ready", self._run, message.round)
        if message.kind != "step":
            raise ProtocolError(f"a site does not answer a message of kind {message.kind!r}")
        if self._masking is not None and message.about.get("do") in STAGES:
            return self._masking.answer(message)
        unknown = sorted(set(message.states) - set(self._site.rows))
        if unknown:
            raise ProtocolError(f"this site has no client {unknown[0]!r}")
        payloads, kept = _payloads(message), _kept_rounds(message, self._site.rounds)
        self._check_tensors(message)
        self._check_states(message, max(kept))
        if message.about.get("do") == "train":
            if not self._trains:
                raise ProtocolError("this site is only measured: it does not train")
            if message.round > self._site.rounds:
                raise ProtocolError(
                    f"round {message.round} is none to train in: the run has {counted(self._site.rounds, 'round')}"
                )
            if max(kept) >= message.round:
                raise ProtocolError(f"round {message.round} is over for the server: it has finished round {max(kept)}")
            if self._trained_once is not None:
                self._trained_once.begin(payloads)
            self._site.states.prune({*kept, message.round})  # a round that is asked for again stays too
            return self._trained(payloads, message.about)
        if message.about.get("do") == "evaluate":
            return self._measured(payloads, message.about)
        raise ProtocolError("a step that says neither train nor evaluate")

    def _check_tensors(self, message: Message) -> None:
        """Refuse tensors that a client does not receive, such as its B: they would replace its own.

        The numbers that the steps at a client need must be there.

        Raises:
            ProtocolError: the run has no such round, the server sends a tensor that stays here, or a number is missing.
        """
        site = self._site
        if not 1 <= message.round <= site.rounds + 1:
            raise ProtocolError(f"round {message.round} is none of this run, which has {counted(site.rounds, 'round')}")
        whole = site.algorithm.whole(site.learner.model.initial)
        notes = site.steps.notes_to_client({}) if message.about.get("do") == "train" else {}
        for client, state in message.states.items():
            missing = sorted(notes.keys() - state.keys())
            if missing:
                raise ProtocolError(f"client {client!r} is not sent {missing[0]} in round {message.round}")
            for key, tensor in state.items():
                if key in notes and tensor.shape == notes[key].shape and bool(tensor.isfinite().all()):
                    continue
                if key not in whole or not site.algorithm.plan(key, message.round).received:
                    raise ProtocolError(f"client {client!r} does not receive {key} in round {message.round}")
                if not fits(key, tensor.shape, whole[key].shape):
                    raise ProtocolError(f"what client {client!r} is sent has another shape than the model: {key}")
                if not bool(tensor.isfinite().all()):
                    raise ProtocolError(f"what client {client!r} is sent is not finite: {key}")

    def _check_states(self, message: Message, last_kept: int) -> None:
        """Refuse a step that the clients' states here do not fit: lost ones, old copies, or a round that is over.

        Args:
            message: the step.
            last_kept: the last round that the server has finished.

        Raises:
            ProtocolError: whose state, and what to do.
        """
        held, states = _versions(message, "held", "the version that its clients hold"), self._site.states
        ahead = max((states.last_round(client) for client in self._site.rows), default=0)
        if ahead > last_kept + 1:  # else it would lose what it has trained since
            raise ProtocolError(
                f"this site has trained round {ahead}, and the server has finished round {last_kept}: its folder is "
                "an old copy or a new one; put the newest back"
            )
        for client in message.states:
            last = states.last_round(client)
            if message.about.get("do") == "train" and last > message.round:
                raise ProtocolError(f"client {client!r} has trained round {last} here: round {message.round} is over")
            state = states.load_client(client, message.round - 1)
            version = state.version if state else 0
            if version < held[client]:
                what = "an old copy" if state else "gone"
                raise ProtocolError(
                    f"the state of client {client!r} is {what} (version {version}, the server knows of "
                    f"{held[client]}): its site puts its folder back from a newer copy"
                )

    def _ready(self, about: Mapping[str, Any]) -> Message:
        """Say who is here; with the initial tensors, where the server wants their values."""
        if about.get("fingerprint") != self._fingerprint:
            raise ProtocolError("the server's agreement is not this site's: both must be given the same one")
        examples = {
            client: {name: len(part) for name, part in zip(SPLITS, parts, strict=True)}
            for client, parts in self._site.rows.items()
        }
        states: dict[str, State] = {}
        if about.get("initial"):
            initial = self._site.learner.model.initial
            states["initial"] = {key: value for key, value in initial.items() if key.factor.side is not Side.BASE}
        return Message("ready", self._run, 0, {"examples": examples}, states)

    def _trained(self, payloads: Payloads, asked: Mapping[str, Any]) -> Message:
        updates = {update.client: update for update in self._site.train(payloads)}
        self._site.states.settle()  # an update must not be acknowledged before the state that it came of is safe
        about = {
            client: {
                "num_examples": update.num_examples,
                "metrics": dict(update.metrics),
                "base_version": update.base_version,
            }
            for client, update in updates.items()
        }
        states = {client: update.tensors for client, update in updates.items()}
        if self._masking is not None:  # the tensors stay, and how much each client weighs
            self._masking.keep(list(updates.values()), payloads.round, asked.get("bits"))
            about, states = {client: _without_count(each) for client, each in about.items()}, {}
        return Message("update", self._run, payloads.round, {"updates": about}, states)

    def _measured(self, payloads: Payloads, about: Mapping[str, Any]) -> Message:
        split, moment = about.get("split"), about.get("moment")
        if split not in ("validation", "test") or moment not in ("aggregate", "training"):
            raise ProtocolError("a step that does not say which rows are measured, or after what")
        metrics = dict(self._site.evaluate(payloads, split, moment))
        self._site.states.settle()
        return Message("update", self._run, payloads.round, {"metrics": metrics})


def _without_count(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "num_examples"}


def log(text: str) -> None:
    """Write a line into the site's log. Where its disk is full there is none, and the site goes on all the same."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def refusal(sent: Callable[[], SentAnswers], run: str, round: int, why: str) -> bytes:
    """A refusal, which is also written to the list of what has left. If the list cannot be written, it says only that.

    Args:
        sent: opens the list.
        run: the run's id.
        round: the round that the refused message belongs to.
        why: the reason, which the server reads.
    """
    message = Message("refuse", run, round, {"why": why})
    content = encode(message)
    try:
        sent().list_only(message, content)
    except FedsaError:
        return encode(Message("refuse", run, round, {"why": "the site cannot write to its disk"}))
    return content


def _kept_rounds(message: Message, last: int) -> set[int]:
    """The rounds that the server may still come back to: the last one that it finished, and the chosen one.

    Raises:
        ProtocolError: the message does not say them.
    """
    rounds = message.about.get("keep")
    if not isinstance(rounds, list) or not rounds or any(type(each) is not int for each in rounds):
        raise ProtocolError("a step that does not say which rounds are kept")
    if not min(rounds) >= 0 or max(rounds) > last:
        raise ProtocolError(f"a step that keeps rounds {rounds}, of a run of {counted(last, 'round')}")
    return set(rounds)


def _versions(message: Message, name: str, what: str) -> Mapping[str, int]:
    """A number for each client of a step.

    Args:
        message: the step.
        name: the number's name in the message.
        what: the number in words.

    Raises:
        ProtocolError: it is missing for a client, or is no whole number.
    """
    numbers = message.about.get(name)
    if not isinstance(numbers, dict) or any(type(numbers.get(client)) is not int for client in message.states):
        raise ProtocolError(f"a step that does not say {what}")
    return numbers


def _payloads(message: Message) -> Payloads:
    """The payloads of a step.

    Raises:
        ProtocolError: it does not say the version of each client's tensors.
    """
    versions = _versions(message, "versions", "the version of its tensors")

    def made(client: str) -> Payload:
        return Payload(client, message.round, versions[client], message.states[client])

    return Payloads(message.round, sorted(message.states), made)
