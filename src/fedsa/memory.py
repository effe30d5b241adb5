"""Memory that was freed, and that the C library keeps from the operating system."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

__all__ = ["give_back"]

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


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
