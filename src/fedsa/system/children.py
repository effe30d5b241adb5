"""Processes that this one starts, and that end for sure when it does."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

from fedsa.system import guard

__all__ = ["Child", "KeptChild", "stop_all"]


@final
class Child:
    """A command under a guard: it ends with this process, whatever ends that, and all that it started ends with it.

    Args:
        command: program and arguments.
        log: file that its output is appended to.
        environment: its environment; None: as here.
        grace: seconds between asking it to end and killing it.
    """

    def __init__(
        self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, grace: float = 10
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, "-I", "-S", guard.__file__, str(grace), *command]
        with log.open("ab") as output:
            self._guard = subprocess.Popen(  # noqa: S603 - the caller's command
                program,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for this process, which then ends its children
            )

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self._guard.poll() is None

    def wait(self) -> int:
        """Wait until the command has ended, and return its exit status."""
        status = self._guard.wait()
        self.ask_to_end()  # closes the pipe
        return status

    def ask_to_end(self) -> None:
        """Ask the command to end, and do not wait for it."""
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()

    def stop(self) -> None:
        """End the command, and return when nothing of it is left."""
        self.ask_to_end()
        self.wait()


@final
class KeptChild:
    """A command that is started again whenever it ends, until it is stopped.

    Between two starts it waits: a second, and twice as long each time that the command has ended within half a minute.

    Args: as for `Child`.
    """

    def __init__(
        self, command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, grace: float = 10
    ) -> None:
        self._start = functools.partial(Child, command, log, environment=environment, grace=grace)
        self._ends = threading.Event()
        self._child = self._start()
        self._thread = threading.Thread(target=self._keep, name=f"keeps {Path(command[0]).name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> KeptChild:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def ask_to_end(self) -> None:
        """Ask the command to end for good, and do not wait for it."""
        self._ends.set()
        self._child.ask_to_end()

    def stop(self) -> None:
        """End the command for good, and return when nothing of it is left."""
        self.ask_to_end()
        self._thread.join()
        self._child.stop()

    def _keep(self) -> None:
        pause = 1.0
        while True:
            began = time.monotonic()
            self._child.wait()
            if time.monotonic() - began > 30:
                pause = 1.0
            if self._ends.wait(pause):
                return
            pause = min(2 * pause, 60)
            self._child = self._start()
            if self._ends.is_set():  # asked between the two lines above
                self._child.ask_to_end()


def stop_all(children: Iterable[Child | KeptChild]) -> None:
    """End commands, all at once, and return when nothing of them is left."""
    children = list(children)
    for child in children:
        child.ask_to_end()
    for child in children:
        child.stop()
