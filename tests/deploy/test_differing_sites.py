"""Sites that are not alike: ranks of their own, another precision; and a client that comes to a site after the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedsa.agreement import over
from fedsa.deploy.preparing import prepare
from fedsa.deploy.site_folder import SETTINGS as OWN
from fedsa.recipe import Recipe
from fedsa.store import RunFolder
from support.sites import opened, serve_sites
from support.tiny_rows import write_rows

pytestmark = pytest.mark.run

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")
SITES = ("north", "south")
RANKS = ('adapter.ranks={"site 0"=1, "site 1"=2}', "adapter.ranks=[1, 2, 2]")


def places(folder: Path) -> dict[str, Path]:
    return {site: folder / "sites" / site for site in SITES}


@pytest.mark.parametrize("ranks", RANKS)
def test_each_client_has_its_rank_and_all_come_to_the_simulators_bytes(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path, ranks: str
) -> None:
    prepare(tiny_recipe(*SETTINGS, ranks), tmp_path / "sites", SITES)
    with opened(places(tmp_path)) as programs:
        summary = serve_sites(places(tmp_path)["north"], tmp_path / "out", programs)
        simulated = tiny_run(*SETTINGS, ranks)
        assert summary["test"] == simulated.summary["test"]
        here = RunFolder.open(tmp_path / "out").server_states.load_server(2)[0]
        there = simulated.folder.server_states.load_server(2)[0]
        sent = [key for key in here if key.factor.value == "A"]
        assert sent
        assert all(torch.equal(here[key], there[key]) for key in sent)
        kept = {
            client: {key.factor.value: len(value) for key, value in _state(program, client).items()}["A"]
            for program in programs.values()
            for client in program.federation.clients
        }
    assert kept == {"site 0": 1, "site 1": 2, "site 2": 2}
    adapters = {
        path.parent.name: json.loads(path.read_text())["r"]
        for path in tmp_path.glob("sites/*/adapters/*/adapter_config.json")
    }
    assert sorted(adapters.values()) == [1, 2, 2]


def _state(program: Any, client: str) -> dict[Any, torch.Tensor]:
    return dict(program.states.load_client(client, 2).tensors)


def test_a_site_may_compute_in_another_precision(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """What a machine computes with is not agreed upon; what it sends has the agreed form."""
    prepare(tiny_recipe(*SETTINGS), tmp_path / "sites", SITES)
    path = places(tmp_path)["south"] / OWN
    path.write_text(json.dumps(over(json.loads(path.read_text()), {"compute": {"precision": "bf16"}})))
    with opened(places(tmp_path)) as programs:
        assert [program.federation.recipe.compute.precision for program in programs.values()] == ["fp32", "bf16"]
        summary = serve_sites(places(tmp_path)["north"], tmp_path / "out", programs)
        kept = _state(programs["south"], programs["south"].federation.clients[0])
        assert {value.dtype for value in kept.values()} == {torch.float32}
    assert {*summary["per_client"]} == {"site 0", "site 1", "site 2"}
    left = json.loads((places(tmp_path)["south"] / "sent.jsonl").read_text().splitlines()[2])
    assert {tensor["dtype"] for tensor in left["tensors"]} <= {"float32"}


def test_a_client_that_comes_to_a_site_after_the_run_gets_the_simulators_adapter(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], fedsa_command: Callable[..., Any], tmp_path: Path
) -> None:
    """`fedsa adapt` reads the folder `run` of any site: nothing but the shared part is needed of the others."""
    prepare(tiny_recipe(*SETTINGS), tmp_path / "sites", SITES)
    with opened(places(tmp_path)) as programs:
        serve_sites(places(tmp_path)["north"], tmp_path / "out", programs)
    write_rows(tmp_path / "new.csv", 40, seed=9, clients=1)
    folders = {"simulated": tiny_run(*SETTINGS).folder.path} | {
        site: place / "run" for site, place in places(tmp_path).items()
    }
    made = {}
    for name, folder in folders.items():
        outcome = fedsa_command("adapt", folder, "--data", tmp_path / "new.csv", "--to", tmp_path / name)
        assert outcome.code == 0, outcome.err
        made[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    for site in SITES:
        assert made[site].keys() == made["simulated"].keys()
        assert all(torch.equal(value, made["simulated"][key]) for key, value in made[site].items())
