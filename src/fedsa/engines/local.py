"""The fleet of a simulation: all clients in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from fedsa.client.evaluation import Sampling
from fedsa.client.site import Site
from fedsa.types import Moment, Payloads, SplitName, Update

__all__ = ["LocalFleet"]


@final
class LocalFleet:
    """All clients in this process, at one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._samples: dict[tuple[int, Moment], Sampling] = {}  # by the round and the moment of a test

    def keep_samples(self, sampling: Sampling | None, *, after: int, moment: Moment) -> None:
        """Keep the texts that the model writes in one test.

        Args:
            sampling: of which rows; None: nothing is kept.
            after: the round that is tested.
            moment: what the clients are tested after.
        """
        self._samples = {} if sampling is None else {(after, moment): sampling}

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Train clients one cohort after the other, when the server asks for their updates."""
        return self.site.train(payloads)

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Measure clients one cohort after the other."""
        sampling = self._samples.pop((payloads.round - 1, moment), None) if split == "test" else None
        return self.site.evaluate(payloads, split, moment, sampling=sampling)
