"""A sweep's runs: which one is next, and each as ``fedsa run`` in a process of its own.

Whoever works on a run holds the lock beside its folder: the sweep that started it, and its process, which keeps the
lock when the sweep is killed. So a sweep that is begun again, or a second one, waits for that run and does not start it
twice.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import IO, Any

from filelock import lock_descriptor

from fedsa.errors import RunFolderError
from fedsa.recipe import Recipe
from fedsa.store import FinishedRun, RunFolder, is_in_use, recipe_of
from fedsa.sweep.grid import Cell, Grid, Group, differences

__all__ = ["Child", "Result", "chosen_rate", "missing_runs", "next_cells", "read_result", "run_sweep", "scores"]

_SECONDS = "processor seconds: "
_EXIT = "exit code: "
_FAILED = 1
"""The exit code of a failure that the same command would meet again, a loss that is not finite say. 2 is a mistake that
can be mended, and the others are interruptions: such runs are tried again."""

_GRACE_SECONDS = 30


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: its run folder.
        summary: what its ``summary.json`` holds; None: it failed.
        failure: why.
        processor_seconds: what its process took of the processor, start and imports included, all parts of an
            interrupted run together; None where its log does not say. Wall time on a shared machine says little.
        recipe: the run's resolved recipe; None: it failed.
    """

    folder: Path
    summary: Mapping[str, Any] | None
    failure: str = ""
    processor_seconds: float | None = None
    recipe: Recipe | None = None

    @property
    def score(self) -> float:
        """The weighted validation mean at the chosen round; below all others for a run that failed."""
        return float("-inf") if self.summary is None else float(self.summary["chosen_score"])


Results = Mapping[Cell, Result]


# -- which run is next -------------------------------------------------------------------------------------------------


def scores(group: Group, grid: Grid, results: Results) -> dict[float, float]:
    """Return the mean score over the tuning seeds at each rate that was tried on all of them, ascending."""
    seeds = grid.tuning_seeds(group)
    rates = sorted({cell.rate for cell in results if cell.group == group})
    return {
        rate: mean(results[Cell(group, rate, seed)].score for seed in seeds)
        for rate in rates
        if all(Cell(group, rate, seed) in results for seed in seeds)
    }


def next_cells(group: Group, grid: Grid, results: Results) -> tuple[list[Cell], float | None]:
    """Return the runs that a row of the table needs next, and its learning rate once that is chosen.

    The rates of the file are tried on the tuning seeds. While the best is the lowest or the highest, half or twice it
    is tried too, ``max_extensions`` times at most. The rate is chosen on validation alone; of equals, the lowest.
    A row whose runs failed at every rate has none.
    """
    rates, seeds, every = grid.rates(group), grid.tuning_seeds(group), grid.seeds(group)
    if len(rates) == 1:
        return [cell for seed in every if (cell := Cell(group, rates[0], seed)) not in results], rates[0]
    for left in range(grid.file.max_extensions, -1, -1):
        missing = [cell for seed in seeds for rate in rates if (cell := Cell(group, rate, seed)) not in results]
        if missing:
            return missing, None
        found = scores(group, grid, results)
        best = max(rates, key=lambda rate: found[rate])
        if not left or best not in (rates[0], rates[-1]):
            break
        rates = sorted([*rates, float(f"{best / 2 if best == rates[0] else best * 2:g}")])
    if found[best] == float("-inf"):
        return [], None
    return [cell for seed in every if (cell := Cell(group, best, seed)) not in results], best


def chosen_rate(group: Group, grid: Grid, results: Results) -> float | None:
    """Return a row's learning rate, or None where it is not chosen yet, or no rate will do."""
    return next_cells(group, grid, results)[1]


def missing_runs(grid: Grid, results: Results) -> dict[Group, str]:
    """Return the rows of the table that lack a run, each with what it lacks."""
    missing = {}
    for group in grid.groups:
        rate = chosen_rate(group, grid, results)
        if rate is None:
            missing[group] = "not all rates are run" if next_cells(group, grid, results)[0] else "every rate failed"
            continue
        lacking = [seed for seed in grid.seeds(group) if not _has_summary(results.get(Cell(group, rate, seed)))]
        if lacking:
            missing[group] = f"rate {rate:g}, seed {', '.join(map(str, lacking))}"
    return missing


