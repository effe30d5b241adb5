"""A proxy for TCP connections: counts what passes, and can delay it, cut connections at random, or record it.

It is a tool of the programs and tests that look at what goes over a network; it has no command of its own. The parties
of a federation reach the server through it when they are told its port, and the server listens on another one:

    with Proxy(listen) as proxy, run_local(folder, commands, port=proxy.port, listen=listen) as carry: ...

A proxy that is given the federation's startup kits opens TLS: towards a site it is the server, and towards the server
it is that site. So what it records is what the parties have really sent, with nothing changed in them. Only who has
everybody's private keys can do that, as a test has of its own federation.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from fedsa.deploy.preflight import Kit, read_kit

__all__ = ["Passed", "Proxy", "free_port"]

_PIECE = 2**16


@dataclass
class Passed:
    """A connection that has passed, or passes.

    Attributes:
        number: counted from 1, in the order in which they came.
        site: whose certificate it came with, where TLS is opened.
        up: bytes towards the server, without those of TCP and IP.
        down: bytes towards the site.
        end: how it ended: one side has closed it, or it was cut; empty while it passes.
    """

    number: int
    site: str = ""
    up: int = 0
    down: int = 0
    end: Literal["", "closed", "cut"] = ""


class Proxy:
    """Passes connections on to a server, for as long as the context lasts.

    Args:
        target: the server's port on this machine.
        host: the address to listen on.
        port: the port to listen on; 0: a free one.
        delay: seconds by which everything is delayed, in each direction.
        life: mean seconds that a connection lives; each is cut after a time from an exponential distribution. None:
            none is cut.
        seed: of those times.
        kits: the folder with the startup kits of the server and the sites, with which TLS is opened; None: it is not.
        record: folder for what passes: `NUMBER-SITE.up` and `.down` for each connection; None: nothing is kept.
    """

    def __init__(
        self,
        target: int,
        *,
        host: str = "localhost",
        port: int = 0,
        delay: float = 0,
        life: float | None = None,
        seed: int = 0,
        kits: Path | None = None,
        record: Path | None = None,
    ) -> None:
        self._target, self._host, self._delay, self._life = target, host, delay, life
        self._random, self._kits, self._record = random.Random(seed), kits, record
        self.port = port or free_port(host)
        """The port that it listens on."""
        self.passed: list[Passed] = []
        """All connections that have come."""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def total(self) -> tuple[int, int]:
        """Bytes that have passed towards the server and towards the sites."""
        return sum(each.up for each in self.passed), sum(each.down for each in self.passed)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._take, self._host, self.port)
        async with server:
            self._ready.set()
            await self._end.wait()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, until one side closes it or its time is over."""
        passed = Passed(len(self.passed) + 1)
        self.passed.append(passed)
        life = None if self._life is None else self._random.expovariate(1 / self._life)
        context = None
        with contextlib.ExitStack() as stack:
            stack.callback(writer.transport.abort)
            try:
                if self._kits is not None:
                    await writer.start_tls(_context(read_kit(self._kits / "server")))
                    passed.site = _common_name(writer.get_extra_info("peercert"))
                    context = _context(read_kit(self._kits / passed.site))
                there, onward = await asyncio.open_connection("localhost", self._target, ssl=context)
            except OSError:  # of TLS too
                passed.end = "closed"
                return
            stack.callback(onward.transport.abort)
            files = [self._file(stack, passed, way) for way in ("up", "down")]
            ways = [
                asyncio.create_task(self._pass(reader, onward, passed, "up", files[0])),
                asyncio.create_task(self._pass(there, writer, passed, "down", files[1])),
            ]
            done, _ = await asyncio.wait(ways, timeout=life, return_when=asyncio.FIRST_COMPLETED)
            passed.end = "closed" if done else "cut"
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passed: Passed,
        way: Literal["up", "down"],
        file: BinaryIO | None,
    ) -> None:
        """Pass on one direction of a connection until its end."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def send() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(due - self._loop.time())  # of less than nothing: at once
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        sender = asyncio.create_task(send())
        try:
            with contextlib.suppress(OSError):
                while not sender.done():
                    data = await reader.read(_PIECE)
                    setattr(passed, way, getattr(passed, way) + len(data))
                    if file is not None:
                        file.write(data)
                    await queue.put((self._loop.time() + self._delay, data))
                    if not data:
                        await sender
        finally:
            sender.cancel()

    def _file(self, stack: contextlib.ExitStack, passed: Passed, way: str) -> BinaryIO | None:
        if self._record is None:
            return None
        self._record.mkdir(parents=True, exist_ok=True)
        return stack.enter_context((self._record / f"{passed.number:05}-{passed.site}.{way}").open("wb"))


def free_port(host: str = "localhost") -> int:
    """A port of an address that nobody listens on."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


def _context(kit: Kit) -> ssl.SSLContext:
    """TLS with the certificate of a party, where the other side must have one of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if kit.kind == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(kit.authority)
    context.load_cert_chain(kit.certificate, kit.key)
    return context


def _common_name(certificate: dict[str, tuple[tuple[tuple[str, str], ...], ...]]) -> str:
    return next(value for part in certificate["subject"] for name, value in part if name == "commonName")
