"""The fleet of a simulation: all clients in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from fedsa.client import Site
from fedsa.engines.samples import OnWritten
from fedsa.types import Moment, Payloads, SplitName, Update

__all__ = ["LocalFleet"]


@final
class LocalFleet:
    """All clients in this process, at one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._samples: dict[tuple[int, Moment], OnWritten] = {}  # by the round and the moment of a test

    def keep_samples(self, keep: OnWritten | None, *, after: int, moment: Moment) -> None:
        """Have what the model writes in one test given to a function, once.

        Args:
            keep: the function; None: nothing is kept.
            after: the round whose result is tested.
            moment: what the clients are tested after.
        """
        self._samples = {} if keep is None else {(after, moment): keep}

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Train clients one cohort after the other, when the server asks for their updates."""
        return self.site.train(payloads)

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Measure clients one cohort after the other."""
        keep = self._samples.pop((payloads.round - 1, moment), None) if split == "test" else None
        return self.site.evaluate(payloads, split, moment, on_written=keep)