def _has_summary(result: Result | None) -> bool:
    return result is not None and result.summary is not None


# -- one run -----------------------------------------------------------------------------------------------------------


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _log_text(folder: Path) -> str:
    log = _log(folder)
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def _processor_seconds(text: str) -> float | None:
    found = re.findall(rf"^{_SECONDS}([0-9.]+)$", text, re.MULTILINE)
    return float(found[-1]) if found else None


def _last_end(text: str) -> tuple[int | None, str]:
    """Return the exit code of the last process that wrote a log, and the reason it gave; None: it has not ended."""
    *_, last, end = ["", *text.split(f"\n{_EXIT}")]
    if f"\n{_EXIT}" not in text:
        return None, ""
    code = int(end.partition("\n")[0])
    lines = [line.strip() for line in last.strip().splitlines()]
    begun = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if begun:
        return code, " ".join(lines[begun[-1] :]).removeprefix("error: ")  # a message may have several lines
    return code, lines[-1] if lines else f"its process ended with code {code}"


def read_result(cell: Cell, grid: Grid, out: Path) -> Result | None:
    """The result of a cell's run; None if the run does not exist or is not finished.

    Raises:
        RunFolderError: the folder holds a run that is not what the sweep asks for, or is damaged.
    """
    folder = grid.folder(cell, out)
    if (folder / "recipe.toml").exists():
        asked, made = grid.recipe(cell), recipe_of(RunFolder(folder))
        wrong = differences(asked, made)
        if wrong:
            raise RunFolderError(
                f"{folder} is another run than the sweep asks for ({'; '.join(wrong)}): change the sweep, move that "
                "folder away, or give another --out (in Python `out`)"
            )
        # A run that has lost its summary is resumed, which measures it anew.
        if RunFolder.open(folder).is_measured and (folder / "summary.json").exists():
            finished = FinishedRun.open(folder)
            return Result(folder, finished.summary, "", _processor_seconds(_log_text(folder)), finished.recipe)
    text = _log_text(folder)
    code, reason = _last_end(text)
    return Result(folder, None, reason, _processor_seconds(text)) if code == _FAILED else None


