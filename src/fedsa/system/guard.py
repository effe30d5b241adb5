"""A program that runs one command and leaves nothing of it behind; `fedsa.system.children` starts it.

Its standard input is a pipe that its owner holds open. When the owner ends, in whatever way, the pipe closes; then, and
on SIGTERM, the command is asked to end, and killed after a grace. Processes that the command started end with it, those
too that have left its process group: on Linux, orphans become children of the guard. The standard library is enough.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["main"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl


def main(grace: float, command: list[str]) -> int:
    """Run a command until it ends or must end, end all that it started, and return its exit status.

    Args:
        grace: seconds between asking it to end and killing it.
        command: program and arguments.
    """
    prctl = _prctl()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    guard = os.getpid()

    def die_with_the_guard() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it has died already
            os._exit(1)

    child = subprocess.Popen(  # noqa: S603 - the owner's command
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_the_guard,
    )
    while child.poll() is None:
        ready, _, _ = select.select([0, woken], [], [])
        if 0 in ready and not os.read(0, 1):
            break
        if woken in ready and set(os.read(woken, 512)) != {signal.SIGCHLD}:
            break
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    _end_all(child)
    return child.wait()


def _prctl() -> Callable[[int, int], object]:
    """Linux's prctl; elsewhere a function that does nothing."""
    if sys.platform != "linux":
        return lambda *_: None
    library = ctypes.CDLL(None)
    return lambda option, value: library.prctl(option, value, 0, 0, 0)


def _end_all(child: subprocess.Popen[bytes]) -> None:
    """Kill the command and all that came from it, until none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    while descendants := _descendants(os.getpid()):
        for process in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _descendants(ancestor: int) -> list[int]:
    """Ids of the processes that come from one, as Linux's /proc has them; elsewhere none."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    found = [ancestor]
    for process in found:
        found += [other for other, parent in parents.items() if parent == process]
    return found[1:]


if __name__ == "__main__":
    status = main(float(sys.argv[1]), sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
