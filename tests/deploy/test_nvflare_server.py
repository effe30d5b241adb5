"""NVFlare's server says who was refused: the other side of what `test_preflight.py` has a site say."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsa.deploy import nvflare_server
from fedsa.deploy.nvflare_server import TOLD, TellingSSLObject, heard_lines
from fedsa.deploy.preflight import Kit, PreflightError, check_server
from support.certificates import make_certificate, write_kit
from support.extras import NEEDS_NVFLARE

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]


class Lines:
    """The lines that came, and a way to wait for the first."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.came = threading.Event()

    def __call__(self, line: str) -> None:
        self.all.append(line)
        self.came.set()

    def first(self) -> str:
        assert self.came.wait(30)
        return self.all[0]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The lines of this process's handshakes."""
    lines = Lines()
    monkeypatch.setattr(nvflare_server, "_last", {})
    with tempfile.TemporaryDirectory(prefix="fedsa-") as folder:
        monkeypatch.setenv(TOLD, f"{folder}/told")
        with heard_lines(Path(folder) / "told", lines):
            yield lines


@pytest.fixture
def listen() -> Iterator[Callable[[Kit], int]]:
    """Start a server of asyncio, as NVFlare's is, that asks for its clients' certificates; return its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1000)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()
            await writer.wait_closed()

    servers = []

    def begin(kit: Kit) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = TellingSSLObject
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(kit.authority)
        context.load_cert_chain(kit.certificate, kit.key)
        made = asyncio.run_coroutine_threadsafe(asyncio.start_server(answer, "localhost", 0, ssl=context), loop)
        servers.append(made.result(30))
        return int(servers[-1].sockets[0].getsockname()[1])

    async def end() -> None:
        for server in servers:
            server.close()

    yield begin
    asyncio.run_coroutine_threadsafe(end(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize(
    ("begin", "end", "is_known", "line"),
    [
        (-1, 9, False, "somebody was refused: the certificate is not of this federation (unable to get local issuer"),
        (-9, -1, True, "somebody was refused: the certificate has expired, or this machine's clock is wrong"),
        (2, 9, True, "somebody was refused: the certificate is not valid yet, or this machine's clock is wrong"),
    ],
    ids=["of another authority", "expired", "not yet valid"],
)
def test_a_site_that_is_refused_and_the_server_both_say_so(
    tmp_path: Path, heard: Lines, listen: Callable[[Kit], int], begin: int, end: int, is_known: bool, line: str
) -> None:
    authority = make_certificate("a federation", None)
    other = authority if is_known else make_certificate("another federation", None)
    server = write_kit(tmp_path / "server", "server", authority, make_certificate("localhost", authority))
    own = make_certificate("north", other, begin=begin, end=end)
    kit = write_kit(tmp_path / "north", "site", authority, own, listen(server))
    for _ in range(2):
        with pytest.raises(PreflightError, match="does not accept the certificate of north"):
            check_server(kit)
    assert heard.first().startswith(line)
    assert len(heard.all) == 1, "not again and again"


def test_a_site_that_does_not_accept_the_server_is_told_at_the_server(
    tmp_path: Path, heard: Lines, listen: Callable[[Kit], int]
) -> None:
    authority, other = make_certificate("a federation", None), make_certificate("another federation", None)
    server = write_kit(tmp_path / "server", "server", other, make_certificate("localhost", other))
    kit = write_kit(tmp_path / "north", "site", authority, make_certificate("north", authority), listen(server))
    with pytest.raises(PreflightError, match="a certificate of another authority"):
        check_server(kit)
    assert heard.first() == "somebody does not accept this server's certificate (unknown ca), and has gone"


def test_the_program_runs_another_with_such_handshakes(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import ssl, sys\n"
        "if __name__ == '__main__':\n"
        "    made = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname='x')\n"
        "    print(type(made).__name__, sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "fedsa.deploy.nvflare_server", "other", "-m", "a folder"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "TellingSSLObject ['-m', 'a folder']"
