"""Secure aggregation over sites that answer messages: the plain mean, drop-outs at each stage, crashes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.agreement import AdapterSpec, Agreement, TensorSpec
from fedsa.algorithms.fedit import FedIT
from fedsa.client.masking import STAGES, Masking
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.secure_fleet import SecureFleet
from fedsa.errors import ProtocolError, RunFolderError
from fedsa.messages import Message, decode, encode
from fedsa.recipe import StepSettings
from fedsa.secure import fixed_point_for
from fedsa.secure.fixed_point import added
from fedsa.server import Server
from fedsa.steps import make_chain
from fedsa.store import MessagesUnderWay
from fedsa.types import SPLITS, Factor, Key, State, Update
from support.extras import NEEDS_SECURE
from support.flipped import flipped

pytestmark = NEEDS_SECURE

A, B = Key("layer", Factor.A), Key("layer", Factor.B)
SHAPES = {A: (2, 5), B: (3, 2)}
AGREEMENT = Agreement(
    settings={"rounds": 3, "algorithm": "fedit", "secure_aggregation": True},
    labels=("bad", "good"),
    metric="accuracy",
    adapter=AdapterSpec(
        tensors={str(key): TensorSpec(shape=shape) for key, shape in SHAPES.items()},
        scaling={},
        config={},
        base="",
        initial="",
    ),
    ranks={},
)
CLIENTS = {"east": ["e1", "e2"], "north": ["n1"], "south": ["s1"], "west": ["w1"], "zenith": ["z1", "z2"]}
SIX = {**CLIENTS, "abroad": ["a1"]}
OURS = sorted(chain(*CLIENTS.values()))
ROWS = {client: 10 + 7 * place for place, client in enumerate(OURS)} | {"a1": 50}


def trained(client: str) -> State:
    random = torch.Generator().manual_seed(ROWS[client])
    return {key: 1e4 * torch.randn(shape, generator=random) for key, shape in SHAPES.items()}


class Federation:
    """Sites without a model: what they "train" is fixed. Some do not answer at a stage, or answer with rubbish.

    Attributes:
        lost: site to the stage from which on it does not answer.
        refusing: site to the stage that it refuses.
        asked: every question about a sum, as site and stage.
        trainings: how often sites have trained.
    """

    def __init__(
        self,
        place: Path,
        lost: Mapping[str, str] | None = None,
        quorum: int | None = None,
        clients: Mapping[str, list[str]] = CLIENTS,
    ) -> None:
        self.clients = clients
        self.place, self.lost, self.refusing = place, dict(lost or {}), dict[str, str]()
        self.asked: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.trainings = 0
        self.answers: dict[tuple[str, bytes], bytes] = {}
        self.start(quorum)

    def start(self, quorum: int | None = None) -> None:
        """Begin the server anew."""
        self.remote = RemoteFleet(
            self._exchange, self.clients, "a-run", quorum=quorum, deadline=1, tell=self.told.append
        )
        self.remote.set_up(AGREEMENT)
        self.fleet = SecureFleet(self.remote, MessagesUnderWay(self.place), "num_examples")
        steps = make_chain(StepSettings(secure_aggregation=True))
        first = FedIT().init({key: torch.zeros(shape) for key, shape in SHAPES.items()})
        self.server = Server(
            FedIT(), first, self.remote.clients, seed=0, steps=steps, quorum=quorum, open_sum=self.fleet.open_sum
        )
        self.remote.check = self.server.check

    def round(self, number: int = 1) -> State:
        payloads = self.server.begin_round(number)
        self.record = self.server.end_round(number, self.fleet.train(payloads))
        return self.server.state.tensors

    def _exchange(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            message = decode(data)
            do = message.about.get("do", message.kind)
            if do in ("train", *STAGES):
                self.asked.append((site, do))
            if do == self.lost.get(site) or (do in STAGES and self.lost.get(site) in STAGES[: STAGES.index(do)]):
                continue
            if do == self.refusing.get(site):
                yield site, encode(Message("refuse", "a-run", message.round, {"why": "its disk is full"}))
                continue
            if (site, data) not in self.answers:
                self.answers[site, data] = self._answer(site, message)
            yield site, self.answers[site, data]

    def _answer(self, site: str, message: Message) -> bytes:
        masking = Masking(self.place / site, site, "a-run", "num_examples")  # as if it was restarted each time
        if message.kind == "setup":
            examples = {client: dict.fromkeys(SPLITS, ROWS[client]) for client in self.clients[site]}
            return encode(Message("ready", "a-run", 0, {"examples": examples}))
        if message.kind == "refuse":
            return encode(Message("ready", "a-run", message.round))
        try:
            if message.about["do"] != "train":
                return encode(masking.answer(message))
        except ProtocolError as error:
            return encode(Message("refuse", "a-run", message.round, {"why": str(error)}))
        self.trainings += 1
        updates = [Update(c, message.round, ROWS[c], trained(c)) for c in sorted(message.states)]
        masking.keep(updates, message.round, message.about["bits"])
        about = {c: {"base_version": 0, "metrics": {"seconds": 1.0}} for c in message.states}
        return encode(Message("update", "a-run", message.round, {"updates": about}))


def plain(sites: Collection[str]) -> State:
    """The sum of the same integers, without masks."""
    here = SIX if "abroad" in sites else CLIENTS
    point = fixed_point_for(sum(ROWS[client] for client in chain(*here.values())))
    clients = [client for site in sites for client in here[site]]
    sums = {key: torch.zeros(shape, dtype=torch.int64) for key, shape in SHAPES.items()}
    for client in clients:
        for key, value in point.encode(trained(client), ROWS[client], client).items():
            sums[key] += value
    mean = point.decode_mean(sums, sum(ROWS[client] for client in clients))
    return {key: value.float() for key, value in mean.items()}


def equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("lost", "there"),
    [
        ({}, "east north south west zenith"),
        ({"east": "train"}, "north south west zenith"),
        ({"zenith": "keys"}, "east north south west"),
        ({"north": "share", "west": "mask"}, "east south zenith"),
        ({"north": "mask", "east": "open"}, "east south west zenith"),
        ({"south": "open", "east": "open"}, "east north south west zenith"),
    ],
)
def test_the_mean_is_that_of_those_who_sent_to_the_last_bit(tmp_path: Path, lost: Any, there: str) -> None:
    federation = Federation(tmp_path, lost, quorum=3)
    assert equal(federation.round(), plain(there.split()))
    clients = {client for site in there.split() for client in CLIENTS[site]}
    assert {*federation.record.finished} == clients
    assert {*federation.record.upload_bytes.values()} == (
        {0, 8 * 16} if {"east", "zenith"} & {*there.split()} else {8 * 16}
    )


def test_the_mean_is_the_plain_one_within_the_bound(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    mean = federation.round()
    for key in SHAPES:
        exact = sum(trained(client)[key].double() * ROWS[client] for client in OURS) / sum(
            ROWS[client] for client in OURS
        )
        rounding = 2.0**-24 * float(exact.abs().max())  # the server keeps 24 bits
        assert float((mean[key].double() - exact).abs().max()) <= federation.fleet.point.largest_error + rounding


def test_what_a_site_sends_shows_nothing_of_a_client(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.round()
    point, seen = federation.fleet.point, 0
    for (site, _), data in federation.answers.items():
        message = decode(data)
        assert "num_examples" not in str(message.about)
        plainly = added(point.encode(trained(client), ROWS[client], client) for client in CLIENTS[site])
        for state in message.states.values():
            seen += 1
            assert not any(bool((state[key] == plainly[key]).any()) for key in SHAPES), site
    assert seen == len(CLIENTS)


def test_a_sum_that_sites_would_not_open_is_not_begun(tmp_path: Path) -> None:
    """Of six sites four must be in a sum, whatever the quorum is: else it could never be opened, and none after it."""
    federation = Federation(tmp_path, quorum=3, clients=SIX)
    federation.refusing = dict.fromkeys(("abroad", "north", "south"), "mask")
    with pytest.raises(ProtocolError, match=r"too few sites are left for secure aggregation \(mask\)"):
        federation.round()
    federation.refusing = {}
    federation.start(quorum=3)
    assert equal(federation.round(), plain(sorted(SIX)))


@pytest.mark.parametrize("stage", ["share", "mask"])
def test_too_few_sites_end_the_round_and_it_goes_on_later(tmp_path: Path, stage: str) -> None:
    """Nobody trains again, and the sites take new keys."""
    federation = Federation(tmp_path, quorum=2)
    federation.refusing = dict.fromkeys(("east", "north", "south"), stage)
    with pytest.raises(ProtocolError, match=rf"round 1: too few sites are left for secure aggregation \({stage}\)"):
        federation.round()
    federation.refusing = {}
    federation.start(quorum=2)
    assert equal(federation.round(), plain(CLIENTS))
    assert federation.trainings == len(CLIENTS), "what was trained is there"


def test_a_sum_that_sites_have_begun_to_open_outlives_the_server(tmp_path: Path) -> None:
    """A site opens one sum of a round only, so it must be the same one after a crash, whoever is there then."""
    federation = Federation(tmp_path, {"west": "train"}, quorum=3)
    opened = federation.fleet.open_sum

    def crash(*args: Any) -> Any:
        opened(*args)
        raise KeyboardInterrupt

    federation.server._open_sum = crash
    with pytest.raises(KeyboardInterrupt):
        federation.round()
    for path in flipped(tmp_path / "under-way"):
        federation.start(quorum=3)
        with pytest.raises(RunFolderError, match=rf"{path} cannot be read \(a damaged message: .*put it back"):
            federation.round()
    federation.lost = {"north": "train"}  # it has sent its part before, and has gone; west is here again
    federation.start(quorum=3)
    federation.asked.clear()
    assert equal(federation.round(), plain(["east", "north", "south", "zenith"]))
    assert {stage for _, stage in federation.asked} == {"open"}, "nothing is collected again"
    assert equal(federation.round(2), plain(["east", "south", "west", "zenith"])), "the next round has a new sum"


def test_a_site_that_leaves_while_its_sum_is_opened_does_not_stop_the_run(tmp_path: Path) -> None:
    """What it sent cannot be taken out of the sum, and sites open no other one of the round."""
    federation = Federation(tmp_path, quorum=3)
    opened = federation.fleet.open_sum

    def crash(*args: Any) -> Any:
        opened(*args)
        raise KeyboardInterrupt

    federation.server._open_sum = crash
    with pytest.raises(KeyboardInterrupt):
        federation.round()
    federation.clients = {site: clients for site, clients in CLIENTS.items() if site != "west"}
    federation.start(quorum=3)
    assert equal(federation.round(), plain(CLIENTS))
    assert "w1" not in federation.record.finished
    assert any("a sum with w1 in it, who is not asked any more" in line for line in federation.told)


def test_a_site_that_has_helped_sends_nothing_to_a_second_sum_of_the_round(tmp_path: Path) -> None:
    """Two sums of one round that differ in one site would show what that site has sent."""
    federation = Federation(tmp_path, quorum=3)
    federation.round()
    MessagesUnderWay(tmp_path).only(())  # a server that "forgets"
    federation.lost = {"west": "train"}
    federation.start(quorum=3)
    federation.server.state, federation.server.client_versions = FedIT().init(trained("e1")), {}
    with pytest.raises(ProtocolError, match="two sums of one round can show a single site"):
        federation.round()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"client": "n1"}, "says no client or no weight"),
        ({"weight": -1}, "says no client or no weight"),
        ({"weight": "7"}, "says no client or no weight"),
        ({"states": {}}, "a sum of nothing"),
        ({"states": {"s1": {A: torch.zeros(2, 5, dtype=torch.int64)}}}, "are not exactly those"),
        ({"states": {"s1": {A: torch.zeros(2, 5), B: torch.zeros(3, 2)}}}, "is of torch.float32, not torch.int64"),
    ],
)
def test_a_sum_that_does_not_fit_is_left_out(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    federation = Federation(tmp_path, quorum=3)
    inner = federation.remote.exchange

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in inner(requests, deadline):
            message = decode(data)
            if site == "south" and "weight" in message.about:
                about = {**message.about, **{k: v for k, v in changed.items() if k != "states"}}
                data = encode(Message("update", "a-run", 1, about, changed.get("states", message.states)))
            yield site, data

    federation.remote.exchange = exchange
    assert equal(federation.round(), plain(["east", "north", "west", "zenith"]))
    assert any(text in line for line in federation.told)


def test_a_site_that_sends_another_weight_than_it_has_is_noticed(tmp_path: Path) -> None:
    """The weights are in the sum; what sites have said in the beginning must come out."""
    federation = Federation(tmp_path)
    inner = federation.remote.exchange

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in inner(requests, deadline):
            message = decode(data)
            if site == "south" and "weight" in message.about:
                about = {**message.about, "weight": (message.about["weight"] + 5) % 2**64}
                data = encode(Message("update", "a-run", 1, about, message.states))
            yield site, data

    federation.remote.exchange = exchange
    with pytest.raises(ProtocolError, match="the masks do not cancel"):
        federation.round()
