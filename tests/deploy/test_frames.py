"""One framing for the sockets between processes of one machine."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from fedsa import messages
from fedsa.deploy import frames
from fedsa.errors import ProtocolError


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_what_is_sent_is_received(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    bodies = [b"", b"\x00\xff", bytes(range(256)) * 20_000]  # the last does not fit a socket's buffer

    def send_all() -> None:
        for number, body in enumerate(bodies):
            frames.send(here, {"number": number, "name": "Zürich"}, body)

    sender = threading.Thread(target=send_all)
    sender.start()
    for number, body in enumerate(bodies):
        assert frames.receive(there) == ({"number": number, "name": "Zürich"}, body)
    sender.join()


@pytest.mark.parametrize("sent", [b"", b"\x00\x00", struct.pack(">IQ", 2, 5) + b"{}abc"])
def test_an_end_in_the_middle_is_a_lost_connection(sent: bytes, ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    here.sendall(sent)
    here.close()
    with pytest.raises(ConnectionError, match="closed"):
        frames.receive(there)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (struct.pack(">IQ", 2, frames.MOST_BYTES + 1), r"2,147,483,649 bytes: more than 2,147,483,648"),
        (struct.pack(">IQ", 2**20, 0), "more than"),
        (struct.pack(">IQ", 3, 0) + b"{]}", "not a table"),
        (struct.pack(">IQ", 60_000, 0) + b"[" * 60_000, "not a table"),
        (struct.pack(">IQ", 4, 0) + json.dumps([1]).encode().ljust(4), "not a table"),
    ],
)
def test_what_is_no_frame_is_refused(sent: bytes, text: str, ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    here.sendall(sent)
    with pytest.raises(ProtocolError, match=text):
        frames.receive(there)


def test_what_the_other_side_would_not_take_is_not_sent(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MOST_BYTES", 10)
    here, there = ends
    with pytest.raises(ProtocolError, match="11 bytes: more than 10 are not taken"):
        frames.send(here, {}, bytes(11))
    frames.send(here, {}, bytes(10))
    assert frames.receive(there) == ({}, bytes(10)), "nothing of the first one is in the way"


def test_a_frame_carries_the_longest_message() -> None:
    assert frames.MOST_BYTES == messages.MOST_BYTES
