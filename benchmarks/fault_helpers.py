"""What `deploy_faults.py` does faults with: a worker that answers badly, a proxy that cuts, a small disk that fills."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

BAD = {
    "a value that is not a number": "is not finite",
    "wrong shapes": "has shape",
    "an update of the round before": "it has answered with 'update' of round",
    "garbage": "a damaged message",
    "a message that was changed on its way": "its digest is of other bytes",
    "a message of another run": "a message of another run",
    "an update of another client": "speaks for client",
    "more bytes than a message may have": "more than 2,147,483,648 are not taken",
}
"""How a bad worker answers, and what the server must say of it."""


def play_site(folder: Path, data: str, program: Path) -> int:
    """Be `fedsa deploy site`, with a worker that answers badly when the file ``.bad`` in the folder says so."""
    from fedsa.deploy import project
    from fedsa.deploy.parties import run_site
    from fedsa.deploy.preflight import read_kit

    project.take_part(folder, data, {})  # writes what a worker reads; nothing is started before it is entered
    command = [sys.executable, str(program), "--play-worker", str(folder)]
    with suppress(KeyboardInterrupt), run_site(read_kit(folder / "kit"), command, logs=folder / "logs"):
        while True:
            time.sleep(3600)
    return 0


def play_worker(folder: Path) -> int:
    """Be `fedsa.deploy.site`; spoil the answer to a step of training when it is asked to."""
    from fedsa.deploy.site import open_site
    from fedsa.deploy.worker import SOCKET, serve
    from fedsa.messages import decode

    program, order = open_site(folder), folder / ".bad"

    def handle(request: bytes) -> bytes:
        answer = program.handle(request)
        if order.exists() and decode(request).about.get("do") == "train" and decode(answer).kind == "update":
            kind = order.read_text(encoding="utf-8")
            order.unlink()
            return _spoiled(kind, answer)
        return answer

    serve(handle, Path(os.environ[SOCKET]))
    return 0


def _spoiled(kind: str, answer: bytes) -> bytes:
    """Return a bad answer in place of a good one."""
    from fedsa.messages import MOST_BYTES, decode, encode

    message = decode(answer)

    def changed(one: Callable[[Any], Any]) -> bytes:
        states = {
            client: {key: one(tensor) for key, tensor in state.items()} for client, state in message.states.items()
        }
        return encode(replace(message, states=states))

    (client,) = message.states
    other = {"east": message.about["updates"][client]}
    bad: dict[str, Callable[[], bytes]] = {
        "a value that is not a number": lambda: changed(lambda tensor: tensor * float("nan")),
        "wrong shapes": lambda: changed(lambda tensor: tensor[:, :-1]),
        "an update of the round before": lambda: encode(replace(message, round=message.round - 1)),
        "garbage": lambda: os.urandom(1000),
        "a message that was changed on its way": lambda: answer[:-1] + bytes([answer[-1] ^ 1]),
        "a message of another run": lambda: encode(replace(message, run="f" * 32)),
        "an update of another client": lambda: encode(
            replace(message, about={"updates": other}, states={"east": message.states[client]})
        ),
        "more bytes than a message may have": lambda: bytes(MOST_BYTES + 1),
    }
    return bad[kind]()


class CutProxy:
    """Carries a site's connections to the server, until it is cut; use it as a context.

    Args:
        port: where it listens.
        target: the server's port.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self._target = port, target
        self._listener = socket.create_server(("localhost", port))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._through, self._refuses, self._ends = threading.Event(), False, False
        self._through.set()

    def __enter__(self) -> CutProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends = True
        self._listener.close()
        self._break()

    def cut(self, *, breaks: bool) -> None:
        """Let nothing through; connections are broken and new ones refused, or they stay and nothing comes."""
        self._refuses = breaks
        self._through.clear()
        if breaks:
            self._break()

    def mend(self) -> None:
        """Let everything through again."""
        self._refuses = False
        self._through.set()

    def _break(self) -> None:
        with self._lock:
            for pair in self._pairs:
                for end in pair:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def _accept(self) -> None:
        while not self._ends:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                here.close()
                continue
            try:
                there = socket.create_connection(("localhost", self._target))
            except OSError:
                here.close()
                continue
            with self._lock:
                self._pairs.append((here, there))
            for one, two in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(one, two), daemon=True).start()

    def _pump(self, one: socket.socket, two: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while select.select([one], [], []) and (data := one.recv(65536)):
                self._through.wait()
                two.sendall(data)
        for end in (one, two):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def small_disk(folder: Path, megabytes: int) -> None:
    """Mount a small file system in memory; the caller unmounts it."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Fill a file system to the last byte; return the file that does."""
    path = folder / ".filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
    return path
