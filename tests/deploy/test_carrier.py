"""The server's end of the carrying, with an engine that is a thread of the test."""

from __future__ import annotations

import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from fedsa.deploy import frames
from fedsa.deploy.carrier import Carrier
from fedsa.errors import FedsaError, ProtocolError

NOTHING = b"no answer"


class Jobs:
    """An engine: each job answers with what a function makes of site and request, until it is told to die.

    Attributes:
        sites: the connected ones, each with the name of its connection.
        begun: the sites of each job so far.
        seen: generation, site and request of all that jobs were sent.
    """

    def __init__(self, answer: Callable[[int, str, bytes], bytes | str | None]) -> None:
        self.answer = answer
        self.sites = {"north": "1", "south": "1"}
        self.begun: list[list[str]] = []
        self.seen: list[tuple[int, str, bytes]] = []
        self.forgotten: list[int] = []
        self.out: list[str] = []
        self.answers = True
        self.path = Path()
        self.socket: socket.socket | None = None

    def connected(self) -> Mapping[str, str]:
        return dict(self.sites)

    def begin(self, generation: int, sites: Iterable[str]) -> None:
        self.begun.append(sorted(sites))
        threading.Thread(target=self._run, args=[generation], daemon=True).start()

    def has_ended(self) -> bool:
        return False

    def end(self) -> None:
        if self.socket is not None:
            self.socket.close()

    def shut_out(self, site: str) -> None:
        if not self.answers:
            raise FedsaError("no server")
        self.out.append(site)

    def _run(self, generation: int) -> None:
        with socket.socket(socket.AF_UNIX) as self.socket:
            try:
                self.socket.connect(str(self.path))
                frames.send(self.socket, {"generation": generation})
            except OSError:  # the carrier has ended before its job could begin
                return
            while True:
                try:
                    note, body = frames.receive(self.socket)
                except (OSError, ProtocolError):
                    return
                if "forget" in note:
                    self.forgotten.append(note["forget"])
                    continue
                self.seen.append((generation, note["site"], body))
                said = self.answer(generation, note["site"], body)
                if said is None:
                    return  # the job dies
                if isinstance(said, str):
                    frames.send(self.socket, {"answer": note["request"], "failed": said})
                elif said != NOTHING:
                    frames.send(self.socket, {"answer": note["request"]}, said)


