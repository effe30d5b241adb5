"""NVFlare's server process, which says when a TLS handshake fails: of itself NVFlare says nothing about it.

    python -m fedsa.deploy.nvflare_server MODULE ARGUMENTS

MODULE is NVFlare's own program. Lines go to a datagram socket of the command that has started the process (`TOLD`), and
into the process's log.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

__all__ = ["TOLD", "TellingSSLObject", "heard_lines", "main"]

TOLD = "FEDSA_TOLD"
"""The environment variable that names the socket for the lines."""

_EXPIRED, _NOT_YET = 10, 9  # OpenSSL's codes of a failed verification
_AGAIN_SECONDS = 60.0  # before an equal line: who was refused tries again at once
_MOST_BYTES = 1000

_last: dict[str, float] = {}


@final
class TellingSSLObject(ssl.SSLObject):
    """One TLS connection, which tells why its handshake has failed."""

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            line = _line_of(error)
            if line:
                _tell(line)
            raise


def _line_of(error: ssl.SSLError) -> str:
    """What to tell of a failed handshake; nothing where somebody who is no party has looked at the port."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return "somebody was refused: the certificate has expired, or this machine's clock is wrong"
        if error.verify_code == _NOT_YET:
            return "somebody was refused: the certificate is not valid yet, or this machine's clock is wrong"
        return f"somebody was refused: the certificate is not of this federation ({error.verify_message})"
    reason = (error.reason or "").lower()
    if "peer_did_not_return_a_certificate" in reason:
        return "somebody was refused: no certificate was shown"
    if "alert" in reason and ("certificate" in reason or "unknown_ca" in reason):
        said = reason.rpartition("alert_")[2].replace("_", " ")
        return f"somebody does not accept this server's certificate ({said}), and has gone"
    return ""


def _tell(line: str) -> None:
    """Say a line, but not again and again."""
    now = time.monotonic()
    if now - _last.get(line, -_AGAIN_SECONDS) < _AGAIN_SECONDS:
        return
    _last[line] = now
    with contextlib.suppress(OSError):  # nobody listens, or the log's disk is full: the refusal stands all the same
        print(line, file=sys.stderr, flush=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(line.encode(), os.environ[TOLD])


@contextmanager
def heard_lines(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hand on the lines that a process sends to a socket, for as long as the context lasts.

    Args:
        path: of the socket, in a folder that only its user may open.
        tell: is called with each line.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))

        def listen() -> None:
            while line := ear.recv(_MOST_BYTES):
                tell(line.decode("utf-8", "replace"))

        thread = threading.Thread(target=listen, name="lines", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.sendto(b"", str(path))
            thread.join()


def main(module: str) -> None:
    """Be NVFlare's program of a server, with handshakes that tell."""
    ssl.SSLContext.sslobject_class = TellingSSLObject  # what `wrap_bio` makes, which asyncio calls
    sys.argv[:] = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
