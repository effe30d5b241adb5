"""Rounds that overlap over several sites: slow ones go on while rounds end, and a server that was cut off goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsa.agreement import AGREEMENT, Agreement
from fedsa.client.sent import sent_messages
from fedsa.deploy.preparing import prepare
from fedsa.deploy.site import SiteProgram, open_site
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import RemoteFleet
from fedsa.errors import UserError
from fedsa.messages import decode
from fedsa.recipe import Recipe
from fedsa.store import RunFolder

pytestmark = pytest.mark.run

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=6")
SLOW = "overlap={kind='buffered', buffer=2, paces={'site 0'=1.0, 'site 1'=1.0, 'site 2'=2.5}}"
SITES = ("east", "north", "south")
"""They get the clients "site 0", "site 1" and "site 2", one each."""
COMES_IN = {("east", 1): 1, ("north", 1): 1, ("south", 1): 3, ("north", 3): 4, ("south", 4): 6}
"""The round in which the update of a site comes, by the round that it was asked in; the others come in their own. So it
is in the simulator with these paces."""


class OneAtATime:
    """A site in this process: torch's random numbers are the process's, so one site computes at a time."""

    lock = threading.Lock()

    def __init__(self, program: SiteProgram) -> None:
        self.program = program

    def handle(self, data: bytes) -> bytes:
        with self.lock:
            return self.program.handle(data)


class SlowSites:
    """Carries bytes to sites in this process. Some answers are held back until a later round has begun.

    Args:
        sites: by their names.
        cut: before the evaluation after this round the server's process ends; sites finish what they were asked.
        comes_in: the round in which the update of a site comes, by the round that it was asked in.
    """

    def __init__(
        self, sites: Mapping[str, OneAtATime], cut: int = 0, comes_in: Mapping[tuple[str, int], int] = COMES_IN
    ) -> None:
        self._sites, self._cut, self._comes_in = sites, cut, comes_in
        self._changed = threading.Condition()
        self._begun = 0  # the last round that has begun

    def __call__(self, requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in sorted(requests.items(), key=lambda request: self._round_of(*request)):
            message = decode(data)
            if message.about.get("do") == "evaluate" and self._cut and message.round == self._cut + 1:
                self._wait(99, 0)
                raise CutError
            if message.about.get("do") == "train":
                self._wait(message.round, self._round_of(site, data))
            yield site, self._sites[site].handle(data)

    def _wait(self, round: int, until: int) -> None:
        """Take note that a round has begun, and wait until another one has."""
        with self._changed:
            self._begun = max(self._begun, round)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._begun >= until, timeout=60)

    def _round_of(self, site: str, data: bytes) -> int:
        round = decode(data).round
        return self._comes_in.get((site, round), round)


class CutError(Exception):
    """The server's process has ended here."""


def run_over(place: Path, exchange: SlowSites, **options: Any) -> dict[str, Any]:
    agreement = Agreement.read(place / "sites" / SITES[0] / AGREEMENT)
    with open_server_folder(place / "out", agreement.recipe).locked() as folder:
        fleet = RemoteFleet(exchange, SITES, run_id_of(agreement, SITES), **options)
        return serve(agreement, folder, fleet, engine="a test")


@pytest.fixture
def sites(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Iterator[dict[str, OneAtATime]]:
    prepare(tiny_recipe(*SETTINGS, SLOW), tmp_path / "sites", SITES)
    made = {site: OneAtATime(open_site(tmp_path / "sites" / site)) for site in SITES}
    assert [site.program.federation.clients for site in made.values()] == [("site 0",), ("site 1",), ("site 2",)]
    yield made
    for site in made.values():
        site.program.close()


def check_as_simulated(place: Path, summary: Mapping[str, Any], simulated: Any) -> None:
    """Who came when, the figures, and the bytes of the server's tensors are the simulator's."""
    folder = RunFolder.open(place / "out")
    lines, theirs = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text("utf-8").splitlines()]
        for path in (folder.path, simulated.folder.path)
    )
    for name in ("round", "client", "staleness", "validation", "upload_bytes", "download_bytes"):
        assert [line.get(name) for line in lines] == [line.get(name) for line in theirs], name
    for name in ("test", "test_final", "chosen_round", "chosen_score", "total_upload_bytes"):
        assert summary[name] == simulated.summary[name], name
    one, two = (each.server_states.load_server(6)[0] for each in (folder, simulated.folder))
    sent = [key for key in one if key.factor.value == "A"]
    assert sent
    assert all(one[key].numpy().tobytes() == two[key].numpy().tobytes() for key in sent)
    assert not (folder.path / "under-way").exists()


def trained(place: Path, site: str) -> list[int]:
    """The rounds that a site has trained, in order."""
    entries = [entry for entry in sent_messages(place / "sites" / site) if entry.get("tensors")]
    return [entry["round"] for entry in entries if entry["round"]]  # in round 0 one has sent the initial tensors


def test_slow_sites_go_on_while_rounds_end_and_the_bytes_are_the_simulators(
    sites: dict[str, OneAtATime], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    summary = run_over(tmp_path, SlowSites(sites))
    check_as_simulated(tmp_path, summary, tiny_run(*SETTINGS, SLOW))
    assert [trained(tmp_path, site) for site in SITES] == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 6], [1, 4]]


def test_a_server_that_was_cut_off_asks_again_and_nobody_trains_twice(
    sites: dict[str, OneAtATime], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    """South is under way each time: asked in round 1, and then in round 4."""
    for cut in (2, 5):
        with pytest.raises(CutError):
            run_over(tmp_path, SlowSites(sites, cut))
    summary = run_over(tmp_path, SlowSites(sites))
    check_as_simulated(tmp_path, summary, tiny_run(*SETTINGS, SLOW))
    assert [trained(tmp_path, site) for site in SITES] == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 6], [1, 4]]


def test_a_site_that_refuses_is_named_and_asked_again_in_the_next_round(
    sites: dict[str, OneAtATime], tmp_path: Path
) -> None:
    told: list[str] = []
    whole = SlowSites(sites, comes_in={})

    def one_is_broken(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, answer in whole(requests, deadline):
            asked = decode(requests[site])
            broken = (site, asked.round, asked.about.get("do")) == ("north", 2, "train")
            yield site, answer[:-1] + bytes([answer[-1] ^ 1]) if broken else answer

    summary = run_over(tmp_path, one_is_broken, tell=told.append)  # type: ignore[arg-type]
    assert [line for line in told if "left out" in line] == [
        "north is left out with what it was asked in round 2: a damaged message: its digest is of other bytes"
    ]
    assert summary["rounds"] == 6
    assert trained(tmp_path, "north")[:2] == [1, 2]
    assert trained(tmp_path, "north")[2:], "it was asked again"


@pytest.mark.parametrize("options", [{"deadline": 60}, {"quorum": 2}], ids=str)
def test_a_deadline_or_a_quorum_is_refused(
    sites: dict[str, OneAtATime], tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(UserError, match=r"In \[overlap\], `buffer` says how many updates end a round"):
        run_over(tmp_path, SlowSites(sites), **options)
