"""A site's worker: a process that answers bytes with bytes, and may die and come back while somebody waits."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsa.deploy import frames
from fedsa.deploy.worker import UnusableAnswerError, WorkerGoneError, ask, serve

pytestmark = pytest.mark.run

# Echoes; dies once when it reads "die once", always at "die", and lives on after whoever asked has gone.
PROGRAM = """
import os, sys
from pathlib import Path
from fedsa.deploy.worker import serve
died = Path(sys.argv[1] + ".died")
def handle(request):
    if request == b"die" or (request == b"die once" and not died.exists()):
        died.touch()
        os._exit(9)
    return b"answer to " + request
serve(handle, Path(sys.argv[1]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: sockets have names of about 100 characters at most."""
    with tempfile.TemporaryDirectory(prefix="fedsa-") as folder:
        yield Path(folder) / "worker"


@pytest.fixture
def start(place: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started = []

    def begin() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, str(place)]))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def never() -> bool:
    return False


def test_a_worker_answers_and_only_its_user_may_ask(place: Path, start: Callable[[], object]) -> None:
    start()
    big = os.urandom(3_000_000)
    assert ask(place, b"one", given_up=never) == b"answer to one"
    assert ask(place, big, given_up=never) == b"answer to " + big
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_who_asks_waits_for_a_worker_that_is_started_again(
    place: Path, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    first = start()
    restart = threading.Thread(target=lambda: (first.wait(), start()))
    restart.start()
    assert ask(place, b"die once", given_up=never) == b"answer to die once"
    restart.join()


def test_a_request_that_kills_workers_is_given_up(place: Path, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    ended = threading.Event()

    def keep() -> None:
        while not ended.is_set():
            start().wait()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        with pytest.raises(WorkerGoneError, match="2 workers have died with this request"):
            ask(place, b"die", given_up=never, most_deaths=2)
    finally:
        ended.set()  # a worker that was started meanwhile is ended with the test


def test_nobody_listens(place: Path) -> None:
    with pytest.raises(WorkerGoneError, match="no worker has listened for 0 s"):
        ask(place, b"one", given_up=never, patience=0)


def test_who_gives_up_is_let_go_and_the_worker_answers_the_next(place: Path) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def handle(request: bytes) -> bytes:
        begun.set()
        assert goes_on.wait(30)
        return request

    threading.Thread(target=serve, args=[handle, place], daemon=True).start()
    with pytest.raises(WorkerGoneError, match="nobody waits"):
        ask(place, b"one", given_up=begun.is_set)
    goes_on.set()
    assert ask(place, b"two", given_up=never) == b"two"


def test_an_answer_that_is_too_long_is_told_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come again however often the worker is asked."""
    monkeypatch.setattr(frames, "MOST_BYTES", 10)
    listens = threading.Thread(target=serve, args=[lambda request: bytes(len(request) + 6), place], daemon=True)
    listens.start()
    with pytest.raises(UnusableAnswerError, match="11 bytes: more than 10 are not taken"):
        ask(place, b"12345", given_up=never)
    assert ask(place, b"1234", given_up=never) == bytes(10)


def test_an_answer_from_a_worker_without_limits_is_told_at_once(place: Path) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            frames.receive(connection)
            connection.sendall(struct.pack(">IQ", 2, frames.MOST_BYTES + 1) + b"{}")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UnusableAnswerError, match="2,147,483,649 bytes"):
            ask(place, b"one", given_up=never)


def test_a_worker_outlives_those_who_send_nonsense(place: Path, start: Callable[[], object]) -> None:
    start()
    assert ask(place, b"one", given_up=never) == b"answer to one"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        connection.sendall(b"\xff" * 12)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        frames.send(connection, {}, b"gone before the answer")
    assert ask(place, b"two", given_up=never) == b"answer to two"
