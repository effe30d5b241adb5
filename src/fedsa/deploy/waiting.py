"""What the command of a site does once its processes run: it waits, and says so where nothing comes from the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Never

from fedsa.client.sent import SENT_LIST

__all__ = ["wait_for_messages"]

_QUIET_SECONDS = 120.0


def wait_for_messages(
    folder: Path, tell: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> Never:
    """Wait until the process is ended; where nothing is asked of the site in the first minutes, say why that may be.

    NVFlare lets every party in that has a certificate of the federation, so a site cannot see that it is not on the
    server's roster.

    Args:
        folder: the site's.
        tell: is called with the line.
        sleep: waits for so many seconds.
    """
    began = time.time()
    sleep(_QUIET_SECONDS)
    if not _has_answered_since(folder, began):
        tell(
            f"the server has asked nothing in {_QUIET_SECONDS:.0f} s: it waits for other sites, its run has ended, or "
            "this site is not on its roster; who runs the server can tell"
        )
    while True:
        sleep(3600)


def _has_answered_since(folder: Path, moment: float) -> bool:
    """Whether something has left the site since a moment."""
    try:
        return (folder / SENT_LIST).stat().st_mtime >= moment
    except OSError:
        return False
