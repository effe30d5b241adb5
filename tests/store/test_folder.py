"""The run folder by itself: which files are there, and when a round exists."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.errors import UserError
from fedsa.store import ClientState, Progress, RunFolder, background
from fedsa.types import Factor, Key

A = Key("layer", Factor.A)
CLIENTS = [f"client {number:02d}" for number in range(12)]


def state(value: float) -> ClientState:
    return ClientState({A: torch.full((3,), value)}, {}, version=0)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", "").locked() as made:
        made.register_clients({client: {} for client in CLIENTS})
        made.save_initial({})
        yield made


def save_round(folder: RunFolder, round: int, clients: list[str], held: dict[str, int]) -> None:
    for client in clients:
        folder.client_states.save_client(client, round, state(round))
        held[client] = round - 1
    folder.server_states.save_server(round, {A: torch.full((3,), float(round))}, {A: round}, held)


@pytest.mark.run
@pytest.mark.parametrize("seed", range(5))
def test_exactly_the_files_of_the_last_and_the_chosen_round_are_kept(folder: RunFolder, seed: int) -> None:
    """Against the definition, over many rounds, with a resume in the middle."""
    rng = random.Random(seed)
    trained: dict[str, list[int]] = {client: [] for client in CLIENTS}
    held: dict[str, int] = {}
    chosen = None
    for round in range(1, 40):
        clients = sorted(rng.sample(CLIENTS, rng.randint(1, 4)))
        save_round(folder, round, clients, held)
        for client in clients:
            trained[client].append(round)
        if rng.random() < 0.3:
            chosen = round
        folder.commit(Progress(round=round, chosen_round=chosen))
        folder.settle()  # files go some time after the commit
        expected = {}
        for client, rounds in trained.items():
            needed = {
                max((each for each in rounds if each <= limit), default=None)
                for limit in (round, chosen)
                if limit is not None
            }
            if needed - {None}:
                expected[client] = sorted(needed - {None})
        on_disk: dict[str, list[int]] = {}
        for path in sorted(folder.path.glob("clients/*/*")):
            on_disk.setdefault(path.parent.name[6:], []).append(int(path.stem.removeprefix("round-")))
        assert on_disk == expected
        servers = sorted(int(path.stem.removeprefix("round-")) for path in folder.path.glob("server/*"))
        assert servers == sorted({round, chosen} - {None})
        if round == 20:
            folder.close()
            folder = RunFolder.open(folder.path, write=True)
            folder.roll_back(Progress(round=round, chosen_round=chosen))
    for client, rounds in trained.items():
        loaded = folder.client_states.load_client(client, 39)
        assert (loaded is None) is (not rounds)
        assert loaded is None or loaded.tensors[A].tolist() == [rounds[-1]] * 3
    folder.close()


@pytest.fixture
def shut(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that writes no tensors until the event is set."""
    opened, write = threading.Event(), background.write_atomically

    def written(path: Path, content: bytes) -> None:
        opened.wait()
        write(path, content)

    monkeypatch.setattr(background, "write_atomically", written)
    yield opened
    opened.set()


def opening(monkeypatch: pytest.MonkeyPatch, name: str, disk: threading.Event) -> None:
    """Have the disk write as soon as somebody waits for it in a method of `WriteBehind`."""
    method = getattr(background.WriteBehind, name)

    def waiting(self: background.WriteBehind, *arguments: Any) -> Any:
        disk.set()
        return method(self, *arguments)

    monkeypatch.setattr(background.WriteBehind, name, waiting)