Start = Callable[..., Carrier]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a carrier whose pauses are short."""
    for name in ("_TICK_SECONDS", "_AGAIN_SECONDS", "_LOOK_SECONDS", "_PAUSE_SECONDS"):
        monkeypatch.setattr(f"fedsa.deploy.carrier.{name}", 0.02)
    started = []
    with tempfile.TemporaryDirectory(prefix="fedsa-") as folder:

        def begin(jobs: Jobs, **settings: object) -> Carrier:
            jobs.path = Path(folder) / "carrier"
            started.append(Carrier(jobs, jobs.path, ["north", "south"], **settings))  # type: ignore[arg-type]
            return started[-1].__enter__()

        yield begin
        for carrier in started:
            carrier.__exit__(None, None, None)


def test_requests_go_out_and_answers_come_back(start: Start) -> None:
    carry = start(Jobs(lambda generation, site, body: site.encode() + body))
    for number in range(3):
        body = bytes([number]) * 100_000
        answers = dict(carry({"north": body, "south": b"s"}, None))
        assert answers == {"north": b"north" + body, "south": b"souths"}


def test_a_silent_site_is_left_out_at_the_deadline_and_its_request_is_forgotten(start: Start) -> None:
    jobs = Jobs(lambda generation, site, body: NOTHING if body == b"first" and site == "south" else body)
    carry = start(jobs)
    assert dict(carry({"north": b"first", "south": b"first"}, 1)) == {"north": b"first"}
    assert dict(carry({"north": b"second", "south": b"second"}, None)) == {"north": b"second", "south": b"second"}
    assert jobs.forgotten == [2]


def test_a_late_answer_is_dropped(start: Start) -> None:
    late = threading.Event()

    def answer(generation: int, site: str, body: bytes) -> bytes:
        if body == b"first":
            late.wait(30)
        return body

    jobs = Jobs(answer)
    carry = start(jobs)
    assert dict(carry({"north": b"warm"}, None)) == {"north": b"warm"}, "the job is there"
    assert dict(carry({"north": b"first"}, 0.2)) == {}
    late.set()
    assert dict(carry({"north": b"second"}, None)) == {"north": b"second"}
    assert (1, "north", b"first") in jobs.seen


def test_a_question_stays_open_beside_others_and_ends_with_the_carrier(start: Start) -> None:
    """Where rounds overlap, a thread waits for a slow site while others are asked; it must not wait for ever."""
    came: queue.SimpleQueue[object] = queue.SimpleQueue()

    def wait_for_south() -> None:
        try:
            came.put(dict(carry({"south": b"long"}, None)))
        except ProtocolError as error:
            came.put(str(error))

    begun = threading.Event()

    def answer(generation: int, site: str, body: bytes) -> bytes:
        if body == b"long":
            begun.set()
            return NOTHING
        return body

    carry = start(Jobs(answer))
    thread = threading.Thread(target=wait_for_south, daemon=True)
    thread.start()
    assert begun.wait(30)
    for body in (b"1", b"2"):
        assert dict(carry({"north": body}, None)) == {"north": body}
    assert came.empty()
    carry.__exit__(None, None, None)
    assert "it has ended" in str(came.get(timeout=30))


def test_a_job_that_dies_is_followed_by_one_that_is_sent_what_is_outstanding(start: Start) -> None:
    def answer(generation: int, site: str, body: bytes) -> bytes | None:
        return None if generation == 1 and site == "south" else body

    jobs = Jobs(answer)
    told: list[str] = []
    carry = start(jobs, tell=told.append)
    assert dict(carry({"north": b"n", "south": b"s"}, None)) == {"north": b"n", "south": b"s"}
    assert jobs.seen == [(1, "north", b"n"), (1, "south", b"s"), (2, "south", b"s")]
    assert carry.generation == 2
    assert any("generation 1: the engine's job has ended" in line for line in told)


def test_a_site_that_fails_is_asked_again(start: Start) -> None:
    times = iter(range(10))
    told: list[str] = []
    jobs = Jobs(lambda generation, site, body: "no worker" if next(times) < 2 else body)
    carry = start(jobs, tell=told.append)
    assert dict(carry({"south": b"s"}, None)) == {"south": b"s"}
    assert len(jobs.seen) == 3
    assert told.count("south could not answer and is asked again: no worker") == 1, "and not each time"


def test_a_site_that_comes_back_has_its_place_in_the_next_job(start: Start) -> None:
    jobs = Jobs(lambda generation, site, body: NOTHING if generation == 1 and site == "south" else body)
    carry = start(jobs)
    answers = carry({"north": b"n", "south": b"s"}, None)
    assert next(answers) == ("north", b"n")
    jobs.sites["south"] = "2"
    assert dict(answers) == {"south": b"s"}
    assert jobs.begun == [["north", "south"], ["north", "south"]]


def test_a_site_that_joins_is_waited_for_by_nobody_and_has_a_place_when_it_comes(start: Start) -> None:
    def answer(generation: int, site: str, body: bytes) -> bytes | None:
        if site not in jobs.begun[-1]:
            return NOTHING
        return None if (generation, body) == (1, b"dies") else body

    jobs = Jobs(answer)
    carry = start(jobs, patience=300)
    assert dict(carry({"north": b"n"}, None)) == {"north": b"n"}
    with pytest.raises(ProtocolError, match="'west' is not on the roster"):
        list(carry({"west": b"w"}, None))
    carry.sites.admit("west")
    carry.sites.admit("west")
    assert dict(carry({"west": b"w"}, 0.05)) == {}
    assert dict(carry({"north": b"dies"}, None)) == {"north": b"dies"}, "the next job does not wait for it"
    jobs.sites["west"] = "1"
    assert dict(carry({"west": b"w"}, None)) == {"west": b"w"}
    assert jobs.begun == [["north", "south"], ["north", "south"], ["north", "south", "west"]]


def test_a_site_that_is_dismissed_is_shut_out_and_asked_nothing(start: Start) -> None:
    jobs = Jobs(lambda generation, site, body: body)
    told: list[str] = []
    carry = start(jobs, shut_out=jobs.shut_out, tell=told.append)
    carry.sites.dismiss("south")
    assert jobs.out == ["south"]
    with pytest.raises(ProtocolError, match="'south' is not on the roster"):
        list(carry({"south": b"s"}, None))
    jobs.answers = False
    carry.sites.dismiss("north")
    assert any("north is asked nothing any more, and is shut out when the server starts again" in line for line in told)


def test_a_job_begins_without_a_site_that_does_not_come(start: Start) -> None:
    jobs = Jobs(lambda generation, site, body: body)
    del jobs.sites["south"]
    told: list[str] = []
    carry = start(jobs, patience=0.05, tell=told.append)
    assert dict(carry({"north": b"n"}, None)) == {"north": b"n"}
    assert jobs.begun == [["north"]]
    assert told[0] == "waiting for south"


def test_a_job_of_an_earlier_generation_is_not_taken(start: Start) -> None:
    class Late(Jobs):
        def begin(self, generation: int, sites: Iterable[str]) -> None:
            with socket.socket(socket.AF_UNIX) as old:
                old.connect(str(self.path))
                frames.send(old, {"generation": generation - 1})
                assert old.recv(1) == b"", "it is let go"
            super().begin(generation, sites)

        def connected(self) -> Mapping[str, str]:
            return dict(self.sites)

    # The carrier accepts only after `begin`: so the old job speaks from a thread of its own.
    jobs = Late(lambda generation, site, body: body)
    begin = jobs.begin
    jobs.begin = lambda generation, sites: threading.Thread(  # type: ignore[method-assign]
        target=begin, args=[generation, sites], daemon=True
    ).start()
    carry = start(jobs)
    assert dict(carry({"north": b"n"}, 30)) == {"north": b"n"}


def test_an_engine_that_refuses_is_tried_again(start: Start) -> None:
    class Refusing(Jobs):
        def begin(self, generation: int, sites: Iterable[str]) -> None:
            if generation == 1:
                raise FedsaError("the engine's server does not answer")
            super().begin(generation, sites)

    told: list[str] = []
    carry = start(Refusing(lambda generation, site, body: body), tell=told.append)
    assert dict(carry({"north": b"n"}, None)) == {"north": b"n"}
    assert "generation 1: the engine's server does not answer" in told


def test_a_mistake_in_the_engine_ends_the_wait(start: Start) -> None:
    class Broken(Jobs):
        def connected(self) -> Mapping[str, str]:
            raise KeyError("a mistake")

    carry = start(Broken(lambda generation, site, body: body))
    for _ in range(2):
        with pytest.raises(ProtocolError, match=r"the carrier has failed: KeyError\('a mistake'\)"):
            dict(carry({"north": b"n"}, None))


def test_a_job_goes_on_while_the_engine_does_not_say_who_is_connected(start: Start) -> None:
    class Mute(Jobs):
        def connected(self) -> Mapping[str, str]:
            if self.begun:
                asked.set()
                raise FedsaError("the engine's server does not answer")
            return super().connected()

    def answer(generation: int, site: str, body: bytes) -> bytes:
        assert asked.wait(30)
        return body

    asked = threading.Event()
    carry = start(Mute(answer))
    assert dict(carry({"north": b"n"}, None)) == {"north": b"n"}
    assert carry.generation == 1


def test_only_the_roster_is_asked(start: Start) -> None:
    carry = start(Jobs(lambda generation, site, body: body))
    with pytest.raises(ProtocolError, match="'west' is not on the roster: north, south"):
        dict(carry({"west": b""}, None))


def test_an_answer_that_cannot_be_carried_is_told_and_is_an_answer(start: Start) -> None:
    """The same would come again, however often the site was asked."""

    class Unusable(Jobs):
        def _run(self, generation: int) -> None:
            with socket.socket(socket.AF_UNIX) as self.socket:
                self.socket.connect(str(self.path))
                frames.send(self.socket, {"generation": generation})
                note, _ = frames.receive(self.socket)
                frames.send(self.socket, {"answer": note["request"], "unusable": "more than 9 bytes\x1b"})
                self.socket.recv(1)

    told: list[str] = []
    carry = start(Unusable(lambda generation, site, body: body), tell=told.append)
    assert dict(carry({"south": b"s"}, None)) == {"south": b""}
    assert "south has given no answer that can be carried: more than 9 bytes\\x1b" in told


def test_who_waits_without_a_deadline_says_for_whom(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsa.deploy.carrier._TELL_SECONDS", 0.05)
    heard, told = threading.Event(), list[str]()

    def tell(line: str) -> None:
        told.append(line)
        if "by now" in line:
            heard.set()

    def answer(generation: int, site: str, body: bytes) -> bytes:
        if site == "south":
            assert heard.wait(30)
        return body

    carry = start(Jobs(answer), tell=tell)
    assert dict(carry({"north": b"n", "south": b"s"}, None)) == {"north": b"n", "south": b"s"}
    assert "south" in next(line for line in told if "by now" in line)


def test_a_site_that_is_not_on_the_roster_is_told_once_and_asked_nothing(start: Start) -> None:
    told: list[str] = []
    jobs = Jobs(lambda generation, site, body: None if generation == 1 else body)
    jobs.sites["west"] = "1"
    carry = start(jobs, tell=told.append)
    assert dict(carry({"north": b"n", "south": b"s"}, None)) == {"north": b"n", "south": b"s"}
    assert jobs.begun == [["north", "south"], ["north", "south"]]
    assert told.count("west has connected and is not on the roster: it is asked nothing") == 1
