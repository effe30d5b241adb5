"""Memory that was freed, and that the C library keeps from the operating system."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import time
from functools import cache
from typing import Any

__all__ = ["MALLOC_TUNABLES", "give_back", "peak_rss_bytes", "restart_with_tunables"]

MALLOC_TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""For ``GLIBC_TUNABLES``: small freed blocks are not kept at hand, where they keep large ones from growing together."""

_RESTARTED = "FEDSA_RESTARTED"  # some systems take tunables out of the environment: this ends what would be a loop
_SECONDS = 3.0  # the pages that are given back must be taken again, which costs a few milliseconds
_last = 0.0


def give_back() -> None:
    """Give freed memory back to the operating system, at most every few seconds; nothing where only glibc can do it.

    Passes of ever other widths leave gaps that glibc keeps: a fifth of a run's peak, where nobody asks for them.
    """
    global _last
    now = time.monotonic()
    trim = _malloc_trim()
    if trim is not None and now - _last >= _SECONDS:
        trim(0)
        _last = now


def restart_with_tunables() -> None:
    """Start this process anew with ``MALLOC_TUNABLES``, once, where the C library is glibc.

    They are read when a process starts, and without them a run's peak is 5 % higher (docs/decisions/0013). The process
    keeps its number, its arguments and its files. A ``GLIBC_TUNABLES`` that is set, be it to nothing, is left as it is.
    A Ctrl-C or SIGTERM in between waits until the new process is here: Python would answer it with a traceback.
    """
    if _RESTARTED in os.environ:
        _deliver(signal.SIG_UNBLOCK)
    named = sys.executable and sys.orig_argv[1:2] not in ([], ["-"])  # else there is no program to name
    done = {"GLIBC_TUNABLES", _RESTARTED} & {*os.environ}
    if sys.platform != "linux" or done or not named or platform.libc_ver()[0] != "glibc":
        return
    environment = {**os.environ, "GLIBC_TUNABLES": MALLOC_TUNABLES, _RESTARTED: "1"}
    _deliver(signal.SIG_BLOCK)
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - no shell
    except OSError:  # it goes on as it is: all that is lost is some memory
        _deliver(signal.SIG_UNBLOCK)


def _deliver(how: int) -> None:
    """Block Ctrl-C and SIGTERM or let them through; what came in between then comes. It lasts over a restart."""
    if sys.platform != "win32":
        signal.pthread_sigmask(how, {signal.SIGINT, signal.SIGTERM})


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
