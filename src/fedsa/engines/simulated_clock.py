"""Overlapping rounds in a simulation: clients train one after the other, and a simulated clock says who comes when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import final

import numpy as np

from fedsa.client.site import Site
from fedsa.messages import Message, decode, encode
from fedsa.recipe import BufferedSettings
from fedsa.seeds import derive_seed
from fedsa.store import MessagesUnderWay, Progress
from fedsa.types import Payloads, Update

__all__ = ["ClockedRunners", "pace_of"]


def pace_of(client: str, settings: BufferedSettings, seed: int) -> float:
    """The simulated time that a client takes for one step: as the recipe gives it, or drawn by the run's seed."""
    if client in settings.paces:
        return settings.paces[client]
    drawn = np.random.default_rng(derive_seed(seed, "pace", client)).random()
    return float(settings.pace_spread**drawn)


@final
class ClockedRunners:
    """The clients of a simulation. Each trains as soon as it is asked, and its update is held back until it is due.

    So a client's state is of the round in which it was asked, as at a site elsewhere, and what is held back is what a
    resumed run needs.

    Args:
        site: with all clients.
        messages: keeps the updates that are held back from one round to the next.
        run: the run's id.
        settings: tell the clients' paces.
        progress: tells who is under way, and the time; its clock goes on with each update that comes.
    """

    def __init__(
        self, site: Site, messages: MessagesUnderWay, run: str, settings: BufferedSettings, progress: Progress
    ) -> None:
        self._site, self._messages, self._run = site, messages, run
        self._settings, self._progress = settings, progress
        self._held: dict[str, tuple[float, Update]] = {}  # client -> when it is due, and what it sends then
        for client, round in progress.underway.items():
            self._held[client] = _unpacked(messages.read(client, round, partial(decode, run=run)))
        self._kept = set(progress.underway.items())

    @property
    def underway(self) -> Mapping[str, int]:
        """The clients whose updates are not due yet, each with the round that it was asked in."""
        return {client: update.round for client, (_, update) in self._held.items()}

    def begin(self, payloads: Payloads) -> None:
        """Train clients; their updates come when the clock says so."""
        self._messages.only(self._kept)  # of the last commit: those that were used in it have gone
        for update in self._site.train(payloads):
            pace = pace_of(update.client, self._settings, self._site.seed)
            self._held[update.client] = self._progress.clock + update.metrics["steps"] * pace, update

    def wait(self) -> Sequence[Update]:
        """Put the clock forward to the next update; of two at the same time, the one whose client's id is less."""
        client = min(self._held, key=lambda client: (self._held[client][0], client))
        self._progress.clock, update = self._held.pop(client)
        return [update]

    def keep(self) -> None:
        """Write the updates that are held back, each once."""
        for client, (due, update) in self._held.items():
            if (client, update.round) not in self._kept:
                self._messages.keep(client, update.round, encode(_packed(self._run, due, update)))
        self._kept = set(self.underway.items())


def _packed(run: str, due: float, update: Update) -> Message:
    about = {
        "due": due,
        "num_examples": update.num_examples,
        "metrics": dict(update.metrics),
        "base_version": update.base_version,
    }
    return Message("update", run, update.round, about, {update.client: update.tensors})


def _unpacked(message: Message) -> tuple[float, Update]:
    ((client, tensors),) = message.states.items()
    about = message.about
    update = Update(
        client, message.round, about["num_examples"], tensors, about["metrics"], base_version=about["base_version"]
    )
    return about["due"], update
