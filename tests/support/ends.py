"""An end for tests that wait for processes: a fault is to be a failure, not a run that never ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

SECONDS = 600
"""Far more than any test takes, on a busy machine too."""


WAITING = {"deploy", "engines", "system"}
"""Folders of tests that wait for processes."""


@pytest.fixture(autouse=True)
def ends(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that has waited for too long, where the system can."""
    if request.path.parent.name not in WAITING or not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(f"a test has waited for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
