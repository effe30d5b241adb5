"""Moments: in the life of another process, which a test waits for without looking again and again; and of threads."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

__all__ = ["Moment", "WhenAskedFor"]

# Every Python process that is started with this in its path runs it first, so those that fedsa starts do too.
_TOLD_BY = """
import fnmatch, os, sys

def told(event, arguments, whom=os.environ["FEDSA_TEST_TELL"], what=os.environ["FEDSA_TEST_EVENT"]):
    if event != what:
        return
    names = [os.fspath(name) for name in arguments if isinstance(name, (str, os.PathLike))]
    if any(fnmatch.fnmatch(str(name), os.environ["FEDSA_TEST_NAME"]) for name in names):
        pipe = os.open(whom, os.O_WRONLY)
        os.write(pipe, b".")
        os.close(pipe)

sys.addaudithook(told)
"""


class Moment:
    """The first time that a process, or one that it starts, is about to open or to rename a certain file.

    Args:
        event: as Python's audit hooks call it: ``open`` or ``os.rename``.
        name: of the file, as `fnmatch` has it.
        place: an empty folder for what is needed.

    Attributes:
        environment: to start the process with.
    """

    def __init__(self, event: str, name: str, place: Path) -> None:
        place.mkdir()
        (place / "sitecustomize.py").write_text(_TOLD_BY, encoding="utf-8")
        os.mkfifo(place / "pipe")
        self._pipe = os.open(place / "pipe", os.O_RDWR)  # for writing too: it must not end with its first writer
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FEDSA_TEST_TELL": str(place / "pipe"),
            "FEDSA_TEST_EVENT": event,
            "FEDSA_TEST_NAME": name,
        }

    def wait(self, process: subprocess.Popen[str], *, seconds: float = 120) -> None:
        """Return when the moment has come; fail if the process ends before."""
        threading.Thread(target=self._tell_end, args=[process], daemon=True).start()
        ready, _, _ = select.select([self._pipe], [], [], seconds)
        assert ready, f"nothing came in {seconds} s"
        if os.read(self._pipe, 1) != b".":
            pytest.fail(f"the process ended first: {process.communicate()}")

    def _tell_end(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        os.write(self._pipe, b"!")


class WhenAskedFor:
    """A pool of threads of which nobody ever gets round to work: a thing is done when its result is asked for."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return SimpleNamespace(done=lambda: False, cancel=lambda: True, result=lambda: do(*arguments))

    def shutdown(self) -> None:
        pass
