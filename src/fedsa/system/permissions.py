"""Whether code that a recipe, a run folder or a model folder names may run: only where the user has said so.

A recipe, a run folder and a model folder are files that somebody else may have written. None of them can allow its own
code: the permission comes from the user's environment (``FEDSA_ALLOW_CODE=1``) or command line (``--allow-code``).
"""

from __future__ import annotations

import os

__all__ = ["HOW_TO_ALLOW", "VARIABLE", "allow_code", "code_allowed"]

VARIABLE = "FEDSA_ALLOW_CODE"
"""The environment variable that allows it, where it is ``1``."""

HOW_TO_ALLOW = f"if you trust that code, repeat the command with --allow-code (in Python: set {VARIABLE}=1)"
"""The end of a refusal."""


def code_allowed() -> bool:
    """Whether the user allows code from the current folder and from model folders."""
    return os.environ.get(VARIABLE) == "1"


def allow_code() -> None:
    """Allow it in this process, and in those that it starts: the runs of a sweep, say."""
    os.environ[VARIABLE] = "1"
