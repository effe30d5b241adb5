"""The sites of a run: which clients are where, who is ready, and what each answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from fedsa.agreement import Agreement, hash_of_state
from fedsa.errors import ProtocolError
from fedsa.messages import Message, decode, encode
from fedsa.texts.escapes import for_terminal
from fedsa.types import SPLITS, State

__all__ = ["REFUSES", "Exchange", "Sites", "answer_in"]

REFUSES = "it refuses:"
"""How the reason begins that a site has given itself."""


class Exchange(Protocol):
    """The whole of what a carrier of messages does for the server."""

    def __call__(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterable[tuple[str, bytes]]:
        """Send each site its request, and give the answers as they come, each with the site's name.

        Args:
            requests: site to bytes.
            deadline: seconds; what has not come by then is left out. None: wait for all.
        """
        ...


class Sites:
    """The sites of a run, as the server knows them.

    Args:
        exchange: carries messages.
        sites: names of the sites.
        run: the run's id.
        clients: site to the ids of its clients, of which it must have exactly these; None: as the sites say.
        deadline: seconds that sites have for an answer; None: as long as it takes.
        tell: is called with a line about each site that is left out or waited for.

    Attributes:
        sites: names of the sites, sorted.
        run: the run's id.
        exchange: carries messages.
        deadline: seconds that sites have for an answer; None: as long as it takes.
        tell: is called with a line about each site that is left out or waited for.
    """

    def __init__(
        self,
        exchange: Exchange,
        sites: Iterable[str],
        run: str,
        *,
        clients: Mapping[str, Collection[str]] | None,
        deadline: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self.sites, self.run = tuple(sorted(sites)), run
        self.exchange, self.deadline, self.tell, self._expected = exchange, deadline, tell, clients
        self._homes: dict[str, str] = {}  # client -> its site
        self._metric = ""  # the agreement's
        self._examples: dict[str, Mapping[str, int]] = {}  # client -> its number of rows by split

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client's id, sorted; known after `set_up`."""
        return tuple(sorted(self._homes))

    @property
    def about_clients(self) -> Mapping[str, Mapping[str, Any]]:
        """What sites say of their clients: ``train_examples``, ``validation_examples``, ``test_examples``, ``site``."""
        return {
            client: {**{f"{split}_examples": count for split, count in counts.items()}, "site": self._homes[client]}
            for client, counts in self._examples.items()
        }

    def set_up(self, agreement: Agreement) -> State | None:
        """Learn which clients are where, and have every site say that it holds what was agreed upon.

        Args:
            agreement: what server and sites must hold alike.

        Returns:
            The tensors that all clients start from, which one site sends; None where the server needs no values.

        Raises:
            ProtocolError: a site refuses, two sites name one client, or the tensors are others.
        """
        self._metric = agreement.metric
        chosen = min(self.sites) if agreement.needs_initial_values else None
        requests = {
            site: encode(
                Message("setup", self.run, 0, {"fingerprint": agreement.fingerprint(), "initial": site == chosen})
            )
            for site in self.sites
        }
        answers: dict[str, Message] = {}
        while requests:
            for site, answer, why in self.ask(requests, "ready", 0):
                if answer is None:
                    raise ProtocolError(f"site {site!r} cannot take part: {why}")
                answers[site] = answer
            requests = {site: request for site, request in requests.items() if site not in answers}
            if requests:
                self.tell(f"waiting for {', '.join(requests)} to be ready")
        for site in self.sites:
            self._take_in(site, answers[site], None if self._expected is None else self._expected[site])
        if chosen is None:
            return None
        initial = answers[chosen].states.get("initial", {})
        if hash_of_state(initial) != agreement.adapter.initial:
            raise ProtocolError(f"site {chosen!r} has not sent the initial tensors that were agreed upon")
        return initial

    def invite(self, agreement: Agreement, site: str, clients: Collection[str], seconds: float) -> bool:
        """Ask a site that has come in the middle of a run whether it is ready, and take it in if it says so in time.

        Args:
            agreement: what server and sites must hold alike.
            site: its name.
            clients: ids of its clients, of which it must have exactly these.
            seconds: that it has for the answer.
        """
        about = {"fingerprint": agreement.fingerprint(), "initial": False}
        request = encode(Message("setup", self.run, 0, about))
        for _, answer, why in self.ask({site: request}, "ready", 0, seconds):
            try:
                if answer is None:
                    raise ProtocolError(why)
                self._take_in(site, answer, clients)
            except ProtocolError as error:
                self.tell(f"{site} cannot join: {error}")
                return False
            self.sites = tuple(sorted({*self.sites, site}))
            return True
        return False

    def leave_out(self, site: str) -> None:
        """Ask a site nothing any more."""
        self.sites = tuple(other for other in self.sites if other != site)
        gone = [client for client, home in self._homes.items() if home == site]
        for client in gone:
            del self._homes[client], self._examples[client]

    def weights(self, weighting: str) -> Mapping[str, int]:
        """How much each client counts in a mean, by its number of training rows or as one."""
        return {c: count["train"] if weighting == "num_examples" else 1 for c, count in self._examples.items()}

    def home_of(self, client: str) -> str:
        """The name of a client's site."""
        return self._homes[client]

    def know(self, clients: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the clients' sites from what `about_clients` said when the run began, where nobody is to be asked."""
        self._homes = {client: str(entry["site"]) for client, entry in clients.items()}

    def _take_in(self, site: str, answer: Message, expected: Collection[str] | None) -> None:
        """Learn which clients a site has.

        Raises:
            ProtocolError: they are not those that are expected, or another site has one of them.
        """
        said = _examples(site, answer)
        if expected is not None and {*said} != {*expected}:
            raise ProtocolError(
                f"site {site!r} has the clients {', '.join(sorted(said))}; on the roster are "
                f"{', '.join(sorted(expected))}"
            )
        for client in said:
            if client in self._homes:
                raise ProtocolError(f"client {client!r} is at two sites: {self._homes[client]!r} and {site!r}")
        self._homes |= dict.fromkeys(said, site)
        self._examples |= said

    def ask(
        self, requests: Mapping[str, bytes], kind: str, round: int, seconds: float | None = None
    ) -> Iterator[tuple[str, Message | None, str]]:
        """Send sites their messages, and yield each that answers, its answer (None: it cannot be used), and why not.

        Args:
            requests: site to message.
            kind: of the answers.
            round: that the messages belong to.
            seconds: that sites have; None: the fleet's deadline.
        """
        for site, data in self.exchange(dict(requests), self.deadline if seconds is None else seconds):
            yield site, *answer_in(data, self.run, kind, round)


def answer_in(data: bytes, run: str, kind: str, round: int) -> tuple[Message | None, str]:
    """The answer that bytes hold, and "", or None, and why it cannot be used.

    Args:
        data: what came.
        run: the run's id.
        kind: what is to be answered with.
        round: the round that the question belongs to.
    """
    try:
        message = decode(data, run=run)
    except ProtocolError as error:
        return None, str(error)
    if message.kind == "refuse":
        return None, f"{REFUSES} {for_terminal(str(message.about.get('why'))[:300])}"
    if message.kind != kind or message.round != round:
        return None, f"it has answered with {message.kind!r} of round {message.round}"
    return message, ""


def _examples(site: str, answer: Message) -> Mapping[str, Mapping[str, int]]:
    """Return the numbers of rows that a site says its clients have, by split.

    Raises:
        ProtocolError: they are missing, or make no sense.
    """
    said = answer.about.get("examples")
    if not isinstance(said, dict) or any(
        not isinstance(counts, dict)
        or set(counts) != set(SPLITS)
        or any(type(count) is not int or count < 0 for count in counts.values())
        for counts in said.values()
    ):
        raise ProtocolError(f"site {site!r} has not said which clients it has, with how many rows")
    return said
