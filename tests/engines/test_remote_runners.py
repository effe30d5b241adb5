"""Questions that stay open while rounds end: who is under way, what is asked again, what a site that has left sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from fedsa.agreement import AdapterSpec, Agreement, TensorSpec
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.remote_runners import RemoteRunners
from fedsa.errors import ProtocolError, RunFolderError
from fedsa.messages import Message, decode, encode
from fedsa.store import MessagesUnderWay, Progress
from fedsa.types import SPLITS, Key, Payload, Payloads, Update
from support.flipped import flipped

KEY = Key.parse("layer:A:default")
AGREEMENT = Agreement(
    settings={"rounds": 9, "algorithm": "fedsa"},
    labels=("bad", "good"),
    metric="accuracy",
    adapter=AdapterSpec(tensors={str(KEY): TensorSpec(shape=(1,))}, scaling={}, config={}, base="", initial=""),
    ranks={},
)
WAIT = 30  # seconds: far more than it takes


class Sites:
    """Two sites; what "south" is asked to train is held back until it may answer.

    Attributes:
        asked: all questions about training, in order.
        told: what the server has said.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.told: list[str] = []
        self.may_answer, self.has_answered = threading.Event(), threading.Event()
        self.broken = False
        self.fleet = RemoteFleet(self, ["north", "south"], "a-run", tell=self.told.append)
        self.fleet.set_up(AGREEMENT)

    def __call__(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        if self.broken:
            raise OSError("the wire is cut")
        for site, data in sorted(requests.items()):
            message = decode(data)
            client = f"{site} client"
            if message.kind == "setup":
                examples = {"examples": {client: dict.fromkeys(SPLITS, 3)}}
                yield site, encode(Message("ready", "a-run", 0, examples, {"initial": {KEY: torch.zeros(1)}}))
            elif message.kind == "step":
                self.asked.append((site, data))
                assert site == "north" or self.may_answer.wait(WAIT)
                about = {"num_examples": 3, "base_version": message.round - 1, "metrics": {"seconds": 1.0}}
                state = {KEY: torch.full((1,), float(message.round))}
                yield (
                    site,
                    encode(Message("update", "a-run", message.round, {"updates": {client: about}}, {client: state})),
                )
                if site == "south":
                    self.has_answered.set()
            else:
                yield site, encode(Message("ready", "a-run", message.round))


def asked(round: int, *sites: str) -> Payloads:
    return Payloads(round, [f"{site} client" for site in sites], lambda client: Payload(client, round, round - 1, {}))


def names(updates: list[Update]) -> list[tuple[str, int]]:
    return [(update.client, update.round) for update in updates]


def test_a_question_stays_open_until_its_site_has_answered(tmp_path: Path) -> None:
    sites = Sites()
    runners = RemoteRunners(sites.fleet, MessagesUnderWay(tmp_path), Progress())
    runners.begin(asked(1, "north", "south"))
    assert dict(runners.underway) == {"north client": 1, "south client": 1}
    assert names([*runners.wait()]) == [("north client", 1)]
    runners.keep()
    assert dict(runners.underway) == {"south client": 1}
    runners.begin(asked(2, "north"))
    assert names([*runners.wait()]) == [("north client", 2)]
    sites.may_answer.set()
    assert names([*runners.wait()]) == [("south client", 1)]
    assert dict(runners.underway) == {}


def with_south_open(sites: Sites, run: Path) -> RemoteRunners:
    """Runners of which north has answered, and south is still asked."""
    runners = RemoteRunners(sites.fleet, MessagesUnderWay(run), Progress())
    runners.begin(asked(1, "north", "south"))
    runners.wait()
    runners.keep()
    return runners


def test_after_a_crash_what_is_open_is_asked_again_with_the_same_bytes(tmp_path: Path) -> None:
    before, after = Sites(), Sites()
    with_south_open(before, tmp_path)
    after.may_answer.set()
    again = RemoteRunners(after.fleet, MessagesUnderWay(tmp_path), Progress(round=1, underway={"south client": 1}))
    assert names([*again.wait()]) == [("south client", 1)]
    assert after.asked == [(site, data) for site, data in before.asked if site == "south"] != []
    before.may_answer.set()


def test_a_damaged_question_is_named_and_not_asked_again(tmp_path: Path) -> None:
    sites = Sites()
    with_south_open(sites, tmp_path)
    sites.may_answer.set()
    for path in flipped(tmp_path / "under-way"):
        with pytest.raises(RunFolderError, match=rf"{path} cannot be read \(a damaged message: .*put it back"):
            RemoteRunners(Sites().fleet, MessagesUnderWay(tmp_path), Progress(round=1, underway={"south client": 1}))


def test_a_site_that_has_left_is_not_waited_for_and_what_it_sends_is_dropped(tmp_path: Path) -> None:
    sites = Sites()
    runners = with_south_open(sites, tmp_path)
    sites.fleet.leave_out("south")
    runners.begin(asked(2))
    assert dict(runners.underway) == {}
    sites.may_answer.set()
    assert sites.has_answered.wait(WAIT)
    runners.begin(asked(3, "north"))
    assert names([*runners.wait()]) == [("north client", 3)]
    progress = Progress(round=1, underway={"south client": 1})
    assert dict(RemoteRunners(sites.fleet, MessagesUnderWay(tmp_path), progress).underway) == {}


def test_an_update_that_the_server_cannot_use_leaves_its_client_idle(tmp_path: Path) -> None:
    sites = Sites()

    def refuse(update: Update, round: int) -> None:
        raise ProtocolError(f"round {round}: it is not finite")

    sites.fleet.check = refuse
    runners = RemoteRunners(sites.fleet, MessagesUnderWay(tmp_path), Progress())
    runners.begin(asked(1, "north"))
    assert runners.wait() == []
    assert dict(runners.underway) == {}
    assert sites.told == ["north is left out with what it was asked in round 1: round 1: it is not finite"]


def test_what_goes_wrong_while_carrying_is_told_to_who_waits(tmp_path: Path) -> None:
    sites = Sites()
    runners = RemoteRunners(sites.fleet, MessagesUnderWay(tmp_path), Progress())
    sites.broken = True
    runners.begin(asked(1, "north"))
    with pytest.raises(OSError, match="the wire is cut"):
        runners.wait()
