"""The worker of a site: a process that holds the model and outlives the engine's jobs. Bytes come, bytes go back.

It listens on a socket of its own machine that only its user may open. One request is answered at a time, each on a
connection of its own. A process that asked and lost the connection asks again: equal requests have equal answers.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from fedsa.deploy import frames
from fedsa.errors import ProtocolError

__all__ = ["SOCKET", "UnusableAnswerError", "WorkerGoneError", "ask", "serve"]

SOCKET = "FEDSA_WORKER"
"""The environment variable that tells a worker, and the engine's processes of its site, where its socket is."""

_READ_SECONDS = 60.0  # for a request that has begun to come: nobody else is answered meanwhile
_LOOK_SECONDS = 0.2
_UNUSABLE = "unusable"


class UnusableAnswerError(ProtocolError):
    """A worker has given an answer that cannot be carried; to ask it again would bring the same one."""


class WorkerGoneError(ProtocolError):
    """A worker has not answered, and will not be asked again."""


def serve(handle: Callable[[bytes], bytes], path: Path) -> None:
    """Answer requests, one after the other, for as long as the process lives.

    Args:
        handle: gives the answer to a request; what it raises ends the worker.
        path: of the socket; at most about 100 characters.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before `listen`
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError, ProtocolError):  # whoever asked has gone
                connection.settimeout(_READ_SECONDS)
                _, request = frames.receive(connection)
                answer = handle(request)
                try:
                    frames.send(connection, {}, answer)
                except ProtocolError as error:
                    frames.send(connection, {_UNUSABLE: str(error)})


def ask(
    path: Path, request: bytes, *, given_up: Callable[[], bool], patience: float = 300, most_deaths: int = 3
) -> bytes:
    """Have a worker answer a request. Wait for a worker that is starting; ask again when it was started again.

    Args:
        path: of the worker's socket.
        request: any bytes.
        given_up: says that nobody waits for the answer any more; looked at several times a second.
        patience: seconds without any worker, after which the request is given up.
        most_deaths: how many workers may die with this request before it is given up.

    Raises:
        WorkerGoneError: the request was given up; the text says why.
        UnusableAnswerError: its answer cannot be carried.
    """
    deaths, alone_since = 0, time.monotonic()
    while not given_up():
        connection = socket.socket(socket.AF_UNIX)
        with connection:
            try:
                connection.connect(str(path))
            except OSError:
                if time.monotonic() - alone_since > patience:
                    raise WorkerGoneError(f"no worker has listened for {patience:.0f} s") from None
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                frames.send(connection, {}, request)
                while not select.select([connection], [], [], _LOOK_SECONDS)[0]:
                    if given_up():
                        raise WorkerGoneError("nobody waits for the answer any more")
                return _carried(connection)
            except OSError:  # the worker has died, or has no room for more askers
                deaths, alone_since = deaths + 1, time.monotonic()
                time.sleep(_LOOK_SECONDS)  # while it goes it may still let somebody connect: that is no second death
        if deaths >= most_deaths:
            raise WorkerGoneError(f"{deaths} workers have died with this request")
    raise WorkerGoneError("nobody waits for the answer any more")


def _carried(connection: socket.socket) -> bytes:
    """Wait for a worker's answer.

    Raises:
        UnusableAnswerError: it is none that can be carried.
    """
    try:
        note, answer = frames.receive(connection)
    except ProtocolError as error:
        raise UnusableAnswerError(str(error)) from None
    if _UNUSABLE in note:
        raise UnusableAnswerError(str(note[_UNUSABLE]))
    return answer
