"""The page of a run that goes on: how far it is, and what its rounds have come to."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsa.runs.pages.engine import duration, page_engine, score
from fedsa.runs.report.figures import draw_figures
from fedsa.runs.report.page import MOMENTS, about_recipe
from fedsa.runs.report.rounds import metric_of, moment_of, rounds_of
from fedsa.runs.report.scored import scored_clients
from fedsa.store import BegunRun
from fedsa.texts.words import counted

__all__ = ["running_html", "waiting_html"]


@dataclass(frozen=True)
class _SoFar:
    """What a client has come to.

    Attributes:
        client: its id.
        rows: of its training split.
        trained: the last round that it trained in; None, as the next ones: in none.
        loss: of that training.
        before: the metric on validation before any training.
        last: the same when it was evaluated last.
    """

    client: str
    rows: int | None
    trained: int | None
    loss: float | None
    before: float | None
    last: float | None

    @property
    def change(self) -> float | None:
        """By how much the client is better than before."""
        return None if self.before is None or self.last is None else self.last - self.before


def running_html(run: BegunRun, *, is_in_use: bool, version: str) -> str:
    """Return the page of a run that is not finished.

    Args:
        run: what is known of it.
        is_in_use: whether a process works on it.
        version: which page it is, of those that are served.
    """
    progress, lines = run.progress, run.lines
    metric = "accuracy" if progress is None else metric_of(lines, progress.chosen_round, progress.chosen_score)
    rounds = rounds_of(lines, metric)
    chosen = None if progress is None else progress.chosen_round
    engine = page_engine(metric)
    everyone = {client: about for client, about in run.clients.items() if not about.get("held_out")}
    after = "training" if moment_of(lines) == "validation_after_training" else run.recipe.evaluation.evaluate_after
    return engine.get_template("report/running.html.jinja").render(
        **about_recipe(run.path.resolve().name, tomllib.loads(run.recipe_text), run.recipe_text),
        version=version,
        round=0 if progress is None else max(0, progress.round),
        state=_state(run, is_in_use=is_in_use),
        in_words=_in_words(run, metric),
        progress=progress,
        count=len(everyone),
        metric=metric.replace("_", " "),
        moment=MOMENTS.get(after, MOMENTS["aggregate"]),
        rounds=rounds,
        scores=scored_clients(lines),
        chosen=chosen,
        figures=draw_figures(lines, rounds, metric, chosen, "best so far") if rounds else {},
        clients=_clients(everyone, lines, metric),
        environment=run.environment,
    )


def waiting_html(title: str, sentences: Sequence[str], version: str) -> str:
    """Return a page of a few sentences.

    Args:
        title: of the page.
        sentences: what is said.
        version: which page it is, of those that are served.
    """
    engine = page_engine("accuracy")
    return engine.get_template("report/waiting.html.jinja").render(title=title, sentences=sentences, version=version)


def _state(run: BegunRun, *, is_in_use: bool) -> str:
    progress, rounds = run.progress, run.recipe.rounds
    done = 0 if progress is None else max(0, progress.round)
    if not is_in_use:
        going_on = f"`fedsa resume {run.path.name}` goes on, in the folder that holds it."
        return f"Nobody works on this run: it was interrupted after {done} of {counted(rounds, 'round')}. {going_on}"
    if progress is None:
        return (
            "The run has begun: rows and model are loaded. Its first figures come after the evaluation before training."
        )
    if progress.round < 0:
        return "The clients are evaluated before any training."
    if done == rounds:
        every = f"All {counted(rounds, 'round')} are done."
        return f"{every} The clients’ test rows are looked at now; then the report is here."
    left = ""
    if done and progress.wall_seconds:
        each = progress.wall_seconds / (done + 0.5)  # the evaluation before training is among them
        left = f" About {_about(each * (rounds - done))} are left, and the test at the end."
    return f"Round {done + 1} of {rounds} is under way.{left}"


def _about(seconds: float) -> str:
    r"""Return a time that is only estimated.

    >>> _about(42.3), _about(200)
    ('42 s', '3\xa0min\xa020\xa0s')
    """
    return f"{seconds:.0f} s" if seconds < 100 else duration(seconds)


def _in_words(run: BegunRun, metric: str) -> list[str]:
    progress = run.progress
    if progress is None or progress.chosen_round is None:
        return []
    return [
        f"Best so far on validation: round {progress.chosen_round}, with {score(progress.chosen_score, metric)} "
        f"{metric.replace('_', ' ')} (weighted mean over clients). What will be told at the end is measured on "
        "test rows, which have no part in this."
    ]


def _clients(
    everyone: Mapping[str, Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], metric: str
) -> list[_SoFar]:
    moment = moment_of(lines)
    trained: dict[str, Mapping[str, Any]] = {}
    values: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        if line.get("train"):
            trained[line["client"]] = line
        value = (line.get(moment) or {}).get(metric)
        if value is not None and math.isfinite(value):
            values.setdefault(line["client"], []).append((line["round"], value))
    found = []
    for client, about in everyone.items():
        last, measured = trained.get(client), values.get(client, [])
        loss = None if last is None else last["train"].get("loss")
        found.append(
            _SoFar(
                client,
                about.get("train_examples"),
                None if last is None else last["round"],
                loss if loss is not None and math.isfinite(loss) else None,
                measured[0][1] if measured and measured[0][0] == 0 else None,
                measured[-1][1] if measured and measured[-1][0] else None,
            )
        )
    return found
