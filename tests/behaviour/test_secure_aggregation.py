"""Runs with secure aggregation: near the plain run in the simulator, and over sites in the simulator's bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.client.masking import STAGES
from fedsa.client.sent import sent_messages
from fedsa.cost.traffic import count_traffic
from fedsa.deploy.preparing import prepare
from fedsa.deploy.site import SiteProgram, open_site
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import RemoteFleet
from fedsa.errors import ProtocolError, UserError
from fedsa.messages import Message, decode, encode
from fedsa.recipe import Recipe
from fedsa.runs.sent import sent_in_run
from fedsa.store import RunFolder
from support.extras import NEEDS_SECURE
from support.tiny_runs import states_of

pytestmark = pytest.mark.run

SECURE = "secure_aggregation=true"
EXACT = ("training.trainer=sequential", "compute.threads=1", "rounds=2")
SITES = ("east", "north", "west")


def test_a_simulation_is_the_plain_one_but_for_the_last_bits(tiny_run: Callable[..., Any]) -> None:
    secure, plain = tiny_run(*EXACT, SECURE), tiny_run(*EXACT)
    error = secure.summary["secure_aggregation"]["largest_error"]
    assert 0 < error < 1e-9
    before = secure.folder.server_states.load_server(1)[0]
    for key, value in plain.folder.server_states.load_server(1)[0].items():
        rounding = 2.0**-24 * float(value.abs().max())  # the server keeps 24 bits
        assert float((value.double() - before[key].double()).abs().max()) <= error + 2 * rounding
    for name, value in states_of(plain).items():  # two rounds: training may blow a last bit up a little
        assert torch.allclose(states_of(secure)[name], value, atol=1e-4), name


def test_the_bytes_are_those_of_the_plan(tiny_run: Callable[..., Any]) -> None:
    secure, plain = tiny_run(*EXACT, SECURE), tiny_run(*EXACT)
    assert secure.summary["total_upload_bytes"] == 2 * plain.summary["total_upload_bytes"]
    assert secure.summary["total_download_bytes"] == plain.summary["total_download_bytes"]
    recipe, tensors = secure.federation.recipe, secure.federation.model.initial
    counted = count_traffic(secure.federation.algorithm, tensors, recipe, len(secure.federation.clients))
    assert counted == (secure.summary["total_upload_bytes"], secure.summary["total_download_bytes"])


def test_the_list_of_what_was_sent_shows_no_norm(tiny_run: Callable[..., Any]) -> None:
    tensors = [t for entry in sent_in_run(tiny_run(*EXACT, SECURE).folder.path) for t in entry["tensors"]]
    assert {(tensor["dtype"], tensor["norm"]) for tensor in tensors} == {("int64", None)}


def test_a_round_of_two_is_refused(tiny_run: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"a round has 2 clients. A sum of fewer than 3 would show single ones"):
        tiny_run(SECURE, "fraction_train=0.67")


class Sites:
    """Three sites in this process, and a server that can be started again.

    Attributes:
        refusing: site to what it refuses.
        silent: sites that do not help to open a sum.
    """

    def __init__(self, recipe: Recipe, place: Path) -> None:
        self.place = place
        prepare(recipe, place / "sites", SITES)
        self.agreement = Agreement.read(place / "sites" / "east" / AGREEMENT)
        self.programs: dict[str, SiteProgram] = {}
        self.refusing: dict[str, str] = {}
        self.seen: list[tuple[str, Message, Message]] = []
        for site in SITES:
            self.restart(site)

    def restart(self, site: str) -> None:
        if site in self.programs:
            self.programs[site].close()
        self.programs[site] = open_site(self.place / "sites" / site)

    def serve(self) -> dict[str, Any]:
        with open_server_folder(self.place / "out", self.agreement.recipe).locked() as folder:
            fleet = RemoteFleet(self._exchange, SITES, run_id_of(self.agreement, SITES))
            return serve(self.agreement, folder, fleet, engine="a test")

    def _exchange(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            message = decode(data)
            if message.about.get("do") == self.refusing.get(site, ""):
                yield site, encode(Message("refuse", message.run, message.round, {"why": "its disk is full"}))
                continue
            if message.about.get("do") in STAGES:
                self.restart(site)  # nothing is in its memory only
            answer = self.programs[site].handle(data)
            assert self.programs[site].handle(data) == answer, "a message that comes again has the same answer"
            self.seen.append((site, message, decode(answer)))
            yield site, answer

    def close(self) -> None:
        for program in self.programs.values():
            program.close()


@NEEDS_SECURE
def test_over_sites_it_ends_in_the_simulators_bytes_with_drop_outs_in_between(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    simulated = tiny_run(*EXACT, SECURE)
    sites = Sites(tiny_recipe(*EXACT, SECURE), tmp_path)
    try:
        sites.refusing = {"north": "mask"}
        with pytest.raises(ProtocolError, match="round 1: too few sites are left for secure aggregation"):
            sites.serve()
        trained = [site for site, asked, _ in sites.seen if asked.about.get("do") == "train"]
        assert trained == [*SITES]
        sites.refusing = {"west": "open"}  # one of three drops out after it has sent its part: two are enough
        summary = sites.serve()
    finally:
        sites.close()
    here, there = (run.server_states.load_server(2)[0] for run in (RunFolder.open(tmp_path / "out"), simulated.folder))
    assert here
    assert all(value.numpy().tobytes() == there[key].numpy().tobytes() for key, value in here.items())
    for name in ("test", "test_final", "total_upload_bytes", "total_download_bytes", "secure_aggregation"):
        assert summary[name] == simulated.summary[name], name
    assert not list((tmp_path / "out").glob("under-way")), "a sum that was opened is not kept"
    leaves_only_masked_sums(sites)


def leaves_only_masked_sums(sites: Sites) -> None:
    """What left each site are integers that no two messages have alike, and no number of rows with an update."""
    for site in SITES:
        entries = [entry for entry in sent_messages(sites.place / "sites" / site) if entry["kind"] != "again"]
        tensors = [tensor for entry in entries for tensor in entry["tensors"]]
        assert {(tensor["dtype"], tensor["norm"]) for tensor in tensors} == {("int64", None)}
        updates = [entry["about"]["updates"] for entry in entries if "updates" in entry["about"]]
        assert updates
        assert "num_examples" not in json.dumps(updates)
    masked = [answer for _, asked, answer in sites.seen if asked.about.get("do") == "mask"]
    rows = [
        value.flatten()[:4].tolist()
        for answer in masked
        for state in answer.states.values()
        for value in state.values()
    ]
    assert len({tuple(row) for row in rows}) == len(rows)
    assert min(abs(number) for row in rows for number in row) > 2**30, "they fill 64 bits"


@NEEDS_SECURE
def test_a_site_that_comes_back_from_a_crash_has_a_closed_folder(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Its secrets are for its own user only."""
    sites = Sites(tiny_recipe(*EXACT, SECURE, "rounds=1"), tmp_path)
    try:
        sites.serve()
    finally:
        sites.close()
    folder = tmp_path / "sites" / "east" / "secure"
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.name for path in folder.iterdir()} == {"party.json", "sum.safetensors"}


@NEEDS_SECURE
@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"do": "keys"}, "does not say its attempt"),
        ({"do": "share", "attempt": "new", "roster": {}}, "has begun no such attempt"),
        ({"do": "train", "bits": "many"}, "does not say"),
    ],
)
def test_a_site_refuses_questions_that_make_no_sense(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, about: dict[str, Any], text: str
) -> None:
    sites = Sites(tiny_recipe(*EXACT, SECURE), tmp_path)
    run = run_id_of(sites.agreement, SITES)
    try:
        setup = {"fingerprint": sites.agreement.fingerprint(), "initial": False}
        sites.programs["east"].handle(encode(Message("setup", run, 0, setup)))
        answer = decode(sites.programs["east"].handle(encode(Message("step", run, 1, about))))
    finally:
        sites.close()
    assert answer.kind == "refuse"
    assert text in answer.about["why"]
