"""What a run was computed with, for whoever repeats it."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["environment"]


def environment(*packages: str) -> dict[str, str]:
    """This machine and the versions of some installed packages, by their names.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
