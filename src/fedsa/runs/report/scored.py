"""How far each client's updates were from those of the others, over the rounds of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["ScoredClient", "scored_clients"]


@dataclass(frozen=True)
class ScoredClient:
    """The poison scores of a client.

    Attributes:
        client: its id.
        rounds: in which its update was looked at.
        median: of its scores.
        highest: of them.
        round: the one with the highest.
        left_out: rounds in which its update did not count.
    """

    client: str
    rounds: int
    median: float
    highest: float
    round: int
    left_out: tuple[int, ...]


def scored_clients(lines: Iterable[Mapping[str, Any]]) -> list[ScoredClient]:
    """Return the clients whose updates were looked at, the one with the highest median score first.

    Args:
        lines: of ``metrics.jsonl``.
    """
    by_client: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for line in lines:
        if line.get("poison"):
            by_client[line["client"]].append((line["round"], line["poison"]))
    found = []
    for client, entries in by_client.items():
        round, worst = max(entries, key=lambda entry: entry[1]["score"])
        out = tuple(number for number, entry in entries if entry["left_out"])
        middle = median(entry["score"] for _, entry in entries)
        found.append(ScoredClient(client, len(entries), middle, worst["score"], round, out))
    return sorted(found, key=lambda each: -each.median)
