"""What commands print: tables, what is being done, the table of clients at the end."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsa.accounting import privacy_in_words
from fedsa.commands.shared.quiet import is_quiet
from fedsa.progress import ProgressDisplay, print_notes, score
from fedsa.texts.escapes import for_json, for_terminal, say
from fedsa.texts.words import counted, some
from fedsa.types import FRACTIONS

if TYPE_CHECKING:
    from fedsa.recipe import Recipe
    from fedsa.store import RunFolder

__all__ = [
    "is_quiet",
    "live_progress",
    "print_json",
    "print_notes",
    "print_table",
    "progress_console",
    "score",
    "show_run",
    "show_summary",
    "status",
]


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(for_json(json_module.dumps(data, indent=2, ensure_ascii=False)))


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right_from: int | None = None,
    whole: int = 0,
    console: Console | None = None,
) -> None:
    """Print a table; columns from ``right_from`` on are numbers: set right, never cut or folded.

    So are the first ``whole`` ones never cut, such as names that are to be copied.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    header, *rows = [[for_terminal(cell) for cell in row] for row in (header, *rows)]
    needed = 0
    for number, (name, *cells) in enumerate(zip(header, *rows, strict=True)):
        right = right_from is not None and number >= right_from
        longest = max(cell_len(cell) for cell in (name, *cells))
        least = longest if right or number < whole else min(longest, 12)
        needed += least + 2
        table.add_column(
            Text(name), justify="right" if right else "left", overflow="fold", no_wrap=right, min_width=least
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as Text: a name may look like markup
    narrow = console or Console()
    wide = Console(file=narrow.file, width=max(narrow.width, needed), highlight=False, emoji=False)
    wide.print(table)


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done while it lasts; gives a function that changes the text. Goes to standard error.

    It goes there also while a library's own messages are led elsewhere.
    """
    if is_quiet():
        yield lambda line: None
        return
    stream = sys.stderr
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        yield lambda line: print(f"{line} ...", file=stream, flush=True)
        return
    with console.status(f"{text} ...") as spinner:
        yield lambda line: spinner.update(f"{line} ...")


def progress_console(*, stderr: bool) -> Console:
    """Return where a command tells on the way what it does: nowhere, where it is asked to be quiet."""
    if is_quiet():
        return Console(quiet=True, force_terminal=False)
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    console.soft_wrap = not console.is_terminal  # in a terminal, lines are broken between words
    return console


@contextmanager
def live_progress(after_interruption: Callable[[], str], *, json: bool) -> Iterator[tuple[Console, ProgressDisplay]]:
    """A console, and the display of a run's progress on it. After Ctrl-C it says how to go on.

    Args:
        after_interruption: gives the sentence that says how to go on.
        json: standard output is for JSON only, so everything here goes to standard error.

    Raises:
        KeyboardInterrupt: after saying how to go on.
    """
    console = progress_console(stderr=json)
    live = ProgressDisplay(console)
    try:
        yield console, live
    except KeyboardInterrupt:
        live.close()
        if is_quiet():
            console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        console.print(f"\ninterrupted: {after_interruption()}", soft_wrap=True)
        raise
    finally:
        live.close()


def show_run(folder: RunFolder, recipe: Recipe, *, json: bool) -> None:
    """Run a recipe in its folder, from where the folder is to the end; show the progress and the result.

    Raises:
        FedsaError: the run cannot be made, or ended early.
        KeyboardInterrupt: after saying how to go on.
    """

    def after_interruption() -> str:
        progress = folder.progress()
        saved = "nothing was trained yet" if progress is None else f"finished rounds are saved ({progress.round})"
        return f"{saved}; go on with: fedsa resume {folder.path}"

    with folder.locked(), live_progress(after_interruption, json=json) as (console, live):
        summary = folder.finished(recipe.rounds)
        if summary is not None:
            from fedsa.runs.report import write_report

            console.print(f"{folder.path} is complete ({counted(recipe.rounds, 'round')}); its report is written anew")
            _show(console, folder.path, summary, write_report(folder.path), json=json)
            return
        with status("loading libraries") as tell:
            tell("loading libraries")
            from fedsa.api import finish
            from fedsa.federation import Federation

            federation = Federation.from_recipe(recipe, on_progress=tell)
        print_notes(federation.notes, console)
        result = finish(federation, folder, [live])
    _show(console, folder.path, result.summary, result.report, json=json)


def _show(console: Console, path: Path, summary: Mapping[str, Any], report: Path, *, json: bool) -> None:
    if json:
        print_json(summary)
        return
    if is_quiet():
        say(str(path))
        return
    show_summary(console, summary)
    lines = [f"\nreport    {report}", f"numbers   {path / 'summary.json'}, {path / 'metrics.jsonl'}"]
    if summary["export"] != "none":
        merge = " --merge" if summary["export"] == "merged model" else ""
        lines.append(f"adapters  fedsa export {path} --all --to DIR{merge}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)  # to be copied whole


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the table of a finished run's clients, and what its figures come to."""
    from fedsa.server import sent_in_words

    metric = summary["metric"]
    rounds = {summary["chosen_round"]: "test", summary["rounds"]: "test_final"}  # one column where they are one
    console.print()
    has_classes = any("majority" in entry for entry in summary["per_client"].values())
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {"rows": lambda entry: str(entry["train_examples"])}
    if has_classes:
        columns["majority"] = lambda entry: score(entry["majority"], metric, unit="")
    columns["before"] = lambda entry: score(entry["before"], metric, unit="")
    for round, which in rounds.items():
        columns[f"round {round}"] = lambda entry, which=which: score(entry[which][metric], metric, unit="")  # type: ignore[misc]
    chosen = f"round {summary['chosen_round']}"
    narrow = sum(len(name) + 2 for name in columns) + 12 + len("  77.4 to 91.3") > console.width
    if not narrow and _ends(next(iter(summary["per_client"].values()))["test"], metric):
        columns[f"{chosen}, 95 %"] = lambda entry: _ends(entry["test"], metric)
    elif "perplexity" in next(iter(summary["per_client"].values()))["test"]:
        columns["perplexity"] = lambda entry: score(entry["test"]["perplexity"], "perplexity")
    print_table(
        ["client", *columns],
        [[client, *(cell(entry) for cell in columns.values())] for client, entry in summary["per_client"].items()],
        right_from=1,
        console=console,
    )
    console.print(
        f"\nTest {metric}{' in %' if metric in FRACTIONS else ''}, each client on its own rows, after "
        + ("it received the aggregate" if summary["evaluated_after"] == "aggregate" else "its local training")
        + f". Round {summary['chosen_round']} was chosen by the {summary['chosen_by']}"
        + ("; majority: always guessing the client's most frequent class." if has_classes else ".")
    )
    if "privacy" in summary:
        console.print(privacy_in_words(summary["privacy"]))
    for name, which in (
        ("chosen round" if len(rounds) > 1 else "chosen and final round", "test"),
        ("final round", "test_final"),
        ("as exported, chosen round" if len(rounds) > 1 else "as exported, round", "test_after_aggregate"),
        ("as exported, final round", "test_final_after_aggregate"),
    ):
        if which not in summary or (len(rounds) == 1 and "final" in which):
            continue
        figures = summary[which]
        rows = sum(entry[which]["examples"] for entry in summary["per_client"].values())
        ends = _ends({metric: figures["weighted_mean"], "examples": rows}, metric)
        console.print(
            f"{name} {figures['round']}: weighted mean {score(figures['weighted_mean'], metric, unit='')}"
            + (f" (95 % interval {ends}, {counted(rows, 'row')})" if ends else "")
            + f", mean {score(figures['mean'], metric, unit='')}, std {score(figures['std'], metric, unit='')}, "
            f"worst {score(figures['worst'], metric, unit='')} ({for_terminal(figures['worst_client'])})"
            + _untrained(figures, metric),
            markup=False,
        )
    _show_beside(console, summary)
    if summary.get("pools_rows"):
        console.print(
            "No federation: the training rows of all clients were put together, and one adapter was trained on them"
        )
    for kind in () if summary.get("pools_rows") else summary.get("sharing_by_round", [summary]):
        sent = ", ".join(sent_in_words(kind["sharing_plan"])) or "nothing"
        alike: Sequence[int] = kind["rounds"] if "sharing_by_round" in summary else ()
        where = f"in {counted(len(alike), 'round')} ({some(alike)})" if alike else "and round"
        console.print(
            f"Sent by each client {where}: {sent} ({kind['upload_parameters']:,} of "
            f"{counted(kind['trained_parameters'], 'trained parameter')}, {counted(kind['upload_bytes'], 'byte')})"
        )
    console.print(
        f"{summary['train_seconds']:.0f} s of local training, {summary['wall_seconds']:.0f} s in all, "
        f"{summary['peak_rss_bytes'] / 2**20:.0f} MiB at the peak"
    )


def _untrained(figures: Mapping[str, Any], metric: str) -> str:
    """Return the end of a line on a test: what the clients came to that had not trained; empty where all had."""
    count = figures.get("untrained_clients")
    mean = score(figures["untrained_mean"], metric, unit="") if count else ""
    return f", {counted(count, 'client')} that had not trained by then: mean {mean}" if count else ""


def _ends(figures: Mapping[str, Any], metric: str) -> str:
    """Return the 95 % interval of a result as text; empty where the metric has none."""
    from fedsa.statistics import interval

    ends = interval(figures[metric], figures["examples"], metric)
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else ""


def _show_beside(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what is not of the federation's clients with their own models."""
    metric, unseen, shared = summary["metric"], summary.get("unseen"), summary.get("global_model")
    if unseen:
        length = counted(unseen["steps"], "step") if "steps" in unseen else counted(unseen["epochs"], "epoch")
        before, after = unseen["before"], unseen["after"]
        console.print(
            f"never in the federation: {counted(unseen['clients'], 'client')}, from round {unseen['round']} (start "
            f"{unseen['start']}): weighted mean {score(before['weighted_mean'], metric, unit='')} before, "
            f"{score(after['weighted_mean'], metric, unit='')} after {length} on their own rows, "
            f"worst {score(after['worst'], metric, unit='')} ({for_terminal(after['worst_client'])})",
            markup=False,
        )
    if shared:
        console.print(
            f"one global model for all ({shared['how']}, round {shared['round']}; for it "
            f"{', '.join(shared['left_the_clients']) or 'nothing'} left the clients): weighted mean "
            f"{score(shared['weighted_mean'], metric, unit='')}, worst "
            f"{score(shared['worst'], metric, unit='')} ({for_terminal(shared['worst_client'])})",
            markup=False,
        )
