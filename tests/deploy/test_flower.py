"""Real processes of Flower on this machine carry bytes: a whole federation comes to the simulator's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedsa.deploy.local import deploy_local
from fedsa.errors import MissingExtraError, UserError
from fedsa.recipe import Recipe
from fedsa.store import FinishedRun, RunFolder
from support.extras import NEEDS_FLOWER

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")
SECONDS = 120  # for one answer, on a busy machine


def test_an_engine_that_is_missing_or_unknown_is_told_before_anything_is_written(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsa.deploy.local.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsa\[flower\]'"):
        deploy_local(tiny_recipe(), tmp_path / "run", ["north"], engine="flower")
    with pytest.raises(UserError, match="no engine is called 'flour'; did you mean 'flower'"):
        deploy_local(tiny_recipe(), tmp_path / "run", ["north"], engine="flour")
    monkeypatch.setattr("fedsa.deploy.local.find_spec", lambda name: "there")
    with pytest.raises(UserError, match="a port can be chosen with the engine nvflare only"):
        deploy_local(tiny_recipe(), tmp_path / "run", ["north"], engine="flower", port=8102)
    assert not (tmp_path / "run").exists()


@pytest.mark.run
@NEEDS_FLOWER
def test_flower_carries_a_federation_to_the_simulators_bytes_and_leaves_nothing_running(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    simulated = tiny_run(*SETTINGS)
    told: list[str] = []
    summary = deploy_local(
        tiny_recipe(*SETTINGS), tmp_path / "run", ["north", "south"], engine="flower", tell=told.append
    )
    assert summary["engine"] == "flower"
    assert any("experimental" in line for line in told)
    for name in ("test", "test_final", "chosen_round", "total_upload_bytes"):
        assert summary[name] == simulated.summary[name], name
    here = RunFolder.open(tmp_path / "run").server_states.load_server(2)[0]
    there = simulated.folder.server_states.load_server(2)[0]
    assert here
    assert all(there[key].numpy().tobytes() == value.numpy().tobytes() for key, value in here.items())
    sites = tmp_path / "run" / "sites"
    clients = {client for site in ("north", "south") for client in FinishedRun.open(sites / site / "run").clients}
    assert clients == set(simulated.federation.clients)
    assert len(list(sites.glob("*/adapters/*/adapter_model.safetensors"))) == len(clients)
    assert not [process for process in psutil.process_iter() if str(tmp_path) in _command(process)]


@pytest.mark.matrix
@NEEDS_FLOWER
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_flowers_processes_have_no_torch_and_are_followed_by_others_when_they_are_killed(tmp_path: Path) -> None:
    from fedsa.deploy.flower import run_local_flower

    program = (
        "import os, pathlib; from fedsa.deploy import worker; worker.serve({}, pathlib.Path(os.environ[worker.SOCKET]))"
    )
    commands = {
        site: [sys.executable, "-c", program.format(f"lambda body: body + b'{site}'")] for site in ("north", "south")
    }
    with run_local_flower(tmp_path, commands) as carry:

        def echo(body: bytes) -> None:
            assert dict(carry(dict.fromkeys(commands, body), SECONDS)) == {
                site: body + site.encode() for site in commands
            }

        echo(os.urandom(150_000))
        echo(b"")
        engine = [each for each in psutil.Process().children(recursive=True) if "bin/fl" in _command(each)]
        assert not [each for each in engine if "libtorch" in Path(f"/proc/{each.pid}/maps").read_text()]
        (run,) = [each for each in engine if "flwr-serverapp" in _command(each)]
        run.kill()
        echo(b"after the run's process was killed")
        assert carry.generation == 2


def _command(process: psutil.Process) -> str:
    """The command of a process; empty where it has ended meanwhile, and of a guard."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    return "" if "guard.py" in command else command
