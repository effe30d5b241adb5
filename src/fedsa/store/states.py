"""What outlives a round: a client's state, and how far the run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedsa.types import State

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ClientState", "Progress"]


@dataclass(frozen=True)
class ClientState:
    """What a client keeps between rounds.

    Attributes:
        tensors: its own value of every tensor that is not frozen.
        optimizer_state: named ``slot|key``; empty unless it is kept from round to round.
        version: the newest server version that it holds.
        step_state: what the steps on its updates keep, by name.
    """

    tensors: State
    optimizer_state: Mapping[str, Tensor]
    version: int
    step_state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Progress:
    """How far a run is: the commit point.

    Attributes:
        round: the last finished round; 0: only the evaluation before any training; -1: not even that.
        chosen_round: the best round so far by the weighted validation mean, or None.
        chosen_score: its score.
        metrics_bytes: length of ``metrics.jsonl`` up to this round.
        sent_bytes: length of ``sent.jsonl`` up to this round.
        train_seconds: in local training, so far.
        evaluation_seconds: in evaluation, so far.
        wall_seconds: of all finished rounds.
        upload_bytes: of all clients, so far.
        download_bytes: of all clients, so far.
        data: fingerprint of the clients' rows.
        fingerprints: of what else must be the same when the run goes on, by its name.
        interruptions: times that the run was resumed.
        underway: where rounds overlap, each client that still trains, with the round that it was asked in.
        clock: where rounds overlap in a simulation, the simulated time.
    """

    round: int = -1
    chosen_round: int | None = None
    chosen_score: float | None = None
    metrics_bytes: int = 0
    sent_bytes: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    wall_seconds: float = 0.0
    upload_bytes: int = 0
    download_bytes: int = 0
    data: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)
    interruptions: int = 0
    underway: dict[str, int] = field(default_factory=dict)
    clock: float = 0.0
