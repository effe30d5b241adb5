"""A whole federation on this machine, in real processes with TLS between them: the simulator's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedsa.recipe import Recipe
from fedsa.store import FinishedRun, RunFolder
from support.extras import NEEDS_NVFLARE

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")


def test_three_processes_come_to_the_simulators_bytes_and_leave_nothing_running(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    from fedsa.deploy.local import deploy_local
    from fedsa.deploy.status import sent_of, status_of

    told: list[str] = []
    summary = deploy_local(tiny_recipe(*SETTINGS), tmp_path / "run", ["north", "south"], tell=told.append)
    simulated = tiny_run(*SETTINGS)
    assert summary["engine"] == "nvflare"
    for name in ("test", "test_final", "chosen_round", "total_upload_bytes"):
        assert summary[name] == simulated.summary[name], name
    here = RunFolder.open(tmp_path / "run").server_states.load_server(2)[0]
    there = simulated.folder.server_states.load_server(2)[0]
    assert here
    assert all(there[key].numpy().tobytes() == value.numpy().tobytes() for key, value in here.items())
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert FinishedRun.open(tmp_path / "run").summary == summary
    clients = []
    for site in ("north", "south"):
        finished = FinishedRun.open(tmp_path / "run" / "sites" / site / "run")
        clients += finished.clients
        adapters = (tmp_path / "run" / "sites" / site / "adapters").glob("*/adapter_model.safetensors")
        assert len(list(adapters)) == len(finished.clients)
    assert sorted(clients) == sorted(simulated.federation.clients)
    assert status_of(tmp_path / "run")["state"] == "finished"
    entries = list(sent_of(tmp_path / "run"))
    assert {entry["site"] for entry in entries} == {"north", "south"}
    names = {tensor["name"].rsplit(":", 2)[1] for entry in entries for tensor in entry.get("tensors", [])}
    assert names == {"A"}
    left = [process.pid for process in psutil.process_iter() if _is_of(process, tmp_path)]
    assert not left
    assert any("generation 1" in line for line in told)


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """Say whether a process was started for a folder."""
    try:
        return any(str(folder) in part for part in process.cmdline())
    except psutil.Error:
        return False
