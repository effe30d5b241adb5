"""The way of a run while it goes: live lines, and a line for each round; the command line and Python have the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from fedsa.callbacks import Callback
from fedsa.texts.escapes import for_terminal
from fedsa.texts.words import counted, cut
from fedsa.types import FRACTIONS

if TYPE_CHECKING:
    from fedsa.cost.pace import Pace
    from fedsa.recipe import Recipe

__all__ = ["LiveLines", "ProgressDisplay", "print_notes", "score"]


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


class LiveLines(Progress):
    """Lines that change while a run goes on: a bar for the run and its round, and a text on the client that was last.

    Attributes:
        last: that text.
    """

    last = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give the bar, and the text below it."""
        yield from super().get_renderables()
        if self.last:
            yield Text(self.last, "dim", no_wrap=True, overflow="ellipsis")


class ProgressDisplay(Callback):
    """A line for each round and, in a terminal, live lines: the round, the client that was last, rates, the time left.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace: Pace | None = None
        self._bar: LiveLines | None = None
        self._round, self._doing, self._done, self._all = 0, "", 0, 0
        self._round_started = time.perf_counter()

    def on_run_begin(self, run: Path, recipe: Recipe, clients: Sequence[str], finished_rounds: int) -> None:
        """Say what starts, and show the bar."""
        from fedsa.cost.pace import Pace, passes_on_validation  # it loads torch
        from fedsa.server import sample_size
        from fedsa.tasks import make_task

        self.close()  # the bar of before, where the clients of a run have changed
        self._metric = make_task(recipe.task, ()).metric
        self._recipe = recipe
        self._evaluated = sample_size(recipe.evaluation.fraction_evaluate, len(clients)) * passes_on_validation(
            recipe.evaluation
        )
        compute = recipe.compute
        where = (
            f"{compute.device} ({compute.precision}, {counted(compute.threads, 'thread')})"
            if compute.threads
            else "computed at the sites"
        )
        self._console.print(
            f"{recipe.algorithm} on {recipe.adapter.variant}, {counted(len(clients), 'client')}, "
            f"{counted(recipe.rounds, 'round')}, {where}"
            + (f", going on after round {finished_rounds}" if finished_rounds else "")
        )
        about = json.loads((run / "clients.json").read_text(encoding="utf-8"))
        outside = [entry for entry in about.values() if entry.get("held_out")]
        self._pace = Pace(recipe, {client: about[client] for client in clients}, finished_rounds, outside=outside)
        self._round, self._round_started = finished_rounds, time.perf_counter()
        self._now("testing" if finished_rounds == recipe.rounds else "", self._pace.tests)
        if self._console.is_terminal:
            self._show(self._pace)

    def _show(self, pace: Pace) -> None:
        width = len(f"round {self._recipe.rounds}/{self._recipe.rounds}  evaluating 00/00    0:00:00  left 0:00:00")
        self._bar = LiveLines(
            TextColumn("{task.description}", markup=False),
            BarColumn(max(4, min(40, self._console.width - width - 2))),
            TimeElapsedColumn(),
            _TimeLeft(pace),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._bar.add_task(self._told(), total=1.0)
        self._bar.start()

    def _told(self) -> str:
        """Return the round and what is done in it."""
        where = f"round {self._round}/{self._recipe.rounds}" if self._round else "before training"
        return f"{where}  {self._doing} {self._done}/{self._all}" if self._doing else where

    def _now(self, doing: str, of: int) -> None:
        self._doing, self._done, self._all = doing, 0, of

    def _advance(self) -> None:
        if self._bar is not None and self._pace is not None:
            self._bar.update(self._bar.task_ids[0], description=self._told(), completed=self._pace.part)

    def _tell_of(self, client: str, figures: Sequence[str], kind: Literal["training", "evaluation"]) -> None:
        """Say in the live lines what a client has come to, and how fast rows go."""
        if self._bar is not None and self._pace is not None:
            rate = self._pace.rows_per_second(kind)
            told = [*figures, *([] if rate is None else [_rate(rate)])]
            self._bar.last = f"{for_terminal(cut(client, 40))}  {', '.join(told)}"

    def on_round_begin(self, round: int, clients: Sequence[str]) -> None:
        """Name the round that begins."""
        self._round, self._round_started = round, time.perf_counter()
        self._now("training" if clients else "evaluating", len(clients) or self._evaluated)
        if self._pace is not None:
            self._pace.round_begins(round, clients)
        self._advance()

    def on_client_trained(self, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """Move the bar on."""
        self._done += 1
        if self._pace is None:
            return
        self._pace.trained(client)
        figures = [f"train loss {metrics['loss']:.3f}"] if "loss" in metrics else []
        if "steps" in metrics and "seconds" in metrics:
            figures.append(f"{counted(int(metrics['steps']), 'step')} in {metrics['seconds']:.1f} s")
        self._tell_of(client, figures, "training")
        if self._done == self._all:
            self._now("evaluating" if self._pace.evaluates else "", self._evaluated)
        self._advance()

    def on_client_evaluated(self, round: int, split: str, client: str, metrics: Mapping[str, float]) -> None:
        """Move the bar on."""
        self._done += 1
        if self._pace is not None:
            self._pace.evaluated(client, split, round)
            self._all = self._pace.tests if split == "test" else self._all
            figures = (
                [f"{self._metric} {score(metrics[self._metric], self._metric)}"] if self._metric in metrics else []
            )
            self._tell_of(client, [*figures, f"on {split}"], "evaluation")
        self._advance()

    def on_round_end(
        self, round: int, lines: Sequence[Mapping[str, Any]], validation: Mapping[str, Any] | None
    ) -> None:
        """Print the round's line."""
        seconds = time.perf_counter() - self._round_started
        losses = [line["train"]["loss"] for line in lines if line["train"]]
        parts = ["before training" if round == 0 else f"round {round:>{len(str(self._recipe.rounds))}}"]
        if losses:
            parts.append(f"train loss {sum(losses) / len(losses):.3f}")
        if validation:
            parts.append(
                f"validation mean {score(validation['weighted_mean'], self._metric)}, "
                f"worst {score(validation['worst'], self._metric)} "
                f"({for_terminal(validation['worst_client'])})"
            )
        rate = self._pace.rows_per_second("training") if losses and self._pace is not None else None
        parts.append(f"{seconds:.1f} s" + ("" if rate is None else f", {_rate(rate)}"))
        self._console.print("  ".join(parts))
        for line in lines:
            if line.get("rejected"):
                self._console.print(f"  {for_terminal(line['rejected'])}", markup=False, highlight=False)
        if round == self._recipe.rounds and self._pace is not None:
            self._now("testing", self._pace.tests)
            self._advance()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _rate(per_second: float) -> str:
    """Return a rate of rows as text.

    >>> _rate(0.25), _rate(1234.5)
    ('0.25 rows/s', '1,234 rows/s')
    """
    return f"{per_second:,.0f} rows/s" if per_second >= 10 else f"{per_second:.2g} rows/s"


@final
class _TimeLeft(ProgressColumn):
    """How long the run still takes; it counts down between its events."""

    max_refresh = 0.5

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        left = self._pace.left
        return Text("left -:--:--" if left is None else f"left {timedelta(seconds=round(left))}", "progress.remaining")