def test_a_round_exists_only_when_all_its_files_are_safe(
    folder: RunFolder, shut: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening(monkeypatch, "settle", shut)
    safe: list[int] = []
    commit = RunFolder._commit

    def watched(self: RunFolder, progress: Progress) -> None:
        safe.append(len(list(self.path.glob("*/**/round-000001.safetensors"))))
        commit(self, progress)

    monkeypatch.setattr(RunFolder, "_commit", watched)
    save_round(folder, 1, CLIENTS[:7], {})
    assert not list(folder.path.glob("*/**/round-*")), "nobody waited for the disk"
    folder.commit(Progress(round=1))
    assert safe == [7 + 1]


def test_what_a_round_writes_is_safe_on_the_disk_before_the_round_exists(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the commit loses what the disk was not asked to keep: so it is asked for every byte."""
    fsync, sizes, unsafe = os.fsync, {}, []
    commit = RunFolder._commit

    def asked(descriptor: int) -> None:
        fsync(descriptor)
        about = os.fstat(descriptor)
        sizes[about.st_ino] = about.st_size

    def watched(self: RunFolder, progress: Progress) -> None:
        files = [path for path in self.path.rglob("*") if path.is_file() and path.name != ".lock"]
        assert {"metrics.jsonl", "round-000001.safetensors"} <= {path.name for path in files}
        unsafe.extend(path for path in files if sizes.get(path.stat().st_ino) != path.stat().st_size)
        commit(self, progress)

    monkeypatch.setattr(os, "fsync", asked)
    monkeypatch.setattr(RunFolder, "_commit", watched)
    folder.write_recipe("")  # the fixture's was written before anybody watched
    folder.register_clients({client: {} for client in CLIENTS})
    folder.save_initial({})
    folder.append_metrics([{"round": 0}])
    save_round(folder, 1, CLIENTS, {})
    folder.append_metrics([{"round": 1}])
    folder.commit(Progress(round=1))
    assert unsafe == []
    assert sizes[(folder.path / "state.json").stat().st_ino] == (folder.path / "state.json").stat().st_size


def test_a_state_that_is_still_being_written_can_be_read(
    folder: RunFolder, shut: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening(monkeypatch, "wait", shut)
    save_round(folder, 1, CLIENTS[:3], {})
    assert not list(folder.path.glob("*/**/round-*"))
    folder.client_states.load_ahead(CLIENTS, 1)
    for number, client in enumerate(CLIENTS):
        loaded = folder.client_states.load_client(client, 1)
        assert (loaded is not None) is (number < 3)
    assert folder.server_states.load_server(1)[0][A].tolist() == [1.0, 1.0, 1.0]


def test_a_write_that_fails_leaves_the_round_before(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, int] = {}
    save_round(folder, 1, CLIENTS, held)
    folder.commit(Progress(round=1))
    before, write = (folder.path / "state.json").read_bytes(), background.write_atomically

    def full(path: Path, content: bytes) -> None:
        if "00003" in path.parent.name:
            raise UserError("the disk is full")
        write(path, content)

    monkeypatch.setattr(background, "write_atomically", full)
    steps = (lambda: save_round(folder, 2, CLIENTS, held), lambda: folder.commit(Progress(round=2)))
    with pytest.raises(UserError, match="the disk is full"):
        [step() for step in steps]
    assert (folder.path / "state.json").read_bytes() == before
    folder.close()
    with RunFolder.open(folder.path, write=True).locked() as again:
        again.roll_back(Progress(round=1))
        assert all(again.client_states.load_client(client, 9).tensors[A].tolist() == [1.0] * 3 for client in CLIENTS)
        assert again.server_states.client_versions(1) == dict.fromkeys(CLIENTS, 0)


@pytest.mark.parametrize("all_rounds", [False, True], ids=["two rounds are kept", "all rounds are kept"])
def test_what_an_interruption_left_is_removed(folder: RunFolder, all_rounds: bool) -> None:
    held: dict[str, int] = {}
    save_round(folder, 1, CLIENTS, held)
    folder.commit(Progress(round=1))
    kept = {path for path in folder.path.rglob("*") if path.is_file()}
    save_round(folder, 2, CLIENTS[:5], held)
    folder.settle()  # the files are there, and the round is not
    assert len(list(folder.path.glob("clients/*/round-000002.safetensors"))) == 5
    for place in (folder.path, folder.path / "server", next(folder.path.glob("clients/*"))):
        (place / ".round-000002.safetensors.partial").touch()
    folder.close()
    with RunFolder.open(folder.path, write=True).locked() as again:
        again.keeps_all_rounds = all_rounds
        again.roll_back(Progress(round=1))
        assert {path for path in again.path.rglob("*") if path.is_file()} == kept
        assert again.client_states.load_client(CLIENTS[0], 2).tensors[A].tolist() == [1.0] * 3


def test_the_commit_point_does_not_grow_with_the_clients(folder: RunFolder) -> None:
    save_round(folder, 1, CLIENTS, {})
    folder.commit(Progress(round=1))
    assert not any(client in (folder.path / "state.json").read_text() for client in CLIENTS)


def test_a_list_of_clients_that_has_lost_some_is_told(folder: RunFolder) -> None:
    save_round(folder, 1, CLIENTS, {})
    folder.commit(Progress(round=1))
    clients = json.loads((folder.path / "clients.json").read_text())
    del clients[CLIENTS[4]]
    (folder.path / "clients.json").write_text(json.dumps(clients))
    with pytest.raises(UserError, match=r"clients.json was changed after it was written"):
        RunFolder.open(folder.path)
