"""The report of a run as it is now, whatever state the run is in: for a page that follows it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedsa.errors import FedsaError
from fedsa.runs.pages.engine import OF_OTHER_FORM
from fedsa.runs.report.page import report_html
from fedsa.runs.report.running import running_html, waiting_html
from fedsa.store import BegunRun, is_in_use

__all__ = ["LivePage", "LiveReport"]

_WATCHED = ("recipe.toml", "state.json", "analysis/means.json")
"""Files that tell by their times whether there is another page."""
_LOCK_SECONDS = 5.0
"""For how long it is taken for known whether a process works on a run: to find out, its lock is taken for a moment."""


@dataclass(frozen=True)
class LivePage:
    """A page at some moment.

    Attributes:
        version: equal for equal pages.
        html: the page.
    """

    version: str
    html: str


@final
class LiveReport:
    """The page of a run, made anew where the run has gone on. Threads may ask at the same time.

    Args:
        run: its folder, which need not be there yet.
        against: another finished run, which each client is compared with when the run is finished.
        clock: seconds that only rise.
    """

    def __init__(self, run: Path, against: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._against, self._clock = run, against, clock
        self._making = threading.Lock()
        self._page = LivePage("", "")
        self._in_use, self._known_until = False, -1.0
        self._stamps: list[tuple[int, int] | None] = []

    def page(self) -> LivePage:
        """Return the page as of now."""
        with self._making:
            version = self._version()
            if version != self._page.version:
                self._page = LivePage(version, self._html(version))
            return self._page

    def _version(self) -> str:
        stamps = [_stamp(self._run / name) for name in _WATCHED]
        if stamps != self._stamps or self._clock() >= self._known_until:  # who writes works on it
            self._in_use = is_in_use(self._run)
            self._known_until = self._clock() + _LOCK_SECONDS
            self._stamps = stamps
        return hashlib.sha256(repr([self._in_use, *stamps]).encode()).hexdigest()[:16]

    def _html(self, version: str) -> str:
        name = self._run.resolve().name
        if not (self._run / "recipe.toml").is_file():
            there = f"The folder {name} is there, but no run has begun in it."
            sentences = [
                there if self._run.is_dir() else f"There is no folder {name} yet.",
                "This page waits for the run, and shows it as soon as it begins.",
            ]
            return waiting_html(f"Waiting for {name}", sentences, version)
        try:
            run = BegunRun.read(self._run)
            if run.is_measured:
                return report_html(self._run, against=self._against, version=version)
            return running_html(run, is_in_use=self._in_use, version=version)
        except FedsaError as error:
            return waiting_html(f"{name} cannot be shown", [str(error)], version)
        except OF_OTHER_FORM as error:
            text = f"Its files do not have the form that this version of fedsa writes ({error})."
            return waiting_html(f"{name} cannot be shown", [text], version)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written anew; None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
