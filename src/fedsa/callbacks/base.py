"""The six moments of a run at which a listener is told something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsa.recipe import Recipe

__all__ = ["Callback"]


class Callback:
    """A listener. Override the methods you need; by default they do nothing. They must not change their arguments."""

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        """The run starts, or continues after ``finished_rounds``; also where clients have joined it or left it."""

    def on_round_begin(self, round: int, clients: Sequence[str]) -> None:
        """A round begins, in which ``clients`` train; round 0 is the evaluation before any training."""

    def on_client_trained(self, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """A client has finished its local training (``loss``, ``steps``, ``seconds``)."""

    def on_client_evaluated(self, round: int, split: str, client: str, metrics: Mapping[str, float]) -> None:
        """A client was evaluated with its tensors of ``round``, on ``validation`` after it or ``test`` at the end.

        It may be called more than once for a round, if clients are evaluated at several moments.
        """

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """A round is safe on disk.

        Args:
            round: its number; 0 is the evaluation before any training.
            lines: the new lines of ``metrics.jsonl``: one for each client that trained or was evaluated.
            validation: mean figures over the clients that were evaluated; None if the round was not evaluated.
        """

    def on_run_end(self, summary: Mapping[str, Any]) -> None:
        """The run is complete; ``summary`` is what ``summary.json`` holds."""
