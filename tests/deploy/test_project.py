"""A federation across machines as its parties begin and run it: init, server, site, each a command of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from fedsa.errors import ConfigError, UserError
from fedsa.recipe import Recipe, dump_recipe
from fedsa.store import FinishedRun

pytest.importorskip("nvflare", reason="needs the extra: pip install 'fedsa[nvflare]'")

pytestmark = pytest.mark.run

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Recipe], tiny_rows: Path) -> Recipe:
    labels = sorted(set(pandas.read_csv(tiny_rows)["label"].astype(str)))
    return tiny_recipe(*SETTINGS, f"task.labels={json.dumps(labels)}")


def test_the_commands_of_server_and_sites_come_to_adapters_at_the_sites(
    recipe: Recipe, tiny_rows: Path, tmp_path: Path, free_port: int
) -> None:
    rows = pandas.read_csv(tiny_rows)
    for site, client in (("north", "site 0"), ("south", "site 1")):
        own = rows[rows["site"] == client].drop(columns="site")
        own.to_csv(tmp_path / f"{site}.csv", index=False)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    fedsa = [sys.executable, "-m", "fedsa", "deploy"]
    project, out = tmp_path / "project", tmp_path / "out"
    begin = [*fedsa, "init", str(tmp_path / "recipe.toml"), "--sites", "north,south", "--to", str(project)]
    said = subprocess.run([*begin, "--port", str(free_port)], capture_output=True, text=True, check=True).stdout
    assert f"fedsa deploy site {project / 'north'} --data ROWS" in said
    assert not list(project.rglob("*.csv"))
    parties = {
        "server": ["server", str(project / "server"), "--out", str(out)],
        **{site: ["site", str(project / site), "--data", str(tmp_path / f"{site}.csv")] for site in ("north", "south")},
    }
    processes = []
    for party, command in parties.items():
        with (tmp_path / f"{party}.log").open("wb") as log:
            processes.append(subprocess.Popen([*fedsa, *command], stdout=log, stderr=subprocess.STDOUT))
    try:
        assert processes[0].wait(timeout=300) == 0, (tmp_path / "server.log").read_text()
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        codes = [process.wait(timeout=60) for process in processes]
    assert codes[1:] == [130, 130], "a site takes part until it is interrupted"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["engine"], summary["sites"], summary["clients"]) == ("nvflare", 2, 2)
    for site in ("north", "south"):
        assert tuple(FinishedRun.open(project / site / "run").clients) == (site,)
        assert list((project / site / "adapters").glob("*/adapter_model.safetensors"))


def test_the_classes_must_be_named_and_the_folder_new(
    tiny_recipe: Callable[..., Recipe], recipe: Recipe, tmp_path: Path
) -> None:
    from fedsa.deploy.project import begin_project

    with pytest.raises(ConfigError, match=r"task.labels: nobody sees all rows"):
        begin_project(tiny_recipe(*SETTINGS), ["a", "b"], tmp_path / "new", host="localhost", port=1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        begin_project(recipe, ["a", "b"], tmp_path / "old", host="localhost", port=1)


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.create_server(("localhost", 0)) as listener:
        return int(listener.getsockname()[1])
