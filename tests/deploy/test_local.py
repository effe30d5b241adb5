"""A whole federation on this machine, in real processes with TLS between them: the simulator's numbers."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fedsa.callbacks import Callback
from fedsa.recipe import Recipe
from fedsa.store import FinishedRun, RunFolder
from fedsa.types import Factor
from support.extras import NEEDS_NVFLARE, NEEDS_PRIVACY, NEEDS_SECURE

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


@pytest.mark.slow
@NEEDS_SECURE
def test_with_secure_aggregation_it_is_the_simulators_bytes_too(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    from fedsa.deploy.local import deploy_local
    from fedsa.deploy.status import sent_of

    settings = (*SETTINGS, "secure_aggregation=true")
    summary = deploy_local(tiny_recipe(*settings), tmp_path / "run", ["east", "north", "south"])
    simulated = tiny_run(*settings)
    for name in ("test", "test_final", "secure_aggregation", "total_upload_bytes"):
        assert summary[name] == simulated.summary[name], name
    here, there = (run.server_states.load_server(2)[0] for run in (RunFolder.open(tmp_path / "run"), simulated.folder))
    assert here
    assert all(there[key].numpy().tobytes() == value.numpy().tobytes() for key, value in here.items())
    dtypes = {tensor["dtype"] for entry in sent_of(tmp_path / "run") for tensor in entry.get("tensors", [])}
    assert dtypes == {"int64"}


@pytest.mark.slow
def test_eight_bits_and_a_poison_score_give_the_simulators_bytes_too(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    from fedsa.deploy.local import deploy_local
    from fedsa.deploy.status import sent_of

    settings = (*SETTINGS, "compression.kind=int8", "robust.kind=poison_score", "robust.threshold=5")
    summary = deploy_local(tiny_recipe(*settings), tmp_path / "run", ["north", "south"])
    simulated = tiny_run(*settings)
    for name in ("test", "test_final", "chosen_round", "total_upload_bytes", "total_download_bytes"):
        assert summary[name] == simulated.summary[name], name
    here, there = (run.server_states.load_server(2)[0] for run in (RunFolder.open(tmp_path / "run"), simulated.folder))
    assert here
    assert all(there[key].numpy().tobytes() == value.numpy().tobytes() for key, value in here.items())
    dtypes = {tensor["dtype"] for entry in sent_of(tmp_path / "run") for tensor in entry.get("tensors", [])}
    assert "int8" in dtypes
    told, known = (_scores(path) for path in (tmp_path / "run", simulated.folder.path))
    assert len(told) == 6
    assert told == known


PRIVATE = {
    "server": "privacy={kind='client', target_epsilon=8.0, clipping_norm=0.5}",
    "adaptive": "privacy={kind='client', target_epsilon=8.0, clipping_norm=0.5, clipping='adaptive'}",
    "client": "privacy={kind='client', target_epsilon=8.0, clipping_norm=0.5, noise_at='client'}",
    "example": "privacy={kind='example', target_epsilon=8.0}",
}


@pytest.mark.slow
@NEEDS_PRIVACY
@pytest.mark.parametrize("privacy", PRIVATE)
def test_with_differential_privacy_noise_comes_from_secrets_and_costs_what_the_simulator_says(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path, privacy: str
) -> None:
    from fedsa.deploy.local import deploy_local
    from fedsa.deploy.status import sent_of

    settings = (*SETTINGS, "weighting=uniform", PRIVATE[privacy])
    held: list[bool] = []

    class Look(Callback):
        def on_round_end(self, *_: Any) -> None:
            held.append((tmp_path / "run" / "privacy.secret").exists())

    summary = deploy_local(tiny_recipe(*settings), tmp_path / "run", ["north", "south"], callbacks=[Look()])
    simulated = tiny_run(*settings)
    written = json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]
    told = simulated.summary["privacy"]
    assert written == summary["privacy"]
    assert 7.8 < written["epsilon"] <= 8.0
    for name in told.keys() - {"adaptive_clipping"}:
        assert written[name] == told[name], name
    for name in ("total_upload_bytes", "total_download_bytes", "upload_bytes", "download_bytes"):
        assert summary[name] == simulated.summary[name], name
    here, there = (run.server_states.load_server(2)[0] for run in (RunFolder.open(tmp_path / "run"), simulated.folder))
    sent = [key for key in here if key.factor is Factor.A]
    assert sent
    assert not any(torch.equal(here[key], there[key]) for key in sent), "the seed, which all know, does not make noise"
    assert set(held) == {privacy in ("server", "adaptive")}, "the server's secret is there while it makes noise"
    assert not (tmp_path / "run" / "privacy.secret").exists()
    secrets = {(tmp_path / "run" / "sites" / site / "privacy.secret") for site in ("north", "south")}
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert len({path.read_bytes() for path in secrets}) == 2
    if privacy == "adaptive":
        norms = written["adaptive_clipping"]["norms"]
        assert norms[0] == 0.5 != norms[1]
        names = {tensor["name"] for entry in sent_of(tmp_path / "run") for tensor in entry.get("tensors", [])}
        assert "privacy.within_norm:note:default" in names
    assert FinishedRun.open(tmp_path / "run" / "sites" / "north" / "run").clients


@pytest.mark.slow
def test_two_workers_with_many_clients_come_to_the_simulators_numbers(
    tiny_recipe: Callable[..., Recipe],
    tiny_run: Callable[..., Any],
    tiny_model_without_dropout: Path,
    tmp_path: Path,
) -> None:
    """In cohorts inside each worker, half of the clients a round: equal within rounding to one client at a time."""
    from fedsa.deploy.local import deploy_local

    many = (
        f"model.path='{tiny_model_without_dropout.as_posix()}'",
        'data.partition={kind = "iid", clients = 12, min_examples = 5, test_fraction = 0.3}',
        "fraction_train=0.5",
        "evaluation.fraction_evaluate=0.5",
        "compute.threads=1",
        "rounds=3",
        "keep_rounds=all",
    )
    workers = ["worker-1", "worker-2"]
    recipe = tiny_recipe(*many, "training.trainer=cohort", "training.cohort_size=3")
    summary = deploy_local(recipe, tmp_path / "run", workers)
    simulated = tiny_run(*many, "training.trainer=sequential")
    for name in ("clients", "total_upload_bytes", "total_download_bytes"):
        assert summary[name] == simulated.summary[name], name
    before = simulated.federation.model.initial
    for round in (1, 2, 3):
        here = RunFolder.open(tmp_path / "run").server_states.load_server(round)[0]
        there = simulated.folder.server_states.load_server(round)[0]
        assert here
        for key, value in here.items():
            torch.testing.assert_close(value, there[key], rtol=0, atol=1e-5)
            assert (value - before[key]).abs().max() > 1e-3, "it says nothing where nothing has changed"
        before = here
    assert len(_losses(tmp_path / "run")) == 18
    assert _losses(tmp_path / "run") == pytest.approx(_losses(simulated.folder.path), rel=1e-4)
    for worker in workers:
        own = json.loads((tmp_path / "run" / "sites" / worker / "settings.json").read_text())["training"]
        assert (own["trainer"], own["cohort_size"]) == ("cohort", 3)


def _losses(run: Path) -> dict[tuple[int, str], float]:
    """The training losses of a run, by round and client."""
    lines = [line for line in FinishedRun.open(run).lines() if line.get("train")]
    return {(line["round"], line["client"]): line["train"]["loss"] for line in lines}


def _scores(run: Path) -> dict[tuple[int, str], Any]:
    """The poison scores of a run's updates, by round and client."""
    return {
        (line["round"], line["client"]): line["poison"] for line in FinishedRun.open(run).lines() if "poison" in line
    }


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """Say whether a process was started for a folder."""
    try:
        return any(str(folder) in part for part in process.cmdline())
    except psutil.Error:
        return False
