"""The way of a run while it goes: a bar and a line for each round, the same for the command line and for Python."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedsa.callbacks import Callback
from fedsa.escapes import for_terminal
from fedsa.types import FRACTIONS

if TYPE_CHECKING:
    from fedsa.recipe import Recipe

__all__ = ["ProgressDisplay", "print_notes", "score"]


def score(value: float, metric: str, unit: str = " %") -> str:
    """Return a metric's value as text: in per cent where it is a part of one.

    >>> score(0.8613, "accuracy"), score(-2.5, "log_likelihood"), score(0.5, "f1", unit="")
    ('86.1 %', '-2.500', '50.0')
    """
    return f"{100 * value:.1f}{unit}" if metric in FRACTIONS else f"{value:.3f}"


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print sentences on the data that a user should know, a line each."""
    for note in notes:
        console.print(f"note: {for_terminal(note)}", markup=False, highlight=False, emoji=False, soft_wrap=True)


class ProgressDisplay(Callback):
    """A line for each round and, in a terminal, a bar over all local trainings.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("round {task.fields[round]}/{task.fields[rounds]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("local trainings"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[client]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._round_started = time.perf_counter()

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        """Say what starts, and show the bar."""
        from fedsa.server import sample_size
        from fedsa.tasks import make_task

        self._metric = make_task(recipe.task, ()).metric
        each = sample_size(recipe.fraction_train, len(clients))
        self._rounds = recipe.rounds
        self._console.print(
            f"{recipe.algorithm} on {recipe.adapter.variant}, {len(clients)} clients, {recipe.rounds} rounds, "
            f"{recipe.compute.device} ({recipe.compute.precision}, {recipe.compute.threads} threads)"
            + (f", going on after round {finished_rounds}" if finished_rounds else "")
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "",
            total=each * recipe.rounds,
            completed=each * finished_rounds,
            round=finished_rounds,
            rounds=recipe.rounds,
            client="",
        )
        self._round_started = time.perf_counter()

    def on_client_trained(self, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """Move the bar on."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, round=round, client=for_terminal(client))

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Print the round's line."""
        seconds = time.perf_counter() - self._round_started
        self._round_started = time.perf_counter()
        losses = [line["train"]["loss"] for line in lines if line["train"]]
        parts = ["before training" if round == 0 else f"round {round:>{len(str(self._rounds))}}"]
        if losses:
            parts.append(f"train loss {sum(losses) / len(losses):.3f}")
        if validation:
            parts.append(
                f"validation mean {score(validation['weighted_mean'], self._metric)}, "
                f"worst {score(validation['worst'], self._metric)} "
                f"({for_terminal(validation['worst_client'])})"
            )
        parts.append(f"{seconds:.1f} s")
        self._console.print("  ".join(parts))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
