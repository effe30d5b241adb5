"""What each round of a run came to, over all its clients."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from fedsa.statistics import summarize

__all__ = ["Round", "metric_of", "moment_of", "rounds_of"]

_NO_METRICS = {"after", "examples", "loss"}


@dataclass(frozen=True)
class Round:
    """A round.

    Attributes:
        number: its number; 0 is before any training.
        trained: clients that trained.
        loss: of training, mean over those clients; None: none is known.
        validation: the metric on validation, weighted mean over the clients that were evaluated; None: none was.
        worst: the lowest of those clients' values.
        worst_client: whose it is.
        upload_bytes: by all clients.
        download_bytes: to all clients.
        seconds: of local training, all clients together.
    """

    number: int
    trained: int
    loss: float | None
    validation: float | None
    worst: float | None
    worst_client: str
    upload_bytes: int
    download_bytes: int
    seconds: float


def rounds_of(lines: Iterable[Mapping[str, Any]], metric: str) -> list[Round]:
    """Return the rounds that lines of ``metrics.jsonl`` tell of, in their order.

    Args:
        lines: all of them.
        metric: by which rounds are chosen.
    """
    lines = list(lines)
    by_round: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        by_round[line["round"]].append(line)
    moment = moment_of(lines)
    return [_round(number, by_round[number], metric, moment) for number in sorted(by_round)]


def _round(number: int, lines: Sequence[Mapping[str, Any]], metric: str, moment: str) -> Round:
    training = [line["train"] for line in lines if line.get("train")]
    losses = [each["loss"] for each in training if math.isfinite(each.get("loss", math.nan))]
    values, weights = {}, {}
    for line in lines:
        measured = line.get(moment) or {}
        if math.isfinite(measured.get(metric, math.nan)):
            values[line["client"]], weights[line["client"]] = measured[metric], measured.get("examples") or 1
    found = summarize(values, weights) if values else None
    return Round(
        number,
        trained=len(training),
        loss=mean(losses) if losses else None,
        validation=None if found is None else found.weighted_mean,
        worst=None if found is None else found.worst,
        worst_client="" if found is None else found.worst_client,
        upload_bytes=sum(line.get("upload_bytes") or 0 for line in lines),
        download_bytes=sum(line.get("download_bytes") or 0 for line in lines),
        seconds=sum(each.get("seconds") or 0.0 for each in training),
    )


def moment_of(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the name in lines of the results on validation that a round is chosen by."""
    return "validation" if any("validation" in line for line in lines) else "validation_after_training"


def metric_of(lines: Sequence[Mapping[str, Any]], chosen: int | None, score: float | None) -> str:
    """Return the metric that a round was chosen by, of a run that goes on: its summary is not there to tell.

    Args:
        lines: of ``metrics.jsonl``.
        chosen: the round.
        score: its value; None: no round is chosen yet.
    """
    moment = moment_of(lines)
    names: dict[str, None] = dict.fromkeys(
        str(name) for line in lines for name in line.get(moment) or {} if name not in _NO_METRICS
    )
    if chosen is None or score is None or len(names) < 2:
        return next(iter(names), "accuracy")

    def distance(name: str) -> float:
        values = [each.validation for each in rounds_of(lines, name) if each.number == chosen]
        return math.inf if not values or values[0] is None else abs(values[0] - score)

    return min(names, key=distance)
