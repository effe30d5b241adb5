"""Secure aggregation over sites: clients train, then their sites send a sum of all that no single one can be seen in.

A round has one exchange of messages for the training, as without, and four short ones: each site tells its keys, shares
its secrets out, sends its sum behind masks, and helps to open the sum of all. A site that drops out on the way is left
out; its masks are worked out from the shares that the others have.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

from fedsa.engines.remote import RemoteFleet
from fedsa.errors import ProtocolError
from fedsa.messages import Message, decode, encode
from fedsa.secure import FEWEST, FixedPoint, Opening, fixed_point_for, threshold
from fedsa.secure.fixed_point import added
from fedsa.secure.vectors import as_state, as_vector
from fedsa.store import MessagesUnderWay
from fedsa.texts.escapes import for_terminal
from fedsa.types import Moment, Payloads, SplitName, State, Update

__all__ = ["SecureFleet"]

_KEPT = "the sum of all"  # the name of what is kept between the first question that opens it and the commit
_MOST = 2**62  # a sum beyond it is none


@dataclass(frozen=True)
class _Sum:
    """What sites have sent to a round's sum.

    Attributes:
        opening: keys and shares, as the server knows them.
        bits: after the point.
        carriers: site to the client under whose name its sum came.
        weights: site to its masked weight.
        updates: what came, by client; those that are no carrier have no tensors.
    """

    opening: Opening
    bits: int
    carriers: dict[str, str] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)


@final
class SecureFleet:
    """Clients at sites elsewhere, of whose updates the server learns the sum.

    Args:
        fleet: the sites.
        messages: keeps a sum that sites have begun to open, until its round is safe: it cannot be collected again.
        weighting: how clients count in the mean.
    """

    def __init__(self, fleet: RemoteFleet, messages: MessagesUnderWay, weighting: str) -> None:
        self._fleet, self._messages, self._weighting = fleet, messages, weighting
        self._sum: _Sum | None = None
        self._gone: list[str] = []  # clients that are in it, and are not asked in this round any more

    @property
    def point(self) -> FixedPoint:
        """How values become integers: as finely as all clients together allow."""
        return fixed_point_for(sum(self._fleet.weights(self._weighting).values()))

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have clients train and their sites send masked sums, and yield what came, in the order of the clients' ids.

        Raises:
            ProtocolError: too few sites or clients are left.
        """
        kept = self._messages.find(_KEPT, payloads.round, partial(decode, run=self._fleet.run))
        self._sum = self._collected(payloads) if kept is None else _read(kept)
        self._gone = sorted({*self._sum.updates} - {*payloads})
        if self._gone:
            self._fleet.tell(
                f"round {payloads.round}: sites had begun to open a sum with {', '.join(self._gone)} in it, who is not "
                "asked any more: that part stays in the mean, since a site opens one sum of a round only"
            )
        for client in payloads:
            if client in self._sum.updates:
                yield self._sum.updates[client]

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Have the sites measure their clients."""
        return self._fleet.evaluate(payloads, split, moment)

    def open_sum(self, round: int, clients: Collection[str], sums: State) -> State:
        """The weighted mean, from the sum of what came: sites help to take off the masks.

        Args:
            round: the round.
            clients: those whose update counts.
            sums: of all tensors that came.

        Raises:
            ProtocolError: too few sites help, or the masks do not cancel.
        """
        if self._sum is None:
            raise ValueError("nothing was collected")
        own, fleet = self._sum, self._fleet
        lost = sorted({*own.updates} - {*clients} - {*self._gone})
        if lost:
            raise ProtocolError(f"round {round}: the sum has {', '.join(lost)}, which cannot be taken out of it")
        sums = added([sums, *(own.updates[client].tensors for client in self._gone)])
        self._messages.keep(_KEPT, round, encode(_written(own, fleet.run, round)))
        survivors, answers = sorted(own.weights), dict[str, Mapping[str, Any]]()

        def take(site: str, answer: Message) -> None:
            answers[site] = answer.about

        asked = {site: {"survivors": survivors} for site in survivors if site in fleet.sites}
        context, needed = own.opening.context, own.opening.needed
        self._stage("open", round, context, asked, take, lambda: len(answers) >= needed)
        vector = as_vector(sums, sum(own.weights.values()) % 2**64)
        vector -= own.opening.masks(survivors, answers, len(vector))
        tensors, weight = as_state(vector, {key: tuple(tensor.shape) for key, tensor in sums.items()})
        rows = self._weighting == "num_examples"
        told = {client: own.updates[client].num_examples if rows else 1 for client in self._gone}
        told |= fleet.weights(self._weighting)
        if weight != sum(told[client] for client in own.updates) or any(
            not bool((tensor.abs() < _MOST).all()) for tensor in tensors.values()
        ):
            raise ProtocolError(
                f"round {round}: the masks do not cancel: a site has sent what is not a part of the sum"
            )
        return FixedPoint(own.bits).decode_mean(tensors, weight)

    def _collected(self, payloads: Payloads) -> _Sum:
        """Have clients train, and collect a masked sum from each site.

        Raises:
            ProtocolError: too few sites or clients are left.
        """
        self._messages.only(())  # of rounds that are safe
        fleet, round, point = self._fleet, payloads.round, self.point
        needed = len(payloads) if fleet.quorum is None else min(fleet.quorum, len(payloads))
        trained: dict[str, Update] = {}

        def take_trained(site: str, answer: Message) -> None:
            trained.update(fleet.trained_in(site, answer, payloads))

        about = {"do": "train", "bits": point.bits}
        fleet.step(payloads, about, take_trained, lambda: len(trained) >= needed)

        def are_enough(sites: Collection[str]) -> bool:
            least = max(FEWEST, threshold(len(roster)))  # sites open no sum of fewer
            return len(sites) >= least and sum(fleet.home_of(client) in sites for client in trained) >= needed

        context = f"{fleet.run}|{round}|{secrets.token_hex(16)}"
        roster: dict[str, dict[str, str]] = {}
        sealed: dict[str, dict[str, str]] = {}

        def take_keys(site: str, answer: Message) -> None:
            roster[site] = _table(site, answer, "keys")

        def take_shares(site: str, answer: Message) -> None:
            shares = _table(site, answer, "sealed")
            if {*shares} != {*roster} - {site}:
                raise ProtocolError(f"site {site!r} has not shared its secrets with every other site")
            sealed[site] = shares

        asked: dict[str, dict[str, Any]] = {fleet.home_of(client): {} for client in trained}
        self._stage("keys", round, context, asked, take_keys, lambda: are_enough(roster))
        asked = {site: {"roster": roster} for site in roster}
        self._stage("share", round, context, asked, take_shares, lambda: are_enough(sealed))
        own = _Sum(Opening(context, roster, sorted(sealed)), point.bits)

        def take_masked(site: str, answer: Message) -> None:
            self._take_masked(own, site, answer, {c: each for c, each in trained.items() if fleet.home_of(c) == site})

        asked = {
            site: {"sealed": {other: shares[site] for other, shares in sealed.items() if other != site}}
            for site in sealed
        }
        self._stage("mask", round, context, asked, take_masked, lambda: are_enough(own.weights))
        return own

    def _take_masked(self, own: _Sum, site: str, answer: Message, trained: Mapping[str, Update]) -> None:
        """Take a site's masked sum.

        Raises:
            ProtocolError: it is none, or does not fit the round.
        """
        client, weight = answer.about.get("client"), answer.about.get("weight")
        if not isinstance(client, str) or client not in trained or type(weight) is not int or not 0 <= weight < 2**64:
            raise ProtocolError(f"site {site!r} has sent a sum that says no client or no weight")
        updates = {**trained, client: replace(trained[client], tensors=answer.states.get(client, {}))}
        if not updates[client].tensors:
            raise ProtocolError(f"site {site!r} has sent a sum of nothing")
        for update in updates.values():
            self._fleet.check(update, update.round)
        own.carriers[site], own.weights[site] = client, weight
        own.updates.update(updates)

    def _stage(
        self,
        do: str,
        round: int,
        context: str,
        asked: Mapping[str, Mapping[str, Any]],
        take: Callable[[str, Message], None],
        is_enough: Callable[[], bool],
    ) -> None:
        """Ask sites for one thing, and take the answers, until there are enough.

        Raises:
            ProtocolError: too few are left.
        """
        fleet, reasons = self._fleet, dict[str, str]()
        about = {"do": do, "attempt": context.rpartition("|")[2]}
        open_ones = {
            site: encode(Message("step", fleet.run, round, {**about, **more})) for site, more in sorted(asked.items())
        }
        while True:
            for site, answer, why in fleet.ask(open_ones, "update", round):
                del open_ones[site]
                if answer is not None:
                    try:
                        take(site, answer)
                        continue
                    except ProtocolError as error:
                        why = for_terminal(str(error))
                reasons[site] = why
                fleet.tell(f"round {round}: {site} is not in the sum ({do}): {why}")
            fleet.let_know(reasons, round)
            if is_enough():
                if open_ones:
                    fleet.tell(f"round {round}: {', '.join(open_ones)} has not answered in time, and is not in the sum")
                return
            if not open_ones:
                raise ProtocolError(
                    f"round {round}: too few sites are left for secure aggregation ({do}); "
                    + "; ".join(map(": ".join, reasons.items()))
                )
            fleet.tell(f"round {round}: waiting for {', '.join(open_ones)} ({do})")


def _table(site: str, answer: Message, name: str) -> dict[str, str]:
    """A table of texts that an answer has.

    Raises:
        ProtocolError: it has none.
    """
    value = answer.about.get(name)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ProtocolError(f"site {site!r} has answered without {name}")
    return value


def _written(own: _Sum, run: str, round: int) -> Message:
    """A sum as a message, which can be kept."""
    facts = {
        client: {
            "num_examples": update.num_examples,
            "metrics": dict(update.metrics),
            "base_version": update.base_version,
        }
        for client, update in own.updates.items()
    }
    about = {
        "context": own.opening.context,
        "roster": own.opening.roster,
        "shared": list(own.opening.shared),
        "bits": own.bits,
        "carriers": own.carriers,
        "weights": own.weights,
        "updates": facts,
    }
    return Message("update", run, round, about, {c: own.updates[c].tensors for c in own.carriers.values()})


def _read(message: Message) -> _Sum:
    """The sum that `_written` wrote."""
    about = message.about
    opening = Opening(about["context"], about["roster"], about["shared"])
    updates = {
        client: Update(
            client,
            message.round,
            facts["num_examples"],
            message.states.get(client, {}),
            facts["metrics"],
            base_version=facts["base_version"],
        )
        for client, facts in about["updates"].items()
    }
    return _Sum(opening, about["bits"], dict(about["carriers"]), dict(about["weights"]), updates)
