"""The fleet of a federation over several sites: messages go out and come in, by whatever carries bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, final

from fedsa.engines.sites import REFUSES, Exchange, Sites
from fedsa.engines.summary import is_test
from fedsa.errors import ProtocolError
from fedsa.messages import Message, encode
from fedsa.store import Progress
from fedsa.texts.escapes import for_terminal
from fedsa.types import Moment, Payloads, SplitName, State, Update

__all__ = ["Exchange", "RemoteFleet"]

_MOST = 1e300  # a number beyond it makes no mean
_HEAR_SECONDS = 5.0  # for a site to hear that its answer was not taken


@final
class RemoteFleet(Sites):
    """Clients at sites elsewhere.

    A site that refuses, or answers with what cannot be used, is left out of the round, and `tell` is told why. Where
    the quorum is missed, those that have not answered are asked again, until enough have.

    Args:
        exchange: carries messages.
        sites: names of the sites.
        run: the run's id.
        clients: site to the ids of its clients, of which it must have exactly these; None: as the sites say.
        deadline: seconds that sites have for an answer; None: as long as it takes.
        quorum: clients whose updates a round needs; None: all that were asked.
        tell: is called with a line about each site that is left out or waited for.

    Attributes:
        quorum: clients whose updates a round needs; None: all that were asked.
        progress: how far the run is; sites keep what its last and its chosen round need.
        check: refuses an update of a round that the server cannot use; what it refuses does not count for the quorum.
    """

    def __init__(
        self,
        exchange: Exchange,
        sites: Iterable[str],
        run: str,
        *,
        clients: Mapping[str, Collection[str]] | None = None,
        deadline: float | None = None,
        quorum: int | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(exchange, sites, run, clients=clients, deadline=deadline, tell=tell)
        self.quorum, self.progress = quorum, Progress()
        self.check: Callable[[Update, int], None] = lambda update, round: None

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have the sites train their clients, all at once, and yield the updates in the order of the clients' ids."""
        needed = len(payloads) if self.quorum is None else min(self.quorum, len(payloads))
        updates: dict[str, Update] = {}

        def take(site: str, answer: Message) -> None:
            updates.update(self.updates_in(site, answer, payloads, payloads.round))

        self.step(payloads, {"do": "train"}, take, lambda: len(updates) >= needed)
        for client in payloads:
            if client in updates:
                yield updates[client]

    def updates_in(self, site: str, answer: Message, asked: Collection[str], round: int) -> dict[str, Update]:
        """The updates of a site's clients that its answer has.

        Args:
            site: its name.
            answer: what it has answered.
            asked: the clients that were asked, of whatever site.
            round: the open one.

        Raises:
            ProtocolError: one is missing, is of a client that was not asked, or cannot be used.
        """
        updates = {
            client: _update(client, answer.round, about, answer.states.get(client, {}))
            for client, about in self._own(site, answer, "updates", asked)
        }
        for client, update in updates.items():
            if update.num_examples != self._examples[client]["train"]:
                raise ProtocolError(f"client {client!r} has another number of rows than its site has said")
            self.check(update, round)
        return updates

    def trained_in(self, site: str, answer: Message, asked: Collection[str]) -> dict[str, Update]:
        """With secure aggregation: what a site's answer says of its clients' training. The tensors come in a sum.

        Args:
            site: its name.
            answer: what it has answered.
            asked: the clients that were asked, of whatever site.

        Raises:
            ProtocolError: a client is missing, was not asked, or its numbers cannot be used.
        """
        return {
            client: _update(client, answer.round, self._counted(client, about), {})
            for client, about in self._own(site, answer, "updates", asked)
        }

    def _counted(self, client: str, about: Any) -> Any:
        """What an answer says of a client, with its number of rows as its site has said it in the beginning."""
        return {**about, "num_examples": self._examples[client]["train"]} if isinstance(about, dict) else about

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Have the sites measure their clients, and yield the metrics in the order of the clients' ids."""
        metrics: dict[str, dict[str, float]] = {}

        def take(site: str, answer: Message) -> None:
            arrived = {
                client: _numbers(client, values, {self._metric, "examples"})
                for client, values in self._own(site, answer, "metrics", payloads)
            }
            for client, numbers in arrived.items():
                if numbers["examples"] < 1:
                    raise ProtocolError(f"client {client!r} was measured on no rows")
            metrics.update(arrived)

        # A test is of everybody; validation is of whom there is, as long as that is enough.
        needed = len(payloads) if self.quorum is None or split == "test" else min(self.quorum, len(payloads))
        about = {"do": "evaluate", "split": split, "moment": moment}
        self.step(payloads, about, take, lambda: len(metrics) >= needed)
        for client in payloads:
            if client in metrics:
                yield client, metrics[client]

    def finish(self, summary: Mapping[str, Any], sites: Collection[str]) -> tuple[str, ...]:
        """Tell sites how the run ended, each with the results of its own clients, and wait until they have exported.

        Args:
            summary: the run's; of its results over all clients a site is told none.
            sites: their names.

        Returns:
            The sites that have not said that their adapters are written.
        """
        shared = {
            name: {key: value[key] for key in ("round", "after")} if is_test(name, value) else value
            for name, value in summary.items()
            if name not in ("per_client", "notes", "sites_without_adapters")
        }
        requests = {}
        for site in sorted(sites):
            own = {client: entry for client, entry in summary["per_client"].items() if self._homes[client] == site}
            about = {"summary": {**shared, "per_client": own}}
            requests[site] = encode(Message("finish", self.run, self.progress.round, about))
        for site, _, why in self.ask(requests, "ready", self.progress.round):
            if why:
                self.tell(f"{site} could not write its adapters: {why}")
            else:
                requests.pop(site)
        for site in requests:
            self.tell(f"{site} has not said that its adapters are written; running the server again asks it again")
        return tuple(requests)

    def requests(self, payloads: Payloads, about: Mapping[str, Any]) -> dict[str, bytes]:
        """The message to each site that has one of the clients.

        Args:
            payloads: what they are sent.
            about: what they are to do.
        """
        by_site: dict[str, list[str]] = {}
        for client in payloads:
            by_site.setdefault(self._homes[client], []).append(client)
        kept = sorted({max(self.progress.round, 0), self.progress.chosen_round or 0})
        requests = {}
        for site, clients in by_site.items():
            made = {client: payloads[client] for client in clients}
            versions = {client: payload.version for client, payload in made.items()}
            states = {client: payload.tensors for client, payload in made.items()}
            held = {client: payload.held for client, payload in made.items()}
            said = {**about, "versions": versions, "held": held, "keep": kept}
            requests[site] = encode(Message("step", self.run, payloads.round, said, states))
        return requests

    def step(
        self,
        payloads: Payloads,
        about: Mapping[str, Any],
        take: Callable[[str, Message], None],
        is_enough: Callable[[], bool],
    ) -> None:
        """Send each site the payloads of its clients, and take the answers, until there are enough.

        Args:
            payloads: what clients are sent.
            about: what they are to do.
            take: takes a site's answer, or refuses it with a `ProtocolError`.
            is_enough: whether the round can go on with what was taken.

        Raises:
            ProtocolError: too few are left.
        """
        requests = self.requests(payloads, about)
        while requests:
            reasons: dict[str, str] = {}
            for site, answer, why in self.ask(requests, "update", payloads.round):
                if answer is not None:
                    try:
                        take(site, answer)
                        requests.pop(site)
                        continue
                    except ProtocolError as error:
                        why = for_terminal(str(error))
                reasons[site] = why
                self.tell(f"round {payloads.round}: {site} is left out: {why}")
            self.let_know(reasons, payloads.round)
            if is_enough():
                late = ", ".join(site for site in requests if site not in reasons)
                if late:
                    self.tell(f"round {payloads.round}: {late} has not answered in time, and the round goes on")
                return
            if reasons and requests.keys() == reasons.keys():
                raise ProtocolError(
                    f"round {payloads.round}: too few clients are left; {'; '.join(map(': '.join, reasons.items()))}"
                )
            if requests:
                self.tell(f"round {payloads.round}: waiting for {', '.join(requests)}")

    def let_know(self, reasons: Mapping[str, str], round: int) -> None:
        """Have sites write into their logs why what they sent was not taken; not all of them need hear it.

        Args:
            reasons: by site; of one that has given the reason itself it is left out.
            round: the round that it was asked in.
        """
        reasons = {site: why for site, why in reasons.items() if not why.startswith(REFUSES)}
        requests = {site: encode(Message("refuse", self.run, round, {"why": why})) for site, why in reasons.items()}
        if requests:
            for _ in self.exchange(requests, min(self.deadline or _HEAR_SECONDS, _HEAR_SECONDS)):
                pass  # that they have heard it

    def _own(self, site: str, answer: Message, name: str, asked: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Yield what an answer says of the site's own clients that were asked, of all of them.

        Raises:
            ProtocolError: it says nothing of that kind, leaves a client out, or speaks for another one.
        """
        said = answer.about.get(name)
        if not isinstance(said, dict):
            raise ProtocolError(f"site {site!r} has answered without {name}")
        for client, values in said.items():
            if self._homes.get(client) != site or client not in asked:
                raise ProtocolError(
                    f"site {site!r} speaks for client {client!r}, which is not its own or was not asked"
                )
            yield client, values
        missing = [client for client in asked if self._homes[client] == site and client not in said]
        if missing:
            raise ProtocolError(f"site {site!r} has answered without its client {missing[0]!r}")


def _update(client: str, round: int, about: Any, tensors: State) -> Update:
    """Return a client's update from what its site says of it.

    Raises:
        ProtocolError: a number is missing, or is none.
    """
    count, base = (about.get(name) if isinstance(about, dict) else None for name in ("num_examples", "base_version"))
    if type(count) is not int or type(base) is not int or not 0 <= base < round:
        raise ProtocolError(f"update of client {client!r} for round {round}: its numbers are missing or make no sense")
    numbers = _numbers(client, about.get("metrics"), {"seconds"})
    return Update(client, round, count, tensors, numbers, base_version=base)


def _numbers(client: str, values: Any, needed: Collection[str]) -> dict[str, float]:
    """Return a client's metrics.

    Raises:
        ProtocolError: they are not finite numbers by name, or one that is needed is missing.
    """
    if not isinstance(values, dict) or any(
        type(value) not in (int, float) or not abs(value) < _MOST for value in values.values()
    ):
        raise ProtocolError(f"client {client!r}: its metrics are not finite numbers by their names")
    missing = sorted(set(needed) - set(values))
    if missing:
        raise ProtocolError(f"client {client!r}: its metrics lack {missing[0]!r}")
    return values
