"""A server without rows or a model, and sites without a server: they end in the simulator's bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fedsa.agreement import AdapterSpec, Agreement, TensorSpec
from fedsa.engines.remote import RemoteFleet
from fedsa.errors import ProtocolError
from fedsa.messages import Message, decode, digest_of, encode
from fedsa.recipe import Recipe
from fedsa.types import SPLITS, Factor, Key, Payload, Payloads, Update
from support.processes import run_federation

SEQUENTIAL = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=3")
SITES = {"north": ["site 0", "site 2"], "south": ["site 1"]}


@pytest.fixture(scope="module")
def files(tiny_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny rows as files: every client's in ``all``, and in a folder of each site those of its own clients."""
    import pandas

    folder = tmp_path_factory.mktemp("files")
    for client, rows in pandas.read_csv(tiny_rows).groupby("site"):
        home = next(site for site, clients in SITES.items() if client in clients)
        for place in ("all", home):
            (folder / place).mkdir(exist_ok=True)
            rows.drop(columns="site").to_csv(folder / place / f"{client}.csv", index=False)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        (),
        pytest.param(("algorithm=fedit",), marks=pytest.mark.slow),
        pytest.param(("algorithm=fedit", "adapter.ranks={'site 1' = 1}"), marks=pytest.mark.slow),
        pytest.param(("algorithm=flora",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_processes_with_nothing_but_messages_between_them_end_in_the_simulators_bytes(
    tiny_recipe: Callable[..., Recipe],
    tiny_run: Callable[..., Any],
    files: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
) -> None:
    """Sites have their own rows only, and the server has the agreement only."""
    simulated = tiny_run(f"data={{path='{files / 'all'}', partition={{kind='files'}}}}", *SEQUENTIAL, *settings)
    agreement = simulated.federation.agreement
    (tmp_path / "agreement.json").write_text(agreement.text(), encoding="utf-8")
    recipe = tiny_recipe(*SEQUENTIAL)
    machine = {
        "compute": recipe.compute.model_dump(exclude_none=True),
        "training": {"trainer": "sequential"},
        "model": {"path": recipe.model.path, "attn_implementation": "eager"},
    }
    sites = {site: {**machine, "data": {"path": str(files / site), "partition": {"kind": "files"}}} for site in SITES}
    outcome = run_federation(tmp_path / "agreement.json", sites, tmp_path)
    assert outcome["heavy"] == [], "the server imports neither transformers nor peft nor datasets"
    tensors, versions, *_ = simulated.folder.server_states.load_server(3)
    known = {str(key) for key in tensors if agreement.needs_initial_values or versions[key] > 0}
    assert known == set(outcome["tensors"]), "the server has values of what was sent to it alone"
    for key in known:
        assert tensors[Key.parse(key)].numpy().tobytes() == outcome["tensors"][key].tobytes(), key
    lines = [json.loads(line) for line in (simulated.folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert outcome["validation"] == [(line["round"], line["client"], line["validation"]) for line in lines]
    assert outcome["chosen"] == simulated.summary["chosen_round"]
    for site, clients in SITES.items():
        for client in clients:
            (path,) = sorted((tmp_path / site / "clients").glob(f"*{client[-1]}/round-000003.safetensors"))
            mine = simulated.folder.client_states.load_client(client, 3)
            theirs = tensors_of(path)
            assert set(theirs) == set(mine.tensors)
            assert all(torch.equal(theirs[key], value) for key, value in mine.tensors.items())


def tensors_of(path: Path) -> dict[Key, torch.Tensor]:
    from safetensors.torch import load_file

    return {Key.parse(name): value for name, value in load_file(path).items() if not name.startswith("optimizer|")}


KEY = Key.parse("layer:A:default")
AGREEMENT = Agreement(
    settings={"rounds": 1, "algorithm": "fedsa"},
    labels=("bad", "good"),
    metric="accuracy",
    adapter=AdapterSpec(tensors={str(KEY): TensorSpec(shape=(1,))}, scaling={}, config={}, base="", initial=""),
    ranks={},
)
GOOD = {"num_examples": 3, "base_version": 0, "metrics": {"loss": 1.0, "seconds": 1.0}}


def fleet_that_answers(about: dict[str, Any]) -> RemoteFleet:
    """Return a fleet of two sites, of which the first gives a fixed answer to each step."""
    state = {KEY: torch.zeros(1)}

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            asked = decode(data)
            if asked.kind == "setup":
                ready = {"examples": {f"{site} client": dict.fromkeys(SPLITS, 3)}}
                yield site, encode(Message("ready", "a-run", 0, ready, {"initial": state}))
            else:
                said = about if site == "north" else {"updates": {}, "metrics": {}}
                yield site, encode(Message("update", "a-run", asked.round, said, {"north client": state}))

    fleet = RemoteFleet(exchange, ["north", "south"], "a-run")
    fleet.set_up(AGREEMENT)
    return fleet


@pytest.mark.parametrize(
    ("updates", "text"),
    [
        ({"south client": GOOD}, "site 'north' speaks for client 'south client', which is not its own"),
        ({"nobody": GOOD}, "site 'north' speaks for client 'nobody', which is not its own"),
        (None, "site 'north' has answered without updates"),
        ({"north client": None}, "its numbers are missing or make no sense"),
        ({"north client": {**GOOD, "num_examples": "3"}}, "its numbers are missing or make no sense"),
        ({"north client": {**GOOD, "base_version": 7}}, "its numbers are missing or make no sense"),
        ({"north client": {**GOOD, "metrics": {"loss": "low"}}}, "its metrics are not finite numbers by their names"),
        ({"north client": {**GOOD, "metrics": {"loss": 1e301}}}, "its metrics are not finite numbers by their names"),
        ({"north client": {**GOOD, "metrics": {"loss": 1.0}}}, "its metrics lack 'seconds'"),
        ({"north client": {**GOOD, "num_examples": 4}}, "another number of rows than its site has said"),
        ({}, "has answered without its client 'north client'"),
    ],
)
def test_a_site_speaks_for_its_own_clients_and_in_numbers(updates: Any, text: str) -> None:
    fleet = fleet_that_answers({"updates": updates})
    payloads = Payloads(1, ["north client"], lambda client: Payload(client, 1, 0, {}))
    with pytest.raises(ProtocolError, match=text):
        list(fleet.train(payloads))


def test_a_good_answer_is_an_update() -> None:
    metrics = {"accuracy": 0.5, "examples": 3}
    fleet = fleet_that_answers({"updates": {"north client": GOOD}, "metrics": {"north client": metrics}})
    payloads = Payloads(1, ["north client"], lambda client: Payload(client, 1, 0, {}))
    (update,) = fleet.train(payloads)
    assert (update.client, update.num_examples, update.base_version, set(update.tensors)) == (
        "north client",
        3,
        0,
        {KEY},
    )
    assert dict(fleet.evaluate(payloads, "validation", "aggregate")) == {"north client": metrics}


@pytest.mark.parametrize("said", [{"accuracy": 0.5}, {"examples": 3}, {"accuracy": 0.5, "examples": 0}])
def test_metrics_that_the_run_needs_must_be_there(said: dict[str, float]) -> None:
    fleet = fleet_that_answers({"metrics": {"north client": said}})
    payloads = Payloads(1, ["north client"], lambda client: Payload(client, 1, 0, {}))
    with pytest.raises(ProtocolError, match=r"its metrics lack|was measured on no rows"):
        list(fleet.evaluate(payloads, "validation", "aggregate"))


@pytest.mark.parametrize("why", ["it is late", math.nan, "\ud800"])
def test_what_no_file_can_hold_is_no_message(why: Any) -> None:
    entry = {"version": 1, "kind": "refuse", "run": "a-run", "round": 0, "about": {"why": why}, "groups": {}}
    text = json.dumps(entry)
    data = save({}, {"fedsa": digest_of(text, {}) + text})
    if why == "it is late":
        assert decode(data).about == {"why": why}
    else:
        with pytest.raises(ProtocolError, match=r"a damaged message: (ValueError|UnicodeEncodeError)"):
            decode(data)


def test_groups_that_are_none_are_no_message() -> None:
    entry = {"version": 1, "kind": "update", "run": "a-run", "round": 0, "about": {}, "groups": {"a": []}}
    text = json.dumps(entry)
    with pytest.raises(ProtocolError, match="a tensor whose name is not one"):
        decode(save({}, {"fedsa": digest_of(text, {}) + text}))


def test_equal_messages_are_equal_bytes() -> None:
    """A repeated message is known by its bytes; the order in which things were put into it does not matter."""
    keys = [Key.parse(f"layer.{number}:A:default") for number in range(9)]
    states = [{key: torch.ones(2) for key in order} for order in (keys, keys[::-1])]
    written = {encode(Message("step", "a-run", 1, {"keep": [1]}, {"c": state})) for state in states for _ in range(20)}
    assert len(written) == 1
    other = {key: torch.zeros(2) for key in keys}
    pairs = [{"c": states[0], "d": other}, {"d": other, "c": states[0]}]
    assert len({encode(Message("step", "a-run", 1, {}, pair)) for pair in pairs}) == 1


@pytest.mark.parametrize("place", [0, 7, 9, 60, 200, -1])
def test_a_message_with_a_changed_byte_is_refused(place: int) -> None:
    data = bytearray(encode(Message("update", "a-run", 1, {"updates": {}}, {"c": {KEY: torch.ones(4)}})))
    data[place] ^= 1
    with pytest.raises(ProtocolError, match="message"):
        decode(bytes(data), run="a-run")


def test_tensors_come_out_of_a_message_in_the_order_of_their_names() -> None:
    """The library that reads them gives another order at each call."""
    state = {Key(f"layer.{number:02d}", Factor.A): torch.zeros(1) for number in reversed(range(20))}
    decoded = decode(encode(Message("update", "a-run", 1, states={"north": state})))
    assert list(decoded.states["north"]) == sorted(state)


class Scripted:
    """Sites of a client each, named like it; what they answer to a step is written before, one word a step.

    Words: good, bad (the server's check refuses it), late (no answer).
    """

    def __init__(self, **words: str) -> None:
        self.words = {site: text.split() for site, text in words.items()}
        self.told: list[str] = []
        self.heard: list[tuple[str, str]] = []
        self.fleet = RemoteFleet(self._exchange, self.words, "a-run", quorum=2, deadline=1, tell=self.told.append)
        self.fleet.set_up(AGREEMENT)
        self.fleet.check = self._check

    def train(self) -> list[str]:
        payloads = Payloads(1, sorted(self.words), lambda client: Payload(client, 1, 0, {}))
        return [update.client for update in self.fleet.train(payloads)]

    def _check(self, update: Update, round: int) -> None:
        if not bool(update.tensors[KEY].isfinite().all()):
            raise ProtocolError(f"update of client {update.client!r} for round {round}: {KEY} is not finite")

    def _exchange(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            asked = decode(data)
            if asked.kind == "setup":
                ready = {"examples": {site: dict.fromkeys(SPLITS, 3)}}
                yield site, encode(Message("ready", "a-run", 0, ready, {"initial": {KEY: torch.zeros(1)}}))
            elif asked.kind == "refuse":
                self.heard.append((site, asked.about["why"]))
                yield site, encode(Message("ready", "a-run", asked.round))
            elif (word := self.words[site].pop(0)) != "late":
                value = {KEY: torch.zeros(1) if word == "good" else torch.full((1,), math.nan)}
                yield site, encode(Message("update", "a-run", asked.round, {"updates": {site: GOOD}}, {site: value}))


def test_what_the_server_cannot_use_does_not_count_for_the_quorum() -> None:
    """With two answers, one of them bad, the third site is waited for; the bad one's owner is told why."""
    sites = Scripted(east="good", north="bad bad", west="late good")
    assert sites.train() == ["east", "west"]
    why = "update of client 'north' for round 1: layer:A:default is not finite"
    left_out = f"round 1: north is left out: {why}"
    assert sites.told == [left_out, "round 1: waiting for north, west", left_out]
    assert sites.heard == [("north", why), ("north", why)]


def test_who_is_late_is_named_when_the_round_goes_on() -> None:
    sites = Scripted(east="good", north="good", west="late")
    assert sites.train() == ["east", "north"]
    assert sites.told == ["round 1: west has not answered in time, and the round goes on"]
    assert not sites.heard
