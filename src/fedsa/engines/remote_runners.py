"""Overlapping rounds over several sites: a question stays open while rounds end, until its site has answered."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from fedsa.engines.remote import RemoteFleet
from fedsa.engines.sites import answer_in
from fedsa.errors import ProtocolError
from fedsa.messages import decode
from fedsa.store import MessagesUnderWay, Progress
from fedsa.texts.escapes import for_terminal
from fedsa.types import Payloads, Update

__all__ = ["RemoteRunners"]

_TELL_SECONDS = 60.0  # between two lines about the same wait


@dataclass(frozen=True)
class _Question:
    """What a site was asked.

    Attributes:
        body: the message.
        clients: those that it is for.
    """

    body: bytes
    clients: tuple[str, ...]


@final
class RemoteRunners:
    """Clients that train at their sites for as long as it takes.

    A question without an answer is kept with the run. When the server goes on after a crash, it is asked again with the
    same bytes: its site gives the answer that it has, or goes on with it, and does not train twice.

    Args:
        fleet: the sites.
        messages: keeps the questions that have no answer yet.
        progress: tells whose questions were open when the run was interrupted.
    """

    def __init__(self, fleet: RemoteFleet, messages: MessagesUnderWay, progress: Progress) -> None:
        self._fleet, self._messages = fleet, messages
        self._open: dict[tuple[str, int], _Question] = {}  # by site and round
        self._answers: queue.SimpleQueue[tuple[str, int, bytes | None] | Exception] = queue.SimpleQueue()
        self._round = 0  # the open one
        there = {client: round for client, round in progress.underway.items() if client in fleet.clients}
        for site, round in sorted({(fleet.home_of(client), round) for client, round in there.items()}):
            self._ask(round, {site: messages.read(site, round, self._whole)})
        self._kept = set(self._open)

    @property
    def underway(self) -> Mapping[str, int]:
        """The clients whose site has not answered yet, each with the round that it was asked in."""
        return {client: round for (_, round), question in self._open.items() for client in question.clients}

    def begin(self, payloads: Payloads) -> None:
        """Ask the clients' sites; their answers come while the server goes on."""
        self._messages.only(self._kept)  # of the last commit: those that were answered in it have gone
        self._round = payloads.round
        for place in [place for place in self._open if place[0] not in self._fleet.sites]:
            del self._open[place]  # the site has left
        self._ask(payloads.round, self._fleet.requests(payloads, {"do": "train"}))

    def wait(self) -> Sequence[Update]:
        """Wait for the next answer, and return its updates; none, where it cannot be used: its clients are idle again.

        Raises:
            ProtocolError: what carries the messages has failed.
        """
        while True:
            try:
                come = self._answers.get(timeout=_TELL_SECONDS)
            except queue.Empty:
                self._fleet.tell(f"waiting for {', '.join(sorted({site for site, _ in self._open}))}")
                continue
            if isinstance(come, Exception):
                raise come
            site, round, data = come
            question, why = self._open.pop((site, round), None), "it has not answered"
            if question is None:
                continue  # the site has left since
            if data is not None:
                answer, why = answer_in(data, self._fleet.run, "update", round)
                if answer is not None:
                    try:
                        return list(self._fleet.updates_in(site, answer, question.clients, self._round).values())
                    except ProtocolError as error:
                        why = for_terminal(str(error))
            self._fleet.tell(f"{site} is left out with what it was asked in round {round}: {why}")
            self._fleet.let_know({site: why}, round)
            return []

    def keep(self) -> None:
        """Write the questions that are open, each once."""
        for place, question in self._open.items():
            if place not in self._kept:
                self._messages.keep(*place, question.body)
        self._kept = set(self._open)

    def _whole(self, data: bytes) -> bytes:
        """The bytes of a question of this run, after they were looked at."""
        decode(data, run=self._fleet.run)
        return data

    def _ask(self, round: int, requests: Mapping[str, bytes]) -> None:
        """Have questions carried to their sites, and the answers brought here, by a thread of their own."""
        for site, body in requests.items():
            clients = tuple(decode(body, run=self._fleet.run).states)
            self._open[site, round] = _Question(body, clients)
        if requests:
            threading.Thread(target=self._carry, args=(round, requests), name=f"round {round}", daemon=True).start()

    def _carry(self, round: int, requests: Mapping[str, bytes]) -> None:
        silent = dict.fromkeys(requests)
        try:
            for site, data in self._fleet.exchange(requests, None):
                silent.pop(site, None)
                self._answers.put((site, round, data))
            for site in silent:
                self._answers.put((site, round, None))
        except Exception as error:  # whatever it is: who waits must know
            self._answers.put(error)
