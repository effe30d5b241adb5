"""Secure aggregation in a simulation: the same integers, added up to the same sum, without masks.

The masks of all sites cancel in the sum, to the last bit. In one process there is nobody to hide anything from, and
masks between all pairs of clients would only cost time. So a simulation leaves them out, and comes to the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, final

from fedsa.engines.fleet import Fleet
from fedsa.errors import UserError
from fedsa.secure import FEWEST, LARGEST, FixedPoint
from fedsa.texts.words import counted
from fedsa.types import Moment, Payloads, SplitName, State, Update

__all__ = ["SummedFleet", "about_sums", "check_enough"]


def about_sums(point: FixedPoint) -> dict[str, Any]:
    """What a summary says of secure aggregation: the largest error of a mean, and the largest value that fits."""
    about = {"largest_error": point.largest_error, "largest_value": LARGEST}
    return {"secure_aggregation": about}


def check_enough(count: int, what: str) -> None:
    """Refuse a sum of so few that it would show single ones.

    Args:
        count: how many are in a round's sum.
        what: one of them, in words.

    Raises:
        UserError: they are too few.
    """
    if count < FEWEST:
        raise UserError(
            f"secure_aggregation = true: a round has {counted(count, what)}. A sum of fewer than {FEWEST} would show "
            "single ones: take more, or set secure_aggregation = false"
        )


@final
class SummedFleet:
    """A fleet whose clients send integers that are only used in a sum.

    Args:
        fleet: the clients.
        point: how their values become integers.
        weights: client id to how much it counts in the mean.

    Attributes:
        point: how their values become integers.
    """

    def __init__(self, fleet: Fleet, point: FixedPoint, weights: Mapping[str, int]) -> None:
        self._fleet, self.point, self._weights = fleet, point, weights

    def train(self, payloads: Payloads) -> Iterator[Update]:
        """Have clients train, and yield what they send, as it is without its masks.

        Raises:
            TrainingError: a value does not fit.
        """
        for update in self._fleet.train(payloads):
            whose = f"client {update.client!r}, round {update.round}"
            yield replace(update, tensors=self.point.encode(update.tensors, self._weights[update.client], whose))

    def evaluate(self, payloads: Payloads, split: SplitName, moment: Moment) -> Iterator[tuple[str, dict[str, float]]]:
        """Measure clients."""
        return self._fleet.evaluate(payloads, split, moment)

    def open_sum(self, round: int, clients: Collection[str], sums: State) -> State:
        """The weighted mean, from the sum of what clients sent.

        Args:
            round: the round.
            clients: those that are in the sum.
            sums: the sum.
        """
        return self.point.decode_mean(sums, sum(self._weights[client] for client in clients))
