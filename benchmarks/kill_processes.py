"""Processes that `kills.py` kills: forked from one that has loaded the libraries, each in a group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fedsa.api
import fedsa.runs.adapt
import fedsa.runs.export  # noqa: F401
from fedsa.agreement import AGREEMENT, Agreement
from fedsa.cli import main as command_line
from fedsa.deploy import worker
from fedsa.deploy.preparing import prepare
from fedsa.deploy.site import handler_of
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import RemoteFleet
from fedsa.recipe import parse_recipe

SECONDS = 300.0  # for a command that is not killed
_LOOK = 0.002
TIMES = ("metrics.jsonl", "state.json", "summary.json", "report.html", "environment.json", "sent.jsonl")


@dataclass
class Process:
    """A process of its own.

    Attributes:
        number: its id.
        log: what it prints.
        began: when it was started.
    """

    number: int
    log: Path
    began: float
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            number, status = os.waitpid(self.number, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if number else None
        return self.code is not None

    def ended_within(self, seconds: float) -> bool:
        """Wait for a time from its start; return whether it has ended by then."""
        while not self.ended() and time.monotonic() - self.began < seconds:
            time.sleep(_LOOK)
        return self.ended()

    def wait(self, seconds: float) -> float:
        """Wait for its end, and return the seconds that it took.

        Raises:
            RuntimeError: it failed, or does not end.
        """
        if not self.ended_within(seconds):
            self.kill()
            raise RuntimeError(f"it has not ended in {seconds:.0f} s: {self.log}")
        if self.code:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"exit code {self.code}: {' | '.join(said)[:500]}")
        return time.monotonic() - self.began

    def kill(self) -> None:
        """Kill it, and what it has started, with -9."""
        if not self.ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.number, signal.SIGKILL)
            _, status = os.waitpid(self.number, 0)
            self.code = os.waitstatus_to_exitcode(status)


def forked(do: Callable[[], object], log: Path) -> Process:
    """Do something in a process of its own."""
    number = os.fork()
    if number:
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it may have done so, or ended
            os.setpgid(number, number)
        return Process(number, log, time.monotonic())
    code = 1
    try:
        os.setpgid(0, 0)
        with log.open("ab", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(each), "w", buffering=1, encoding="utf-8") for each in (1, 2))
        torch.set_num_threads(1)
        do()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _command(words: Sequence[str]) -> Callable[[], None]:
    def do() -> None:
        sys.argv = ["fedsa", *words]
        command_line()

    return do


def run_command(words: Sequence[str], log: Path) -> float:
    """Run a command to its end, and return its seconds.

    Raises:
        RuntimeError: it failed.
    """
    return forked(_command(words), log).wait(SECONDS)


@dataclass(frozen=True)
class Killed:
    """A command that was to be killed.

    Attributes:
        came: the kill came before the command's end.
    """

    came: bool

    @classmethod
    def after(cls, seconds: float, words: Sequence[str], log: Path, *, group: bool = False) -> Killed:
        """Start a command, and kill it after a time.

        Args:
            seconds: from its start.
            words: the command's.
            log: what it prints.
            group: what it has started in groups of their own is killed too, as by a machine that loses its power.

        Raises:
            RuntimeError: it failed by itself before.
        """
        process = forked(_command(words), log)
        if process.ended_within(seconds):
            process.wait(0)
            return cls(False)
        below = _below(process.number) if group else []
        process.kill()
        for number in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return cls(True)


def _below(number: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(number).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but those that have times in them."""
    if not folder.exists():
        return {}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TIMES)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# -- what is run -------------------------------------------------------------------------------------------------------


def make_template(root: Path, sites: Sequence[str]) -> None:
    """Write a tiny model, rows, a recipe, a sweep, a new client's rows, and the folders of a federation."""
    import tomli_w
    from golden import recipe, write_model, write_rows

    write_model(root / "model")
    write_rows(root / "rows.csv")
    settings = recipe(root, "fedsa", "lora") | {"rounds": 4}
    settings["evaluation"] = {"samples": 0}
    settings["training"]["trainer"] = "sequential"  # type: ignore[index]
    (root / "recipe.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    rows = (root / "rows.csv").read_text(encoding="utf-8").splitlines()
    new = [rows[0], *(row for row in rows[1:] if row.endswith("site 1"))]
    (root / "new.csv").write_text("\n".join(new) + "\n", encoding="utf-8")
    sweep = {"recipe": str(root / "recipe.toml"), "methods": ["fedsa"], "seeds": [0], "rates": [0.02]}
    (root / "sweep.toml").write_text(tomli_w.dumps(sweep), encoding="utf-8")
    prepare(parse_recipe(settings), root / "federation", sites)


def worker_of(folder: Path, site: str) -> Process:
    """Start the worker of a site, on a socket in its folder."""
    place = folder / site
    return forked(lambda: worker.serve(handler_of(place), _socket(folder, site)), folder / f"{site}.log")


def _socket(folder: Path, site: str) -> Path:
    return folder / f"{site}.socket"


def serve_federation(folder: Path, sites: Sequence[str]) -> Process:
    """Start the server of a federation. It asks the sites' workers themselves, one after the other."""

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            yield site, worker.ask(_socket(folder, site), data, given_up=lambda: False)

    def do() -> None:
        agreement = Agreement.read(folder / sites[0] / AGREEMENT)
        with open_server_folder(folder / "out", agreement.recipe).locked() as opened:
            fleet = RemoteFleet(exchange, sites, run_id_of(agreement, sites))
            serve(agreement, opened, fleet, engine="none")

    return forked(do, folder / "server.log")
