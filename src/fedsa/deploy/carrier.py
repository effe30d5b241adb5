"""The carrier, on the server's machine: it sends requests to sites through an engine's job, and takes the answers.

The engine's server process is thin: it connects to a socket here, is sent requests, and sends back answers. Its job is
a *generation*. When the job fails, its process dies, or a site has come that is not part of it, the next generation is
started, and gets the requests that have no answer yet. So a request may reach a site twice; equal requests have equal
answers.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from fedsa.deploy import frames
from fedsa.errors import FedsaError, ProtocolError
from fedsa.texts.escapes import for_terminal

__all__ = ["SOCKET", "CarriedSites", "Carrier", "Engine"]

SOCKET = "FEDSA_CARRIER"
"""The environment variable that tells the engine's server processes where the carrier's socket is."""

_TICK_SECONDS = 0.5
_AGAIN_SECONDS = 2.0  # after a site could not answer, before it is asked again
_LOOK_SECONDS = 3.0  # between two looks at which sites are connected
_TELL_SECONDS = 60.0  # between two lines about the same wait
_PAUSE_SECONDS = 1.0  # between two generations; twice as long after each short one
_SHORT_SECONDS = 15.0
_STALLED_SECONDS = 60.0  # in the middle of a frame: the job hangs


class Engine(Protocol):
    """Starts jobs. Each job connects to the carrier's socket, and first sends the number of its generation."""

    def connected(self) -> Mapping[str, str]:
        """Sites that are connected now, and for each a name of this connection: another one after it was lost.

        Raises:
            FedsaError: the engine's server does not answer.
        """
        ...

    def begin(self, generation: int, sites: Iterable[str]) -> None:
        """Start a job of some sites, and return when it is accepted.

        Raises:
            FedsaError: the job is not accepted.
        """
        ...

    def has_ended(self) -> bool:
        """Whether the job has ended.

        Raises:
            FedsaError: the engine's server does not answer.
        """
        ...

    def end(self) -> None:
        """End the job, if there is one; never fails."""
        ...


@dataclass
class _Request:
    """A request that has no answer yet.

    Attributes:
        site: who is asked.
        body: the bytes.
        answers: where its exchange waits.
        due: the moment (of `time.monotonic`) from which on it may be sent; None: it has been sent.
        failure: why the site could not answer when it was asked last.
    """

    site: str
    body: bytes
    answers: queue.SimpleQueue[tuple[int, str, bytes] | None]
    due: float | None = 0.0
    failure: str = ""


