"""The fleet of a federation over several sites: messages go out and come in, by whatever carries bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, final

from fedsa.agreement import Agreement, hash_of_state
from fedsa.errors import ProtocolError
from fedsa.messages import Message, decode, encode
from fedsa.types import Moment, Payloads, SplitName, State, Update

__all__ = ["Exchange", "RemoteFleet"]


class Exchange(Protocol):
    """The whole of what a carrier of messages does for the server."""

    def __call__(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterable[tuple[str, bytes]]:
        """Send each site its request, and give the answers as they come, each with the site's name.

        Args:
            requests: site to bytes.
            deadline: seconds; what has not come by then is left out. None: wait for all.
        """
        ...


@final
class RemoteFleet:
    """Clients at sites elsewhere.

    Args:
        exchange: carries messages.
        sites: names of the sites.
        run: the run's id.
        deadline: seconds that a site has for an answer; None: as long as it takes.
    """

    def __init__(self, exchange: Exchange, sites: Iterable[str], run: str, *, deadline: float | None = None) -> None:
        self._exchange, self._sites, self._run, self._deadline = exchange, tuple(sites), run, deadline
        self._homes: dict[str, str] = {}  # client -> its site

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client's id, sorted; known after `set_up`."""
        return tuple(sorted(self._homes))

    def set_up(self, agreement: Agreement) -> State | None:
        """Learn which clients are where, and have every site say that it holds what was agreed upon.

        Args:
            agreement: what server and sites must hold alike.

        Returns:
            The tensors that all clients start from, which one site sends; None where the server needs no values.

        Raises:
            ProtocolError: a site refuses or has not answered, two sites name one client, or the tensors are others.
        """
        chosen = min(self._sites) if agreement.needs_initial_values else None
        requests = {
            site: Message("setup", self._run, 0, {"fingerprint": agreement.fingerprint(), "initial": site == chosen})
            for site in self._sites
        }
        answers = self._ask({site: encode(request) for site, request in requests.items()}, "ready")
        missing = sorted(set(self._sites) - set(answers))
        if missing:
            raise ProtocolError(f"site {missing[0]!r} has not answered")
        for site in sorted(answers):
            examples = answers[site].about.get("examples")
            if not isinstance(examples, dict):
                raise ProtocolError(f"site {site!r} has not said which clients it has")
            for client in examples:
                if client in self._homes:
                    raise ProtocolError(f"client {client!r} is at two sites: {self._homes[client]!r} and {site!r}")
                self._homes[client] = site
        if chosen is None:
            return None
        initial = answers[chosen].states.get("initial", {})
        if hash_of_state(initial) != agreement.adapter.initial:
            raise ProtocolError(f"site {chosen!r} has not sent the initial tensors that were agreed upon")
        return initial

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have the sites train their clients, all at once, and yield the updates in the order of the clients' ids."""
        updates = {
            client: _update(client, payloads.round, about, answer.states.get(client, {}))
            for site, answer in self._step(payloads, {"do": "train"}).items()
            for client, about in self._own(site, answer, "updates")
        }
        for client in payloads:
            if client in updates:
                yield updates[client]

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Have the sites measure their clients, and yield the metrics in the order of the clients' ids."""
        metrics = {
            client: _numbers(client, values)
            for site, answer in self._step(payloads, {"do": "evaluate", "split": split, "moment": moment}).items()
            for client, values in self._own(site, answer, "metrics")
        }
        for client in payloads:
            if client in metrics:
                yield client, metrics[client]

    def _step(self, payloads: Payloads, about: Mapping[str, Any]) -> dict[str, Message]:
        """Send each site the payloads of its clients, and return the answers by site."""
        by_site: dict[str, list[str]] = {}
        for client in payloads:
            by_site.setdefault(self._homes[client], []).append(client)
        requests = {}
        for site, clients in by_site.items():
            made = {client: payloads[client] for client in clients}
            versions = {client: payload.version for client, payload in made.items()}
            states = {client: payload.tensors for client, payload in made.items()}
            requests[site] = encode(Message("step", self._run, payloads.round, {**about, "versions": versions}, states))
        return self._ask(requests, "update", payloads.round)

    def _own(self, site: str, answer: Message, name: str) -> Iterator[tuple[str, Any]]:
        """Yield what an answer says of the site's own clients.

        Raises:
            ProtocolError: it says nothing of that kind, or speaks for a client of another site.
        """
        said = answer.about.get(name)
        if not isinstance(said, dict):
            raise ProtocolError(f"site {site!r} has answered without {name}")
        for client, values in said.items():
            if self._homes.get(client) != site:
                raise ProtocolError(f"site {site!r} speaks for client {client!r}, which is not its own")
            yield client, values

    def _ask(self, requests: Mapping[str, bytes], kind: str, round: int = 0) -> dict[str, Message]:
        """Return the sites' answers, by site.

        Raises:
            ProtocolError: an answer is a refusal, or does not fit.
        """
        answers: dict[str, Message] = {}
        for site, data in self._exchange(requests, self._deadline):
            message = decode(data, run=self._run)
            if message.kind == "refuse":
                raise ProtocolError(f"site {site!r} refuses: {message.about.get('why')}")
            if message.kind != kind or message.round != round:
                raise ProtocolError(f"site {site!r} has answered with {message.kind!r} of round {message.round}")
            answers[site] = message
        return answers


def _update(client: str, round: int, about: Any, tensors: State) -> Update:
    """Return a client's update from what its site says of it.

    Raises:
        ProtocolError: a number is missing, or is none.
    """
    count, base = (about.get(name) if isinstance(about, dict) else None for name in ("num_examples", "base_version"))
    if type(count) is not int or type(base) is not int or not 0 <= base < round:
        raise ProtocolError(f"update of client {client!r} for round {round}: its numbers are missing or make no sense")
    return Update(client, round, count, tensors, _numbers(client, about.get("metrics")), base_version=base)


def _numbers(client: str, values: Any) -> dict[str, float]:
    """Return a client's metrics.

    Raises:
        ProtocolError: they are not numbers by name.
    """
    if not isinstance(values, dict) or any(type(value) not in (int, float) for value in values.values()):
        raise ProtocolError(f"client {client!r}: its metrics are not numbers by their names")
    return values
