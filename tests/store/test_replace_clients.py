"""Clients that come in the middle of a run: after an interruption at any moment the old list is there, or the new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsa.store import Progress, RunFolder, replace_clients
from fedsa.types import Key

KEY = Key.parse("layer:A:default")
OLD = {"b": {"site": "b", "train_examples": 5}, "d": {"site": "d", "train_examples": 5}}
NEW = {**OLD, "a": {"site": "a", "train_examples": 5, "joined": 2}, "c": {"site": "c", "joined": 2}}


class CutError(Exception):
    """The process has ended here."""


@pytest.fixture
def run(tmp_path: Path, recipe_file: Callable[..., Path]) -> RunFolder:
    """After its first round, of the old clients."""
    folder = RunFolder.create(tmp_path / "run", recipe_file().read_text())
    folder.begin("run")
    folder.register_clients(OLD)
    folder.save_initial({})
    save(folder, 1, {"b": 0})
    return folder


def save(folder: RunFolder, round: int, versions: dict[str, int]) -> Progress:
    folder.server_states.save_server(round, {KEY: torch.zeros(2)}, {KEY: round}, versions)
    progress = Progress(round=round)
    folder.commit(progress)
    return progress


def test_each_round_has_the_clients_that_were_in_it(run: RunFolder) -> None:
    run.keeps_all_rounds = True
    replace_clients(run, NEW, Progress(round=1))
    save(run, 2, {"a": 1, "b": 1})
    run.close()
    again = RunFolder.open(run.path)
    assert again.server_states.client_versions(1) == {"b": 0}
    assert again.server_states.client_versions(2) == {"a": 1, "b": 1}
    entries = again.read_json("clients.json")
    assert [*entries] == ["a", "b", "c", "d"]
    assert [entry["folder"] for entry in entries.values()] == ["00000-a", "00001-b", "00002-c", "00003-d"]


@pytest.mark.parametrize("last", range(4))
def test_a_run_that_was_cut_off_has_the_old_clients_or_the_new(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Cut off before each write in turn: a commit, the list, a commit; and after the last."""
    done = 0

    def before(name: str) -> None:
        write = getattr(RunFolder, name)

        def counted(*arguments: object) -> None:
            nonlocal done
            if done == last:
                raise CutError
            done += 1
            write(*arguments)

        monkeypatch.setattr(RunFolder, name, counted)

    before("commit")
    before("register_clients")
    if last < 3:
        with pytest.raises(CutError):
            replace_clients(run, NEW, Progress(round=1))
    else:
        replace_clients(run, NEW, Progress(round=1))
    monkeypatch.undo()
    run.close()
    with RunFolder.open(run.path, write=True).locked() as again:
        assert {*again.read_json("clients.json")} == {*(OLD if last < 2 else NEW)}
        assert again.server_states.client_versions(1) == {"b": 0}
        replace_clients(again, NEW, Progress(round=1))
        assert {*again.read_json("clients.json")} == {*NEW}
