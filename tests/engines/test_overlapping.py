"""Rounds that overlap, in the simulator: who comes when, what a round has, what a resumed run comes to."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.callbacks import Callback
from fedsa.cost.traffic import count_traffic
from fedsa.engines.overlapping import OverlappingFleet
from fedsa.engines.simulated_clock import pace_of
from fedsa.engines.simulator import simulate
from fedsa.errors import ProtocolError, RunFolderError
from fedsa.federation import Federation
from fedsa.recipe import BufferedSettings, Recipe, dump_recipe
from fedsa.statistics import summarize_clients
from fedsa.store import Progress, RunFolder
from fedsa.types import Payload, Payloads, Update
from support.flipped import flipped

SLOW = "overlap={kind='buffered', buffer=2, paces={'site 0'=1.0, 'site 1'=1.0, 'site 2'=2.5}}"
"""Each of three clients takes three steps a round; so the last one needs 7.5 units of time, the others 3."""
COME = [
    {"site 0": 0, "site 1": 0},  # at 3; site 2 is due at 7.5
    {"site 0": 0, "site 1": 0},  # at 6
    {"site 0": 0, "site 2": 2},  # at 9; site 1 is due then too, and its id is greater
    {"site 0": 0, "site 1": 1},  # at 12; site 2 is due at 16.5
    {"site 0": 0, "site 1": 0},  # at 15
    {"site 0": 0, "site 1": 0, "site 2": 2},  # at 18: the last round waits for all
]


def lines_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]


def came(folder: RunFolder) -> list[dict[str, int]]:
    """For each round from the first on, the clients whose updates it has, with the rounds by which they came late."""
    lines = [line for line in lines_of(folder) if line["train"] is not None]
    rounds = range(1, 1 + max(line["round"] for line in lines))
    return [{line["client"]: line["staleness"] for line in lines if line["round"] == round} for round in rounds]


def tensors_of(folder: RunFolder, round: int) -> dict[str, torch.Tensor]:
    """All that server and clients have after a round."""
    tensors, _, slots, _ = folder.server_states.load_server(round)
    named = {f"server {key}": value for key, value in tensors.items()} | {f"slot {key}": v for key, v in slots.items()}
    for client in folder.read_json("clients.json"):
        state = folder.client_states.load_client(client, round)
        named |= {f"{client} {key}": value for key, value in state.tensors.items()} if state else {}
    return named


def equal(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(one[name].numpy().tobytes() == two[name].numpy().tobytes() for name in one)


@pytest.mark.parametrize(
    "settings", [(), ("fraction_train=0.67", "server.optimizer=fedavgm"), ("wire_dtype=bf16", "algorithm=fedit")]
)
def test_with_a_buffer_of_all_clients_it_is_the_synchronous_run_byte_for_byte(
    tiny_run: Callable[..., Any], settings: tuple[str, ...]
) -> None:
    every = "overlap={kind='buffered', buffer=9, pace_spread=4.0}"
    overlapping, plain = tiny_run("rounds=3", *settings, every), tiny_run("rounds=3", *settings)
    assert equal(tensors_of(overlapping.folder, 3), tensors_of(plain.folder, 3))
    for name in ("test", "test_final", "chosen_round", "chosen_score", "total_upload_bytes", "total_download_bytes"):
        assert overlapping.summary[name] == plain.summary[name]


def test_a_slow_client_goes_on_and_counts_in_the_round_in_which_it_comes(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("rounds=6", SLOW)
    assert came(run.folder) == COME
    clocks = {line["round"]: line["clock"] for line in lines_of(run.folder)}
    assert clocks == {0: 0.0, 1: 3.0, 2: 6.0, 3: 9.0, 4: 12.0, 5: 15.0, 6: 18.0}
    assert not (run.folder.path / "under-way").exists(), "nobody is under way at the end"


def test_who_still_trains_is_not_measured_and_its_newest_score_counts(tiny_run: Callable[..., Any]) -> None:
    """So rounds are compared over the same clients, whoever is idle."""
    run = tiny_run("rounds=6", SLOW)
    by_round: dict[int, dict[str, dict[str, float]]] = {}
    for line in lines_of(run.folder):
        if "validation" in line:
            by_round.setdefault(line["round"], {})[line["client"]] = line["validation"]
    assert [sorted(by_round[round]) for round in range(7)] == [
        sorted(clients) for clients in ({"site 2", *COME[0]}, *COME)
    ]
    known: dict[str, dict[str, float]] = {}
    best: tuple[float, int] = (-1.0, 0)
    for round, results in by_round.items():
        known |= results
        score = summarize_clients({client: known[client] for client in sorted(known)}, "accuracy").weighted_mean
        best = max(best, (score, -round))
    assert (run.summary["chosen_score"], run.summary["chosen_round"]) == (best[0], -best[1])


def test_a_plan_counts_the_bytes_of_rounds_that_overlap(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("rounds=6", SLOW)
    federation = run.federation
    counted = count_traffic(federation.algorithm, federation.model.initial, federation.recipe, 3)
    assert counted == (run.summary["total_upload_bytes"], run.summary["total_download_bytes"])


class StoppedError(Exception):
    """The process has ended here."""


class Stopping(Callback):
    """Ends the process at one moment of a round."""

    def __init__(self, moment: str, round: int) -> None:
        self.moment, self.round = moment, round

    def on_round_begin(self, round: int, clients: Sequence[str]) -> None:
        self._stop("begin", round)

    def on_client_trained(self, round: int, client: str, metrics: Mapping[str, float]) -> None:
        self._stop("trained", round)

    def on_client_evaluated(self, round: int, split: str, client: str, metrics: Mapping[str, float]) -> None:
        self._stop(split, round)

    def on_round_end(self, round: int, lines: Sequence[Mapping[str, Any]], validation: Any) -> None:
        self._stop("end", round)

    def _stop(self, moment: str, round: int) -> None:
        if (moment, round) == (self.moment, self.round):
            raise StoppedError


def run_in(path: Path, federation: Federation, *callbacks: Callback) -> dict[str, Any]:
    there = path.exists()
    opened = RunFolder.open(path, write=True) if there else RunFolder.create(path, dump_recipe(federation.recipe))
    with opened.locked() as folder:
        return simulate(federation, folder, callbacks)


@pytest.mark.run
def test_a_run_that_was_stopped_while_clients_were_under_way_comes_to_the_same_bytes(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    whole = tiny_run("rounds=6", SLOW)
    path = tmp_path / "run"
    for moment in (("end", 1), ("trained", 3), ("validation", 3), ("begin", 5), ("trained", 6), ("test", 6)):
        with pytest.raises(StoppedError):
            run_in(path, whole.federation, Stopping(*moment))
    summary = run_in(path, whole.federation)
    folder = RunFolder.open(path)
    assert came(folder) == COME
    assert equal(tensors_of(folder, 6), tensors_of(whole.folder, 6))
    names = ("test", "test_final", "chosen_round", "chosen_score", "total_upload_bytes", "total_download_bytes")
    assert {name: summary[name] for name in names} == {name: whole.summary[name] for name in names}
    assert not (path / "under-way").exists()


@pytest.mark.run
def test_an_update_under_way_that_is_lost_or_damaged_is_named(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    federation, path = tiny_run("rounds=6", SLOW).federation, tmp_path / "run"
    with pytest.raises(StoppedError):
        run_in(path, federation, Stopping("end", 2))
    (message,) = sorted((path / "under-way").iterdir())
    content = message.read_bytes()
    message.unlink()
    with pytest.raises(RunFolderError, match=r"000001-.*\.message cannot be read .*: put it back from a copy"):
        run_in(path, federation)
    message.write_bytes(content)
    for _ in flipped(path / "under-way"):
        with pytest.raises(RunFolderError, match=r"000001-.*\.message cannot be read \(a damaged message: "):
            run_in(path, federation)
    assert run_in(path, federation)


@pytest.mark.run
@pytest.mark.parametrize(
    "settings",
    [
        ("fraction_train=0.67", "evaluation.fraction_evaluate=0.4", "overlap.buffer=1"),
        ("wire_dtype=bf16", "server.optimizer=fedavgm", "robust={kind='norm_bound', clipping_norm=0.1}"),
        ("robust={kind='median'}", "evaluation.evaluate_after=both"),
        ("personal_state=reconstruct",),
        ("training.trainer=cohort", "training.optimizer_state=keep"),
        ("adapter.ranks={'site 2'=1}", "training.head_warmup_epochs=1"),
    ],
    ids=str,
)
def test_what_else_a_recipe_asks_for_goes_with_it_and_with_going_on(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    federation = Federation.from_recipe(tiny_recipe("rounds=4", SLOW, *settings))
    whole = run_in(tmp_path / "whole", federation)
    with pytest.raises(StoppedError):
        run_in(tmp_path / "stopped", federation, Stopping("end", 2))
    assert run_in(tmp_path / "stopped", federation)["test"] == whole["test"]
    one, two = (tensors_of(RunFolder.open(tmp_path / name), 4) for name in ("whole", "stopped"))
    assert equal(one, two)
    assert max(max(round.values(), default=0) for round in came(RunFolder.open(tmp_path / "whole"))) > 0


class Scripted:
    """Runners whose updates come in a given order, whoever was asked when."""

    def __init__(self, order: Sequence[str], refused: Collection[str] = ()) -> None:
        self.order, self.refused, self.underway = list(order), refused, dict[str, int]()
        self.kept: list[dict[str, int]] = []

    def begin(self, payloads: Payloads) -> None:
        self.underway |= dict.fromkeys(payloads, payloads.round)

    def wait(self) -> Sequence[Update]:
        client = next(each for each in self.order if each in self.underway)
        self.order.remove(client)
        round = self.underway.pop(client)
        return [] if client in self.refused else [Update(client, round, 1, {})]

    def keep(self) -> None:
        self.kept.append(dict(self.underway))


def a_round(runners: Scripted, round: int, clients: Sequence[str], **settings: Any) -> tuple[list[str], Progress]:
    progress = Progress()
    asked = Payloads(round, clients, lambda client: Payload(client, round, round - 1, {}))
    overlap = BufferedSettings(**{"buffer": 2, **settings})
    fleet = OverlappingFleet(None, runners, overlap, 5, progress)  # type: ignore[arg-type]  # nobody is measured
    return [update.client for update in fleet.train(asked)], progress


def test_a_round_ends_with_as_many_as_the_buffer_in_the_order_of_ids() -> None:
    runners = Scripted(["c", "a", "b"])
    assert a_round(runners, 1, ["a", "b", "c"]) == (["a", "c"], Progress(underway={"b": 1}))
    assert runners.kept == [{"b": 1}], "what is under way is safe before the round exists"


def test_who_refuses_and_who_comes_too_late_does_not_fill_the_buffer() -> None:
    runners = Scripted(["late", "a", "b", "c"], refused={"a"})
    runners.underway["late"] = 1
    come, progress = a_round(runners, 4, ["a", "b", "c"], max_staleness=2)
    assert (come, progress.underway) == (["b", "c", "late"], {})


def test_the_last_round_waits_for_all() -> None:
    assert a_round(Scripted(["b", "a", "c"]), 5, ["a", "b", "c"], buffer=1) == (["a", "b", "c"], Progress())


def test_a_round_without_any_update_is_none() -> None:
    with pytest.raises(ProtocolError, match="round 1: no client that was asked has sent an update"):
        a_round(Scripted(["a"], refused={"a"}), 1, ["a"])


def test_the_pace_of_a_client_follows_from_the_seed_and_is_within_the_spread() -> None:
    settings = BufferedSettings(buffer=1, pace_spread=4.0, paces={"mine": 9.0})
    paces = [pace_of(f"c{number}", settings, seed=0) for number in range(200)]
    assert min(paces) >= 1.0
    assert max(paces) <= 4.0
    assert sum(pace < 2.0 for pace in paces) == pytest.approx(100, abs=25), "as many below the middle as above it"
    assert paces == [pace_of(f"c{number}", settings, seed=0) for number in range(200)]
    assert paces != [pace_of(f"c{number}", settings, seed=1) for number in range(200)]
    assert pace_of("mine", settings, seed=0) == 9.0


def test_what_is_there_of_a_recipe_is_what_a_run_writes(tiny_run: Callable[..., Any]) -> None:
    written = tomllib.loads((tiny_run("rounds=6", SLOW).folder.path / "recipe.toml").read_text("utf-8"))["overlap"]
    assert written["buffer"] == 2
    assert (written["kind"], written["staleness_exponent"], written["max_staleness"]) == ("buffered", 0.5, 10)