def _claim(folder: Path) -> IO[bytes] | None:
    """Return the locked file that says that a run is ours, or None while another process works on it.

    The lock ends when the file is closed here and in the run's process, however they end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    claim = folder.with_name(f"{folder.name}.lock").open("ab")
    if lock_descriptor(claim.fileno(), blocking=False) and not is_in_use(folder):
        return claim
    claim.close()
    return None


class Child:
    """A run in a process of its own, begun or gone on with; its output goes to a log beside its folder.

    Args:
        cell: which.
        arguments: what follows ``fedsa``.
        folder: the run folder.
        threads: of the process.
        claim: what `_claim` gave; closed when the process has ended.
    """

    def __init__(self, cell: Cell, arguments: Sequence[str], folder: Path, threads: int, claim: IO[bytes]) -> None:
        self.cell, self.folder, self._claim = cell, folder, claim
        self.started = time.monotonic()
        self._before = _processor_seconds(_log_text(folder)) or 0.0
        self._used = 0.0
        with _log(folder).open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(  # noqa: S603  fedsa's own words, and no shell
                [sys.executable, "-m", "fedsa", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C at the terminal is for the sweep, which tells its runs
                pass_fds=[] if sys.platform == "win32" else [claim.fileno()],  # so it outlives a sweep that is killed
            )

    def ended(self) -> int | None:
        """Return the exit code, or None while it runs. Its processor seconds are written to the log."""
        code = self._poll()
        if code is not None:
            self._claim.close()
            with _log(self.folder).open("a", encoding="utf-8") as log:
                log.write(f"\n{_EXIT}{code}\n{_SECONDS}{self._before + self._used:.1f}\n")
        return code

    def _poll(self) -> int | None:
        if sys.platform == "win32":
            import psutil

            with suppress(psutil.NoSuchProcess):  # then what was seen last is all there is
                times = psutil.Process(self._process.pid).cpu_times()
                self._used = times.user + times.system
            return self._process.poll()
        pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        self._used = used.ru_utime + used.ru_stime
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def interrupt(self) -> None:
        """Ask it to stop; what it has finished is saved."""
        if sys.platform == "win32":
            self._process.terminate()
        else:  # not SIGINT, which a shell's background jobs ignore, and their children with them
            os.kill(self._process.pid, signal.SIGTERM)  # it is not waited for yet, so the number is still its own

    def kill(self) -> None:
        """Stop it at once; finished rounds are safe all the same."""
        if sys.platform == "win32":
            self._process.kill()
        else:
            os.kill(self._process.pid, signal.SIGKILL)


def _start(cell: Cell, grid: Grid, out: Path, threads: int, claim: IO[bytes]) -> Child:
    folder = grid.folder(cell, out)
    begun = (folder / "recipe.toml").exists()
    return Child(cell, ["resume", str(folder)] if begun else grid.arguments(cell, folder), folder, threads, claim)


def _stop(children: Sequence[Child]) -> None:
    """End all, and wait until they have."""
    for child in children:
        child.interrupt()
    patience, left = time.monotonic() + _GRACE_SECONDS, list(children)
    while left := [child for child in left if child.ended() is None]:
        if time.monotonic() > patience:
            patience = float("inf")
            for child in left:
                child.kill()
        time.sleep(0.05)


# -- all of them -------------------------------------------------------------------------------------------------------


def run_sweep(
    grid: Grid,
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    retry: bool = False,
    run: bool = True,
    tell: Callable[[Results, Sequence[Child], Sequence[Cell]], None] = lambda results, children, waiting: None,
) -> dict[Cell, Result]:
    """The results of all runs, after running those that are not finished. A failed run does not stop the others.

    A run on which another process works (of a sweep that was killed, or of a second one) is waited for; what it leaves
    unfinished is gone on with.

    Args:
        grid: the runs.
        out: the folder of their folders.
        jobs: runs at once.
        threads: of each.
        retry: try runs again that failed for good, an earlier time.
        run: False: only read what is there.
        tell: told again and again of what is known, what runs, and what another process works on.

    Raises:
        RunFolderError: a folder holds another run than the sweep asks for; runs are stopped first, as for any error.
    """
    results: dict[Cell, Result] = {}
    looked: set[Cell] = set()
    children: list[Child] = []

    def read_wanted() -> list[Cell]:
        """Read what is there, and what becomes known to be wanted by that; return the runs that are missing."""
        while True:
            wanted = [cell for group in grid.groups for cell in next_cells(group, grid, results)[0]]
            if looked.issuperset(wanted):
                return [cell for cell in wanted if cell not in [child.cell for child in children]]
            for cell in [cell for cell in wanted if cell not in looked]:
                looked.add(cell)
                found = read_result(cell, grid, out)
                if found is not None and not (retry and found.failure):
                    results[cell] = found

    try:
        while True:
            for child in list(children):
                if child.ended() is not None:
                    children.remove(child)
                    results[child.cell] = read_result(child.cell, grid, out) or _unfinished(child)
            wanted, waiting = read_wanted(), []
            for cell in wanted if run else []:
                if len(children) == jobs:
                    break
                claim = _claim(grid.folder(cell, out))
                if claim is None:
                    waiting.append(cell)
                    continue
                found = read_result(cell, grid, out)  # whoever had it may have finished it
                if found is None or (retry and found.failure):
                    children.append(_start(cell, grid, out, threads, claim))
                else:
                    claim.close()
                    results[cell] = found
            tell(results, children, waiting)
            if not children and not (run and read_wanted()):
                return results
            time.sleep(0.1)
    finally:
        _stop(children)


def _unfinished(child: Child) -> Result:
    """Return the result of a run that ended without one, though not for good."""
    text = _log_text(child.folder)
    return Result(child.folder, None, _last_end(text)[1], _processor_seconds(text))
