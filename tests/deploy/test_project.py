"""A federation across machines from its beginning; its run in one process, with the rows where each site has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.deploy.status import sent_of
from fedsa.engines.remote import RemoteFleet
from fedsa.engines.roster import Roster
from fedsa.errors import ConfigError, ProtocolError, UserError
from fedsa.messages import Message, encode
from fedsa.recipe import Recipe
from fedsa.store import FinishedRun, RunFolder
from fedsa.types import SPLITS
from support.extras import NEEDS_NVFLARE, NEEDS_SECURE
from support.sites import opened, serve_sites
from support.tiny_rows import WORDS, write_clients, write_rows

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Recipe]) -> Recipe:
    return tiny_recipe(*SETTINGS, f"task.labels={json.dumps(sorted(WORDS))}")


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


@NEEDS_SECURE
def test_rounds_of_too_few_clients_for_a_sum_are_refused_before_anything_is_written(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from fedsa.deploy.project import begin_project

    few = tiny_recipe(*SETTINGS, f"task.labels={json.dumps(sorted(WORDS))}", "algorithm=fedit")
    few = few.model_copy(update={"secure_aggregation": True, "fraction_train": 0.5})
    with pytest.raises(UserError, match=r"a round has 2 clients\. A sum of fewer than 3 would show single ones"):
        begin_project(few, ["a", "b", "c", "d"], tmp_path / "new", host="localhost", port=1)
    assert not (tmp_path / "new").exists()


def test_several_clients_at_a_site_come_to_the_simulators_bytes(
    recipe: Recipe, tiny_rows: Path, tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    """North has a file for each of its two clients; south has a column. Each of them has an adapter of its own."""
    from fedsa.deploy.project import begin_project, prepare_site

    clients = {"north": ["site 0", "site 1"], "south": ["site 2"]}
    begin_project(recipe, ["north", "south"], tmp_path / "all", clients=clients, host="localhost", port=1)
    write_clients(tiny_rows, lambda client: [tmp_path / "wards"] if client in clients["north"] else [])
    write_clients(tiny_rows, lambda client: [tmp_path / "other"] if client in clients["south"] else [])
    model = {"model": {"path": recipe.model.path}}
    prepare_site(tmp_path / "all" / "north", str(tmp_path / "wards"), model)
    prepare_site(tmp_path / "all" / "south", str(tmp_path / "other" / "site 2.csv"), model)
    roster = Roster.read(tmp_path / "all" / "server")
    with opened({site: tmp_path / "all" / site for site in clients}) as programs:
        summary = serve_sites(
            tmp_path / "all" / "server", tmp_path / "out", programs, run=roster.run, clients=roster.clients
        )
    simulated = tiny_run(*SETTINGS, f"task.labels={json.dumps(sorted(WORDS))}")
    assert summary["test"] == simulated.summary["test"]
    here = RunFolder.open(tmp_path / "out").server_states.load_server(2)[0]
    there = simulated.folder.server_states.load_server(2)[0]
    assert here
    assert all(torch.equal(there[key], value) for key, value in here.items())
    for site, own in clients.items():
        assert [*FinishedRun.open(tmp_path / "all" / site / "run").clients] == own
        assert len(list((tmp_path / "all" / site / "adapters").glob("*/adapter_model.safetensors"))) == len(own)
    updates = [entry for entry in sent_of(tmp_path / "all" / "north") if "updates" in entry["about"]]
    assert [{tensor["client"] for tensor in entry["tensors"]} for entry in updates] == [{*clients["north"]}] * 2


def test_a_site_with_other_clients_than_on_the_roster_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    fleet = RemoteFleet(
        lambda requests, deadline: [
            (site, encode(Message("ready", "run", 0, {"examples": {"x": dict.fromkeys(SPLITS, 5)}})))
            for site in requests
        ],
        ["north"],
        "run",
        clients={"north": ("north",)},
    )
    from fedsa.federation import agree

    with pytest.raises(ProtocolError, match="site 'north' has the clients x; on the roster are north"):
        fleet.set_up(agree(recipe, ["north"]))


def test_a_site_that_makes_its_key_itself_joins_and_another_leaves(
    recipe_file: Callable[..., Path],
    fedsa_command: Callable[..., Any],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands, after the server's folder and the sites' were brought to their machines."""
    from fedsa.deploy import project

    monkeypatch.chdir(tmp_path)
    file = recipe_file(*SETTINGS, f"task.labels={json.dumps(sorted(WORDS))}")
    begun = fedsa_command("deploy", "init", file, "--sites", "north,south", "--to", "all")
    assert begun.code == 0, begun.err
    for name in ("server", "north", "south"):
        (tmp_path / "all" / name).rename(tmp_path / name)
    assert fedsa_command("deploy", "request", "west").code == 0
    assert "is there already" in fedsa_command("deploy", "request", "west").err
    wards = ("--clients", "ward-a,ward-b")
    joined = fedsa_command("deploy", "join", "all", "west", *wards, "--request", tmp_path / "west" / "west.csr")
    assert joined.code == 0, joined.err
    assert "No key is in the folder of west" in joined.out
    assert "all/roster.json must be in the server's folder" in joined.out
    given = tmp_path / "all" / "west"
    assert not list(given.rglob("*.key"))
    assert "PRIVATE" not in "".join(path.read_text() for path in given.rglob("*") if path.is_file())
    for path in given.iterdir():
        path.rename(tmp_path / "west" / path.name)
    given.rmdir()
    assert Roster.read(tmp_path / "all").clients["west"] == ("ward-a", "ward-b")
    assert {*Roster.read(tmp_path / "server").clients} == {"north", "south"}, "it is elsewhere"

    started: list[str] = []
    monkeypatch.setattr(project, "run_site", lambda kit, command, logs: started.append(kit.party))
    (tmp_path / "wards").mkdir()
    for ward in ("ward-a", "ward-b"):
        write_rows(tmp_path / "wards" / f"{ward}.csv", 30, seed=0)
    own = {"model": {"path": recipe.model.path}}
    project.take_part(tmp_path / "west", "wards", own)
    assert started == ["west"]
    assert [path.name for path in (tmp_path / "west").glob("west.*")] == ["west.csr"], "the key is in its place"
    (tmp_path / "west" / "kit" / "startup" / "client.key").unlink()
    with pytest.raises(UserError, match=r"has no key: put west\.key, which `fedsa deploy request` made, beside it"):
        project.take_part(tmp_path / "west", "wards", own)

    assert "a site 'west' already" in fedsa_command("deploy", "join", "all", "west").err
    assert "B stays at the client" in fedsa_command("deploy", "join", "all", "east", "--only-measured").err
    assert fedsa_command("deploy", "leave", "server", "south").code == 0, "who runs the server can do it too"
    assert fedsa_command("deploy", "leave", "all", "south").code == 0
    assert Roster.read(tmp_path / "server").left == Roster.read(tmp_path / "all").left == ("south",)
    renewed = fedsa_command("deploy", "renew", "all")
    assert {path.name for path in (tmp_path / "all" / "renewed").iterdir()} == {"north.crt", "server.crt", "west.crt"}
    assert "nothing secret in it" in renewed.out
    shutil.copy(tmp_path / "all" / "renewed" / "north.crt", tmp_path / "north")
    about = json.loads(fedsa_command("deploy", "status", "north", "--json").out)
    assert (about["party"], about["server"], about["warning"]) == ("north", "localhost:8102", "")
    assert about["days_left"] in (359, 360)
