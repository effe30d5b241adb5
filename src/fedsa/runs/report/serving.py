"""A web server that has one page: the report of a run, which follows the run while it goes on."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

from fedsa.errors import UserError
from fedsa.runs.report.live import LiveReport

__all__ = ["PORTS", "ReportServer"]

PORTS = range(8103, 8113)
"""That are tried where none is given."""

_SILENT_SECONDS = 10
"""After which a connection that says nothing is closed."""


@final
class ReportServer(ThreadingHTTPServer):
    """Serves the report of a run, and nothing else.

    Args:
        run: its folder, which need not be there yet.
        host: the address or name to listen on; on this machine's own, only its own names are answered to, so that no
            page of another site can read the report through the browser.
        port: the port; None: the first of `PORTS` that is free; 0: any that is free.
        against: another finished run, which each client is compared with when the run is finished.

    Raises:
        UserError: there is no such address here, or the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would let two servers have one port

    def __init__(
        self, run: Path, host: str = "127.0.0.1", port: int | None = None, against: Path | None = None
    ) -> None:
        self.report, self.host = LiveReport(run, against), host.lower()
        try:
            self.address_family, _, _, _, (address, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError):
            raise UserError(f"{host}: this machine knows no such address; 127.0.0.1 is this machine alone") from None
        self.is_private = ipaddress.ip_address(str(address).partition("%")[0]).is_loopback
        for number in PORTS if port is None else [port]:
            try:
                super().__init__((str(address), number), _Page)
                break
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port is None and number != PORTS[-1]:
                    continue
                raise _refusal(error, host, number) from None
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind, without asking the network for this machine's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away in the middle."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def _refusal(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} is taken by another program, maybe by another report that is served: give another one, or "
            "port 0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return UserError(f"port {port} may not be used by this user: give one above 1023")
    return UserError(f"{host}: cannot listen there ({error.strerror}); 127.0.0.1 is this machine alone")


class _Page(BaseHTTPRequestHandler):
    """Answers for the page, and refuses all else."""

    server: ReportServer
    server_version, sys_version = "fedsa", ""
    timeout = _SILENT_SECONDS

    def do_GET(self) -> None:
        """Send the page; nothing, where the browser has it already (``/?after=VERSION``)."""
        asked = urlsplit(self.path)
        if not self._is_for_us():
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"This server is for its own machine only.\n")
        elif asked.path == "/favicon.ico":
            self._send(HTTPStatus.NO_CONTENT)
        elif asked.path != "/":
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"There is one page here: /\n")
        else:
            page = self.server.report.page()
            if parse_qs(asked.query).get("after") == [page.version]:
                self._send(HTTPStatus.NO_CONTENT)
            else:
                self._send(HTTPStatus.OK, "text/html", page.html.encode(errors="replace"))

    do_HEAD = do_GET  # noqa: N815  the library's name

    def _is_for_us(self) -> bool:
        """Whether the browser asks for this machine by one of its own names."""
        server = self.server
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:  # it is no host
            return False
        return not server.is_private or name in ("localhost", "127.0.0.1", "::1", server.server_name, server.host)

    def _send(self, status: HTTPStatus, kind: str = "", content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        if kind:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line for each request."""