@final
class CarriedSites:
    """The sites that may be asked, and which of them are connected.

    Args:
        engine: knows who is connected.
        sites: the roster.
        shut_out: has the engine refuse a site for good.
        tell: is called with a line about a site that is not on the roster.

    Attributes:
        names: the roster.
        absent: sites that the last job began without, or that have come since: no job waits for them.
    """

    def __init__(
        self, engine: Engine, sites: Iterable[str], shut_out: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        self._engine, self._shut_out, self._tell = engine, shut_out, tell
        self.names, self.absent = frozenset(sites), frozenset[str]()
        self._strangers: set[str] = set()  # that have connected and are not on the roster

    def admit(self, site: str) -> None:
        """Put a site on the roster. No job waits for it; there is a new one with it as soon as it is connected."""
        if site not in self.names:
            self.names, self.absent = self.names | {site}, self.absent | {site}

    def dismiss(self, site: str) -> None:
        """Take a site off the roster, and have the engine refuse it."""
        self.names -= {site}
        try:
            self._shut_out(site)
        except FedsaError as error:
            self._tell(f"{site} is asked nothing any more, and is shut out when the server starts again: {error}")

    def connected(self) -> dict[str, str]:
        """The sites of the roster that are connected now, as `Engine.connected` gives them; others are told, once.

        Raises:
            FedsaError: the engine's server does not answer.
        """
        now = self._engine.connected()
        for site in sorted({*now} - self.names - self._strangers):
            self._strangers.add(site)
            self._tell(f"{_told(site)} has connected and is not on the roster: it is asked nothing")
        return {site: now[site] for site in self.names & set(now)}


@final
class Carrier:
    """Carries requests to sites and answers back; use it as a context, and call it as `fedsa.engines.remote.Exchange`.

    Args:
        engine: starts the jobs.
        path: of the socket that they connect to; at most about 100 characters, in a folder that only its user may open.
        sites: the roster; others are not asked.
        patience: seconds that a job waits for sites that are not connected; then it begins without them.
        shut_out: has the engine refuse a site for good, whatever certificate it has.
        tell: is called with each line about what happens: a generation that starts or ends, a site that cannot answer.

    Attributes:
        sites: who may be asked, and who is connected.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        sites: Iterable[str],
        *,
        patience: float = 30,
        shut_out: Callable[[str], None] = lambda site: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._engine, self._path, self._patience, self._tell = engine, path, patience, tell
        self.sites = CarriedSites(engine, sites, shut_out, tell)
        self._lock = threading.Lock()  # of what follows
        self._requests: dict[int, _Request] = {}
        self._count = 0
        self._connection: socket.socket | None = None
        self._failure: Exception | None = None
        self._ends = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._keep, name="carrier", daemon=True)
        self.generation = 0
        """The job that runs now, counted from 1."""

    def __enter__(self) -> Carrier:
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen()
        self._listener.settimeout(_TICK_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._thread.join()
        with self._lock:
            self._failure = self._failure or ProtocolError("it has ended")
            for request in self._requests.values():  # of a thread that waits still
                request.answers.put(None)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def __call__(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        """Send each site its request, and yield the answers as they come, each with the site's name.

        Args:
            requests: site to bytes.
            deadline: seconds, from the first answer that is asked for; None: wait for all.

        Raises:
            ProtocolError: a site is not on the roster.
        """
        unknown = sorted(set(requests) - self.sites.names)
        if unknown:
            raise ProtocolError(f"site {unknown[0]!r} is not on the roster: {', '.join(sorted(self.sites.names))}")
        end = None if deadline is None else time.monotonic() + deadline
        answers: queue.SimpleQueue[tuple[int, str, bytes] | None] = queue.SimpleQueue()
        waiting: dict[int, str] = {}
        pause = _TELL_SECONDS  # until it is told who is waited for; then twice as long
        with self._lock:
            for site, body in requests.items():
                self._count += 1
                waiting[self._count] = site
                self._requests[self._count] = _Request(site, body, answers)
            if self._failure is not None:
                answers.put(None)
        try:
            self._send_due()
            began = time.monotonic()
            while waiting:
                now = time.monotonic()
                until = began + pause if end is None else min(end, began + pause)
                try:
                    answer = answers.get(timeout=max(0.0, until - now))
                except queue.Empty:
                    if end is not None and time.monotonic() >= end:
                        return
                    self._tell(f"waiting for {', '.join(sorted(waiting.values()))}, for {pause:.0f} s by now")
                    pause *= 2
                    continue
                if answer is None:
                    raise ProtocolError(f"the carrier has failed: {self._failure!r}") from self._failure
                number, site, body = answer
                waiting.pop(number, None)
                yield site, body
        finally:
            self._forget(waiting)

    def _forget(self, numbers: Iterable[int]) -> None:
        """Drop requests whose answers nobody waits for, here and in the engine."""
        with self._lock:
            for number in numbers:
                self._requests.pop(number, None)
                self._send_to_job({"forget": number})

    def _send_due(self) -> None:
        """Send the requests that are due to the present job; without one they stay due."""
        with self._lock:
            now = time.monotonic()
            for number, request in self._requests.items():
                if request.due is not None and request.due <= now and self._connection is not None:
                    request.due = None
                    self._send_to_job({"request": number, "site": request.site}, request.body)

    def _send_to_job(self, note: Mapping[str, object], body: bytes = b"") -> None:
        """Send a frame to the present job, if there is one. What goes wrong is noticed where its frames are read."""
        if self._connection is None:
            return
        try:
            frames.send(self._connection, note, body)
        except OSError:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # after half a frame nothing else can be sent

    def _keep(self) -> None:
        """Start one generation after the other, until the carrier ends."""
        pause = _PAUSE_SECONDS
        try:
            while not self._ends.is_set():
                began = time.monotonic()
                try:
                    self._run_generation()
                except (FedsaError, OSError) as error:
                    self._tell(f"generation {self.generation}: {error}")
                finally:
                    self._engine.end()
                if time.monotonic() - began > _SHORT_SECONDS:
                    pause = _PAUSE_SECONDS
                self._ends.wait(pause)
                pause = min(2 * pause, _TELL_SECONDS)
        except Exception as error:  # a mistake of ours or the engine's: who waits for answers must know
            with self._lock:
                self._failure = error
                for request in self._requests.values():
                    request.answers.put(None)

    def _run_generation(self) -> None:
        """Run one job, from the sites that are connected until it ends or a site has come that is not part of it."""
        present = self._wait_for_sites()
        if not present:
            return
        self.generation += 1
        self._engine.begin(self.generation, present)
        with self._accept() as connection:
            self._tell(f"generation {self.generation}: {', '.join(sorted(present))}")
            with self._lock:
                self._connection = connection
                for request in self._requests.values():
                    request.due = 0.0
            try:
                self._serve(connection, present)
            finally:
                with self._lock:
                    self._connection = None

    def _wait_for_sites(self) -> Mapping[str, str]:
        """Wait for the sites that are expected, and return those that are connected: all, or after the patience some.

        A site that the last job began without is not expected again: it has a place in a job when it comes.
        """
        began, told = time.monotonic(), -_TELL_SECONDS
        while not self._ends.is_set():
            present = self.sites.connected()
            expected = self.sites.names - self.sites.absent
            waited, missing = time.monotonic() - began, sorted(expected - set(present))
            if present and (not missing or waited > self._patience):
                self.sites.absent = self.sites.names - set(present)
                return present
            if waited - told >= _TELL_SECONDS:
                told = waited
                self._tell(f"waiting for {', '.join(missing or sorted(self.sites.names))}")
            self._ends.wait(_TICK_SECONDS)
        return {}

    def _accept(self) -> socket.socket:
        """Return the connection of the present generation's job.

        Raises:
            ProtocolError: the job has ended before it has connected.
        """
        looked = time.monotonic()
        while not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                connection.settimeout(10)
                with contextlib.suppress(OSError, ProtocolError):
                    note, _ = frames.receive(connection)
                    if note.get("generation") == self.generation:
                        connection.settimeout(_STALLED_SECONDS)
                        return connection
                connection.close()  # a job of an earlier generation, or nothing of ours
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                if self._engine.has_ended():
                    raise ProtocolError("the engine's job has ended before it has begun; its log says why")
        raise ProtocolError("the carrier ends")

    def _serve(self, connection: socket.socket, present: Mapping[str, str]) -> None:
        """Send what is due and take the answers, until the job ends or a site has come that is not part of it."""
        looked = time.monotonic()
        while not self._ends.is_set():
            self._send_due()
            if select.select([connection], [], [], _TICK_SECONDS)[0]:
                try:
                    note, body = frames.receive(connection)
                except OSError:
                    raise ProtocolError("the engine's job has ended; the next one goes on") from None
                self._take(note, body)
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked, now = time.monotonic(), {}
                with contextlib.suppress(FedsaError):  # the job itself may be well; its end is noticed above
                    now = self.sites.connected()
                come = sorted(site for site in now if now[site] != present.get(site))
                if come:
                    raise ProtocolError(f"{', '.join(come)} has come: the next job has it")

    def _take(self, note: Mapping[str, object], body: bytes) -> None:
        """Hand an answer to the exchange that waits for it. A site that could not answer is asked again later."""
        number = note.get("answer")
        with self._lock:
            request = self._requests.get(number) if isinstance(number, int) else None
            if request is None or not isinstance(number, int):
                return  # its exchange has ended
            if "failed" not in note:
                del self._requests[number]
                request.answers.put((number, request.site, body))
                if "unusable" in note:  # an answer without bytes, which the exchange refuses
                    self._tell(f"{request.site} has given no answer that can be carried: {_told(note['unusable'])}")
                return
            request.due = time.monotonic() + _AGAIN_SECONDS
            before, request.failure = request.failure, str(note["failed"])
        if request.failure != before:
            self._tell(f"{request.site} could not answer and is asked again: {_told(request.failure)}")


def _told(text: object) -> str:
    return for_terminal(str(text)[:300])
