"""What a site keeps by itself, without a server's files: by client and round, whole, and no longer than it is told."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fedsa.errors import RunFolderError, UserError
from fedsa.store import ClientState, ClientStateFiles, background, open_states_of_site
from fedsa.store.locked_folder import LockedFolder
from fedsa.types import Factor, Key

A = Key("layer", Factor.A)
CLIENTS = ["ward 1", "ward 2", "a/b:c", "é" * 100, "é" * 100 + "!"]


def state(value: float) -> ClientState:
    moments = {"exp_avg|layer:A:default": torch.full((3,), value / 2)}
    return ClientState({A: torch.full((3,), value)}, moments, version=int(value) - 1)


def value_of(states: ClientStateFiles, client: str, round: int) -> float | None:
    kept = states.load_client(client, round)
    return None if kept is None else kept.tensors[A][0].item()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., ClientStateFiles]]:
    """Open the site's folder, after the one that was opened before is closed."""
    last: list[ClientStateFiles] = []

    def open_again(run: str = "a-run", clients: list[str] = CLIENTS) -> ClientStateFiles:
        while last:
            last.pop().close()
        last.append(open_states_of_site(tmp_path / "site" / "states", run, clients))
        return last[0]

    yield open_again
    while last:
        last.pop().close()


def test_what_was_saved_is_there_again(opened: Callable[..., ClientStateFiles]) -> None:
    states = opened()
    for number, client in enumerate(CLIENTS, start=1):
        states.save_client(client, number, state(number))
        states.save_personal(client, number, {A: torch.full((3,), -float(number))})
    states.settle()
    again = opened()
    for number, client in enumerate(CLIENTS, start=1):
        kept = again.load_client(client, 9)
        assert kept is not None
        assert kept.tensors[A].tolist() == [number] * 3
        assert [moments.tolist() for moments in kept.optimizer_state.values()] == [[number / 2] * 3]
        assert kept.version == number - 1
        assert again.load_client(client, number - 1) is None
        personal = again.load_personal(client, number)
        assert personal is not None
        assert personal[A].tolist() == [-number] * 3


def test_a_client_has_its_folder_whoever_else_is_there(opened: Callable[..., ClientStateFiles]) -> None:
    states = opened(clients=CLIENTS[1:2])
    states.save_client(CLIENTS[1], 1, state(1))
    states.settle()
    assert value_of(opened(clients=["a new ward", *CLIENTS]), CLIENTS[1], 1) == 1


@pytest.mark.parametrize("seed", range(3))
def test_pruned_to_the_rounds_that_are_told(opened: Callable[..., ClientStateFiles], tmp_path: Path, seed: int) -> None:
    """Against the definition: of each client the last state that is not after one of the rounds; opened anew midway."""
    rng, states = random.Random(seed), opened()
    saved: dict[str, list[int]] = {client: [] for client in CLIENTS}
    for round in range(1, 25):
        for client in rng.sample(CLIENTS, rng.randint(0, 4)):
            states.save_client(client, round, state(round))
            saved[client].append(round)
        told = {round, max(round - 1, 1), rng.randint(1, round)} if rng.random() < 0.7 else {round}
        states.prune(told)
        states.settle()
        for client, rounds in saved.items():
            saved[client] = sorted(
                {max(r for r in rounds if r <= limit) for limit in told if rounds and rounds[0] <= limit}
            )
            for limit in (round, *told):
                assert value_of(states, client, limit) == max((r for r in saved[client] if r <= limit), default=None)
        files = len(list((tmp_path / "site" / "states").glob("*/round-*.safetensors")))
        assert files == sum(map(len, saved.values()))
        if round == 12:
            states = opened()


def test_a_round_that_is_done_again_ends_what_came_after_it(opened: Callable[..., ClientStateFiles]) -> None:
    """The server has lost rounds and asks for them anew: states of the history that was given up must not come back."""
    states = opened()
    for round in (1, 2, 3, 4):
        states.save_client("ward 1", round, state(round))
    states.save_client("ward 1", 2, state(2.5))
    states.save_client("ward 1", 2, state(2.75))
    expected = [1, 2.75, 2.75, 2.75]
    assert [value_of(states, "ward 1", round) for round in (1, 2, 3, 9)] == expected
    states.settle()
    again = opened()
    assert [value_of(again, "ward 1", round) for round in (1, 2, 3, 9)] == expected


def test_a_crash_leaves_the_state_before(
    opened: Callable[..., ClientStateFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = opened()
    states.save_client("ward 1", 1, state(1))
    states.settle()
    failed = threading.Event()

    def full(path: Path, content: bytes) -> None:
        path.with_name(f".{path.name}.partial").write_bytes(content[:50])
        failed.set()
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(background, "write_atomically", full)
        states.save_client("ward 1", 2, state(2))
        assert failed.wait(60)
        with pytest.raises(UserError, match="the disk is full"):
            states.settle()
    assert value_of(opened(), "ward 1", 2) == 1
    assert not list((tmp_path / "site").rglob("*.partial"))


def test_who_only_looks_whether_a_folder_is_in_use_does_not_stop_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = FileLock(tmp_path / ".lock")
    looking.acquire()
    monkeypatch.setattr("filelock._api.time.sleep", lambda seconds: looking.release())
    folder = LockedFolder(tmp_path)
    folder.acquire()
    folder.release()


def test_one_process_of_one_run_writes_it(opened: Callable[..., ClientStateFiles], tmp_path: Path) -> None:
    path = tmp_path / "site" / "states"
    states = opened()
    states.save_client("ward 1", 1, state(1))
    states.settle()
    with pytest.raises(RunFolderError, match="is in use"):
        open_states_of_site(path, "a-run", CLIENTS)
    with pytest.raises(RunFolderError, match="is the file of another run"):
        opened(run="another run").load_client("ward 1", 1)
    with pytest.raises(RunFolderError, match="has no client 'ward 3'"):
        opened().load_client("ward 3", 1)
    opened().close()
    (folder,) = [place for place in path.iterdir() if place.is_dir()]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="is a link"):
        opened()
