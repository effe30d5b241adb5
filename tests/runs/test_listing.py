"""Runs are listed with how far they are, and finished ones give back what they do not need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedsa.runs.export import export
from fedsa.runs.listing import list_runs
from fedsa.store import FinishedRun, RunFolder, clean, size_of
from support.run_folders import unfinish
from support.tiny_runs import TinyRun

pytestmark = pytest.mark.run


@pytest.fixture
def runs(finished_run: Path, tmp_path: Path) -> Path:
    """A folder with a run of each state but running, and with a recipe of the user's own."""
    folder = tmp_path / "runs"
    for name in ("done", "sweep/one", "stopped", "broken"):
        shutil.copytree(finished_run, folder / name)
    (folder / "sweep" / "one.log").write_text("exit code: 0\n", encoding="utf-8")
    unfinish(folder / "stopped")
    (folder / "broken" / "clients.json").write_text("{}", encoding="utf-8")
    (folder / "mine").mkdir()
    (folder / "mine" / "recipe.toml").write_text("rounds = 1\n", encoding="utf-8")
    return folder


def test_runs_are_found_with_their_states(runs: Path) -> None:
    found = {run.path.relative_to(runs).as_posix(): run for run in list_runs(runs)}
    assert {name: run.state for name, run in found.items()} == {
        "broken": "damaged",
        "done": "finished",
        "stopped": "interrupted",
        "sweep/one": "finished",
    }
    done, summary = found["done"], FinishedRun.open(runs / "done").summary
    assert (done.algorithm, done.variant, done.clients, done.rounds, done.finished_rounds) == ("fedsa", "lora", 3, 2, 2)
    assert (done.place, done.sweep, done.seed) == ("simulation", None, 0)
    assert (done.score, done.metric) == (summary["test"]["weighted_mean"], "accuracy")
    assert done.bytes == sum(file.stat().st_size for file in (runs / "done").rglob("*") if file.is_file())
    assert found["sweep/one"].sweep == runs / "sweep"
    assert (found["stopped"].finished_rounds, found["stopped"].score) == (1, None)
    assert "clients.json" in found["broken"].reason
    assert [run.path for run in list_runs(runs / "done")] == [runs / "done"]


def test_a_run_that_is_being_written_is_running(runs: Path) -> None:
    with RunFolder.open(runs / "stopped", write=True).locked():
        assert [run.state for run in list_runs(runs / "stopped")] == ["running"]


def test_cleaning_frees_what_was_promised_and_leaves_what_is_exported(
    tiny_run: Callable[..., TinyRun], tmp_path: Path
) -> None:
    run = tiny_run("rounds=3", "keep_rounds=all", "training.optimizer_state=keep")
    path = Path(shutil.copytree(run.folder.path, tmp_path / "run"))
    half = path / "clients" / "00000-site 0" / ".round-000004.safetensors.partial"
    half.write_bytes(b"half")
    for which in ("chosen", "final"):
        export(path, tmp_path / "before" / which, round=which)
    (listed,) = list_runs(path)
    before = size_of(path)
    freed = clean(path)
    assert before - size_of(path) == freed > 0
    assert freed == pytest.approx(listed.unneeded_bytes, rel=0.01)
    assert not half.exists()
    chosen = run.summary["chosen_round"]
    kept = {int(file.stem.removeprefix("round-")) for file in path.rglob("round-*.safetensors")}
    assert kept == {chosen, 3} - {0}
    for which in ("chosen", "final"):
        export(path, tmp_path / "after" / which, round=which)
        for file in sorted((tmp_path / "before" / which).rglob("*.safetensors")):
            other = load_file(tmp_path / "after" / file.relative_to(tmp_path / "before"))
            assert all(value.equal(other[name]) for name, value in load_file(file).items())
    (listed,) = list_runs(path)
    assert (listed.state, listed.unneeded_bytes, clean(path)) == ("finished", 0, 0)


def test_the_command_lists_cleans_and_asks(runs: Path, fedsa_command: Callable[..., Any]) -> None:
    half = runs / "done" / ".summary.json.partial"
    half.write_bytes(b"0123456789")
    unfinished = {file: file.read_bytes() for file in (runs / "stopped").rglob("*") if file.is_file()}
    outcome = fedsa_command("runs", runs)
    assert outcome.code == 0
    assert f"fedsa resume {runs / 'stopped'}" in outcome.out
    assert f"fedsa runs {runs} --clean" in outcome.out
    listed = json.loads(fedsa_command("runs", runs, "--json").out)
    assert [entry["state"] for entry in listed] == ["damaged", "finished", "interrupted", "finished"]
    assert all(set(entry) == set(listed[0]) >= {"path", "score", "bytes", "unneeded_bytes"} for entry in listed)
    outcome = fedsa_command("runs", runs, "--clean")  # nobody can answer
    assert (outcome.code, half.exists()) == (2, True)
    assert "--yes" in outcome.error
    cleaned = json.loads(fedsa_command("runs", runs, "--clean", "--yes", "--json").out)
    assert (cleaned["freed_bytes"], half.exists()) == (10, False)
    assert cleaned["runs"] == [{"path": str(runs / "done"), "freed_bytes": 10}]
    assert {file: file.read_bytes() for file in unfinished} == unfinished


def test_mistakes(tmp_path: Path, fedsa_command: Callable[..., Any]) -> None:
    assert fedsa_command("runs", tmp_path / "none").code == 2
    assert fedsa_command("runs", tmp_path, "--yes").code == 2
    assert f"no runs in {tmp_path}" in fedsa_command("runs", tmp_path).out
