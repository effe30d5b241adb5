"""Frames: how messages are separated on a socket between two processes of one machine. A frame has a note and a body.

A frame is three parts: the lengths of the other two (4 and 8 bytes, big-endian), the note as JSON, the body as it is.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from fedsa.errors import ProtocolError
from fedsa.texts.json_text import parsed_json
from fedsa.texts.words import counted

__all__ = ["MOST_BYTES", "receive", "send"]

MOST_BYTES = 2**31
"""A frame with a longer body is refused before it is read. The limit is that of a message."""

_LENGTHS = struct.Struct(">IQ")
_MOST_NOTE_BYTES = 2**16
_PIECE = 2**20


def send(connection: socket.socket, note: Mapping[str, Any], body: bytes = b"") -> None:
    """Send one frame.

    Args:
        connection: to the other process.
        note: a short table that JSON can hold.
        body: any bytes.

    Raises:
        ProtocolError: they are too many; nothing was sent.
    """
    if len(body) > MOST_BYTES:
        raise ProtocolError(_too_long(len(body)))
    text = json.dumps(note).encode()
    connection.sendall(_LENGTHS.pack(len(text), len(body)) + text)
    if body:
        connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Wait for one frame, and return its note and its body.

    Raises:
        ConnectionError: the other side has closed the connection.
        ProtocolError: the bytes are not a frame, or the frame is too long.
    """
    note_bytes, body_bytes = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if note_bytes > _MOST_NOTE_BYTES or body_bytes > MOST_BYTES:
        raise ProtocolError(_too_long(body_bytes))
    try:
        note = parsed_json(_exactly(connection, note_bytes))
    except ValueError:
        note = None
    if not isinstance(note, dict):
        raise ProtocolError("a frame whose note is not a table of JSON")
    return note, _exactly(connection, body_bytes)


def _too_long(count: int) -> str:
    return f"a frame of {counted(count, 'byte')}: more than {MOST_BYTES:,} are not taken"


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Return the next bytes, as many as asked for."""
    content = bytearray()
    while len(content) < count:
        piece = connection.recv(min(count - len(content), _PIECE))
        if not piece:
            raise ConnectionError("the connection was closed")
        content += piece
    return bytes(content)
