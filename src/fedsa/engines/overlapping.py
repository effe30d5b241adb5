"""Rounds that overlap: a round ends when enough updates have come, and who still trains goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, final

from fedsa.engines.fleet import Fleet
from fedsa.errors import ProtocolError
from fedsa.recipe import BufferedSettings
from fedsa.store import Progress
from fedsa.types import Moment, Payloads, SplitName, Update

__all__ = ["OverlappingFleet", "Runners"]


class Runners(Protocol):
    """Clients that train while the server goes on: the whole of what overlapping rounds need of an engine."""

    @property
    def underway(self) -> Mapping[str, int]:
        """The clients that train now, each with the round that it was asked in."""
        ...

    def begin(self, payloads: Payloads) -> None:
        """Have clients begin to train. What comes of it comes later."""
        ...

    def wait(self) -> Sequence[Update]:
        """Wait for what comes next, from whoever; nothing, where a client has come to no update. It is idle then."""
        ...

    def keep(self) -> None:
        """Make safe what is needed to wait for those that train now, also after a crash."""
        ...


@final
class OverlappingFleet:
    """A fleet whose clients may train for longer than a round.

    Args:
        fleet: measures the clients.
        runners: train them.
        settings: say when a round ends.
        rounds: of the run. The last one waits for everybody: the tests need all clients, and no work is lost.
        progress: the run's; it is told who is under way, before a round is committed.
    """

    def __init__(
        self, fleet: Fleet, runners: Runners, settings: BufferedSettings, rounds: int, progress: Progress
    ) -> None:
        self._fleet, self._runners, self._settings = fleet, runners, settings
        self._rounds, self._progress = rounds, progress

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have clients begin, wait until enough updates have come, and yield these in the order of the clients' ids.

        Raises:
            ProtocolError: nobody trains any more, and no update has come.
        """
        self._runners.begin(payloads)
        come: dict[str, Update] = {}
        while self._runners.underway and not self._is_enough(come, payloads.round):
            come |= {update.client: update for update in self._runners.wait()}
        if not come:
            raise ProtocolError(f"round {payloads.round}: no client that was asked has sent an update")
        self._runners.keep()
        self._progress.underway = dict(self._runners.underway)
        for client in sorted(come):
            yield come[client]

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Measure clients; none of those that still train may be among them."""
        return self._fleet.evaluate(payloads, split, moment)

    def _is_enough(self, come: Mapping[str, Update], round: int) -> bool:
        """Whether a round ends with these updates; one that is too late to count does not count here either."""
        counted = [update for update in come.values() if round - update.round <= self._settings.max_staleness]
        return round < self._rounds and len(counted) >= self._settings.buffer
