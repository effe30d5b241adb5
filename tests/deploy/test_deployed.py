"""A run over sites: the simulator's numbers and bytes, each site's own run folder and adapters, what left, going on."""

from __future__ import annotations

import errno
import io
import json
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsa
from fedsa.agreement import AGREEMENT, Agreement
from fedsa.client.sent import sent_messages
from fedsa.deploy.preparing import prepare
from fedsa.deploy.site import SiteProgram, handler_of, open_site
from fedsa.engines.deployed import open_server_folder, run_id_of, serve
from fedsa.engines.remote import Exchange, RemoteFleet
from fedsa.errors import ConfigError, ProtocolError, RunFolderError, UserError
from fedsa.messages import Message, decode, encode
from fedsa.recipe import Recipe
from fedsa.runs.export import personal_state
from fedsa.store import FinishedRun, RunFolder
from fedsa.store.seals import sealed_table
from fedsa.types import Factor, Key
from support.extras import NEEDS_PRIVACY

pytestmark = pytest.mark.run

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=3")
SITES = ("north", "south")


def exchange_with(programs: Mapping[str, SiteProgram]) -> Exchange:
    """Carry bytes to sites in this process."""

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            yield site, programs[site].handle(data)

    return exchange


def run_over(sites: Path, out: Path, exchange: Exchange, **options: Any) -> dict[str, Any]:
    """Run the server's side in a folder, from wherever it is."""
    agreement = Agreement.read(sites / SITES[0] / AGREEMENT)
    with open_server_folder(out, agreement.recipe).locked() as folder:
        fleet = RemoteFleet(exchange, SITES, run_id_of(agreement, SITES), **options)
        return serve(agreement, folder, fleet, engine="a test")


class Deployed:
    """A run over two sites that has ended."""

    def __init__(self, place: Path, recipe: Recipe) -> None:
        self.sites, self.out = place / "sites", place / "out"
        prepare(recipe, self.sites, SITES)
        self.programs = {site: open_site(self.sites / site) for site in SITES}
        self.summary = run_over(self.sites, self.out, exchange_with(self.programs))

    def close(self) -> None:
        for program in self.programs.values():
            program.close()


@pytest.fixture(scope="module")
def deployed(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    run = Deployed(tmp_path_factory.mktemp("deployed"), tiny_recipe(*SETTINGS))
    yield run
    run.close()


def test_the_figures_are_the_simulators(deployed: Deployed, tiny_run: Callable[..., Any]) -> None:
    simulated = tiny_run(*SETTINGS).summary
    for name in ("test", "test_final", "chosen_round", "chosen_score", "total_upload_bytes", "total_download_bytes"):
        assert deployed.summary[name] == simulated[name], name
    for name in ("sharing_plan", "upload_bytes", "trained_parameters", "metric", "algorithm", "variant", "rounds"):
        assert deployed.summary[name] == simulated[name], name
    for client, entry in simulated["per_client"].items():
        own = deployed.summary["per_client"][client]
        assert {name: own[name] for name in ("before", "test", "test_final", "train_examples")} == {
            name: entry[name] for name in ("before", "test", "test_final", "train_examples")
        }
    assert (deployed.summary["engine"], deployed.summary["sites"]) == ("a test", 2)


def test_the_servers_tensors_are_the_simulators(deployed: Deployed, tiny_run: Callable[..., Any]) -> None:
    here = RunFolder.open(deployed.out).server_states.load_server(3)
    there = tiny_run(*SETTINGS).folder.server_states.load_server(3)
    sent = {key for key, version in there[1].items() if version > 0}
    assert sent == set(here[0]), "the server has values of what was sent to it alone"
    assert sent
    assert all(here[0][key].numpy().tobytes() == there[0][key].numpy().tobytes() for key in sent)


def test_each_sites_states_are_the_simulators(deployed: Deployed, tiny_run: Callable[..., Any]) -> None:
    simulated = tiny_run(*SETTINGS).folder
    seen = []
    for program in deployed.programs.values():
        for client in program.federation.clients:
            mine, theirs = program.states.load_client(client, 3), simulated.client_states.load_client(client, 3)
            assert mine.tensors.keys() == theirs.tensors.keys()
            assert all(torch.equal(mine.tensors[key], value) for key, value in theirs.tensors.items())
            assert mine.version == theirs.version
            seen.append(client)
    assert sorted(seen) == sorted(tiny_run(*SETTINGS).federation.clients)


def test_a_sites_run_folder_and_adapters_are_of_its_own_clients(
    deployed: Deployed, tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from fedsa.runs.export import export

    simulated = tiny_run(*SETTINGS)
    for site in SITES:
        finished = FinishedRun.open(deployed.sites / site / "run")
        clients = deployed.programs[site].federation.clients
        assert tuple(finished.clients) == tuple(finished.summary["per_client"]) == clients
        for client in clients:
            mine = export(deployed.sites / site / "run", tmp_path / "mine" / client, clients=[client])
            theirs = export(simulated.folder.path, tmp_path / "theirs" / client, clients=[client])
            one, two = (load_file(place / "adapter_model.safetensors") for (place,) in (mine, theirs))
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)
            here, there = (
                fedsa.predict(run, "the film was great", client=client)
                for run in (deployed.sites / site / "run", simulated.folder.path)
            )
            assert here == there
        written = list((deployed.sites / site / "adapters").glob("*/adapter_model.safetensors"))
        assert len(written) == len(clients), "adapters are there at the end, without asking"


def test_what_has_left_is_a_and_numbers(deployed: Deployed) -> None:
    for site in SITES:
        entries = [entry for entry in sent_messages(deployed.sites / site) if entry["kind"] != "again"]
        factors = {tensor["name"].rsplit(":", 2)[1] for entry in entries for tensor in entry["tensors"]}
        assert factors == {"A"}, "neither B nor the head, nor an optimiser's moments"
        rounds = [entry["round"] for entry in entries if entry["tensors"]]
        assert rounds == [1, 2, 3]
        words = json.dumps([entry["about"] for entry in entries])
        rows = deployed.programs[site].federation.rows.table["text"]
        assert not any(text in words for text in rows[:])


def test_a_site_has_no_other_clients_rows(deployed: Deployed, tiny_run: Callable[..., Any]) -> None:
    whole = tiny_run(*SETTINGS).federation.rows
    for site in SITES:
        own = deployed.programs[site].federation.rows
        held = sum(parts.num_examples for parts in own.partition.clients.values())
        assert len(own.table) == held < len(whole.table)


def test_a_site_is_told_nothing_of_the_results_of_others(deployed: Deployed) -> None:
    told: dict[str, Any] = {}

    def listen(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, data in requests.items():
            message = decode(data)
            if message.kind == "finish":
                told[site] = message.about["summary"]
            yield site, deployed.programs[site].handle(data)

    agreement = Agreement.read(deployed.sites / "north" / AGREEMENT)
    fleet = RemoteFleet(listen, SITES, run_id_of(agreement, SITES))
    fleet.set_up(agreement)
    fleet.finish(deployed.summary, SITES)
    for site in SITES:
        assert told[site]["test"].keys() == {"round", "after"}
        others = {*fleet.clients} - {*deployed.programs[site].federation.clients}
        assert others
        assert not any(client in json.dumps(told[site]) for client in others)


def test_a_finished_run_is_there_without_asking_anybody(deployed: Deployed) -> None:
    assert run_over(deployed.sites, deployed.out, _nobody) == deployed.summary


def test_a_site_that_has_missed_the_end_is_told_when_the_server_runs_again(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    prepare(tiny_recipe(*SETTINGS, "rounds=1"), tmp_path / "sites", SITES)
    programs = {site: open_site(tmp_path / "sites" / site) for site in SITES}
    whole = exchange_with(programs)

    def without_the_end(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        heard = {site: data for site, data in requests.items() if site == "north" or decode(data).kind != "finish"}
        return iter(whole(heard, deadline))

    summary = run_over(tmp_path / "sites", tmp_path / "out", without_the_end)
    assert summary["sites_without_adapters"] == ["south"]
    assert not (tmp_path / "sites" / "south" / "run").exists()
    summary = run_over(tmp_path / "sites", tmp_path / "out", whole)
    assert summary["sites_without_adapters"] == []
    assert list((tmp_path / "sites" / "south" / "adapters").glob("*/adapter_model.safetensors"))
    assert FinishedRun.open(tmp_path / "out").summary == summary
    for program in programs.values():
        program.close()


def test_a_new_client_of_a_site_starts_from_what_its_clients_received(
    deployed: Deployed, tiny_run: Callable[..., Any]
) -> None:
    """The site's run folder has the server's A of the chosen round, and nothing that a client has not received."""
    chosen = deployed.summary["chosen_round"]
    theirs = tiny_run(*SETTINGS).folder.server_states.load_server(chosen)[0]
    for site in SITES:
        mine = RunFolder.open(deployed.sites / site / "run").server_states.load_server(chosen)[0]
        assert {key.factor.value for key in mine} == {"A"}
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())


def test_clients_that_were_never_drawn_are_measured_and_exported_as_in_a_simulation(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    """With a head that is sent: a fitted one is its client's own, and no part of what a new client would receive."""
    settings = (*SETTINGS, "algorithm=fedit", "fraction_train=0.34", "rounds=2", "evaluation.fit_head_epochs=20")
    simulated, run = tiny_run(*settings), Deployed(tmp_path, tiny_recipe(*settings))
    chosen, method = simulated.summary["chosen_round"], simulated.federation.algorithm
    away = [c for c in simulated.federation.clients if simulated.folder.client_states.load_client(c, 2) is None]
    assert away
    for name in ("chosen_round", "chosen_score", "test", "test_final"):
        assert run.summary[name] == simulated.summary[name]
    for site in SITES:
        mine, clients = RunFolder.open(run.sites / site / "run"), run.programs[site].federation.clients
        for client in clients:
            for round in {chosen, 2}:
                one, two = (personal_state(folder, method, client, round) for folder in (mine, simulated.folder))
                assert one.keys() == two.keys()
                assert all(torch.equal(one[key], value) for key, value in two.items())
        figures = FinishedRun.open(run.sites / site / "run").summary["test_final"]
        assert figures["untrained_clients"] == len({*clients} & {*away})
        assert (figures["untrained_mean"] is None) is (not {*clients} & {*away})
        received = mine.server_states.load_server(2)[0]
        theirs = simulated.folder.server_states.load_server(2)[0]
        alike = [key for key, value in received.items() if torch.equal(value, theirs[key])]
        if {*clients} - {*away}:
            assert {key.factor for key in alike} == {Factor.A, Factor.B, Factor.HEAD}
        else:
            assert {key.factor for key in alike} == {Factor.A, Factor.B}
    run.close()


@pytest.mark.parametrize("algorithm", ["fedit", "partial_pooling"])
def test_how_frequent_classes_are_stays_at_the_sites(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path, algorithm: str
) -> None:
    """Clients train, are tested and exported with it as in a simulation; the server is not told, nor is a newcomer."""
    settings = (*SETTINGS, f"algorithm={algorithm}", "algorithm_options.class_prior=true", "rounds=2")
    simulated, run = tiny_run(*settings), Deployed(tmp_path, tiny_recipe(*settings))
    assert run.summary["test_final"] == simulated.summary["test_final"]
    theirs, method = simulated.folder.server_states.load_server(2)[0], simulated.federation.algorithm
    for site in SITES:
        mine = RunFolder.open(run.sites / site / "run")
        for client in run.programs[site].federation.clients:
            one, two = (personal_state(folder, method, client, 2) for folder in (mine, simulated.folder))
            assert all(torch.equal(one[key], value) for key, value in two.items())
        received = mine.server_states.load_server(2)[0]
        assert algorithm != "fedit" or received.keys() == theirs.keys()
        for key, value in received.items():
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-5)
    assert run.summary["class_prior"] is True
    told = [path.read_text("utf-8") for path in run.out.rglob("*") if path.suffix in (".json", ".jsonl", ".html")]
    assert told
    assert not any("train_labels" in each for each in told)
    run.close()


@pytest.mark.parametrize(
    "verb", [["export", "--all", "--to", "out"], ["analyze"], ["resume"], ["adapt", "--data", "x.csv"]]
)
def test_a_verb_that_needs_the_clients_says_that_they_are_at_the_sites(
    deployed: Deployed,
    fedsa_command: Callable[..., Any],
    verb: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("text,label\na,b\n")
    outcome = fedsa_command(verb[0], deployed.out, *verb[1:])
    assert outcome.code == 2
    assert "is the folder of a server: the model and the clients' tensors are at the sites (north" in outcome.err


def _nobody(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
    raise AssertionError("asked")
    yield  # an iterator


class CutError(Exception):
    """The server's process has ended here."""


@pytest.mark.parametrize("last", [2, 4, 5, 7])
def test_a_server_that_was_cut_off_goes_on_to_the_same_bytes_and_nobody_trains_twice(
    deployed: Deployed, tiny_recipe: Callable[..., Recipe], tmp_path: Path, last: int
) -> None:
    """Cut off after so many exchanges: a site has answered already, and is asked again."""
    prepare(tiny_recipe(*SETTINGS), tmp_path / "sites", SITES)
    programs = {site: open_site(tmp_path / "sites" / site) for site in SITES}
    count = 0
    whole = exchange_with(programs)

    def cut_off(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        nonlocal count
        count += 1
        answers = list(whole(requests, deadline))
        if count == last:
            raise CutError
        return iter(answers)

    with pytest.raises(CutError):
        run_over(tmp_path / "sites", tmp_path / "out", cut_off)
    count = -100
    summary = run_over(tmp_path / "sites", tmp_path / "out", cut_off)
    assert summary["per_client"] == deployed.summary["per_client"]
    one, two = (RunFolder.open(path).server_states.load_server(3)[0] for path in (tmp_path / "out", deployed.out))
    assert all(torch.equal(one[key], value) for key, value in two.items())
    for program in programs.values():
        program.close()
    rounds = [entry["round"] for entry in sent_messages(tmp_path / "sites" / "north") if entry.get("tensors")]
    assert rounds == [1, 2, 3], "what is asked again is sent again, not trained again"


def test_a_site_that_has_lost_its_states_or_has_an_old_copy_is_told_so(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Its A would be incomplete, and its B anew: without a word, its client would be another one."""
    prepare(tiny_recipe(*SETTINGS), tmp_path / "sites", SITES)
    programs = {site: open_site(tmp_path / "sites" / site) for site in SITES}
    copies: dict[int, Path] = {}
    whole = exchange_with(programs)

    def losing(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        asked = decode(requests["north"])
        if asked.about.get("do") == "train":
            programs["north"].states.settle()
            copies[asked.round] = tmp_path / f"copy-{asked.round}"
            shutil.copytree(tmp_path / "sites" / "north" / "states", copies[asked.round])
        if (asked.round, asked.about.get("do")) == (3, "train"):
            raise CutError
        yield from whole(requests, deadline)

    with pytest.raises(CutError):
        run_over(tmp_path / "sites", tmp_path / "out", losing)
    for program in programs.values():
        program.close()
    for number, what in ((1, "is gone"), (2, "is an old copy")):
        shutil.rmtree(tmp_path / "sites" / "north" / "states")
        shutil.copytree(copies[number], tmp_path / "sites" / "north" / "states")
        programs = {site: open_site(tmp_path / "sites" / site) for site in SITES}
        with pytest.raises(ProtocolError, match=f"north: it refuses: the state of client 'site 0' {what}"):
            run_over(tmp_path / "sites", tmp_path / "out", exchange_with(programs))
        for program in programs.values():
            program.close()


def test_a_round_that_is_over_is_not_trained_again(deployed: Deployed) -> None:
    """A message of the first round, sent again at the end, would end all that came after it."""
    north = deployed.programs["north"]
    client = north.federation.clients[0]
    before = north.states.load_client(client, 3)
    about = {"do": "train", "versions": {client: 0}, "held": {client: 0}, "keep": [0]}
    run = run_id_of(deployed.programs["north"].agreement, SITES)
    answer = decode(north.handle(encode(Message("step", run, 1, about, {client: {}}))))
    assert answer.kind == "refuse"
    assert "this site has trained round 3, and the server has finished round 0" in answer.about["why"]
    after = north.states.load_client(client, 3)
    assert all(torch.equal(after.tensors[key], value) for key, value in before.tensors.items())


def test_a_server_that_has_lost_its_folder_does_not_cost_a_site_its_states(deployed: Deployed, tmp_path: Path) -> None:
    """The run's id is the same; its first question is round 0 again."""
    states = {
        client: program.states.load_client(client, 3)
        for program in deployed.programs.values()
        for client in program.federation.clients
    }
    with pytest.raises(ProtocolError, match="this site has trained round 3, and the server has finished round 0"):
        run_over(deployed.sites, tmp_path / "new", exchange_with(deployed.programs))
    for program in deployed.programs.values():
        for client in program.federation.clients:
            now = program.states.load_client(client, 3)
            assert all(torch.equal(now.tensors[key], value) for key, value in states[client].tensors.items())


def test_a_server_cannot_put_a_b_in_the_place_of_a_clients_own(deployed: Deployed) -> None:
    north = deployed.programs["north"]
    client = north.federation.clients[0]
    keys = {key.factor.value: key for key in north.federation.model.keys}
    shapes = north.federation.model.initial
    stranger = Key.parse("nowhere:A:default")
    about = {"do": "train", "versions": {client: 3}, "held": {client: 0}, "keep": [3]}
    cases: list[tuple[str, int, dict[Key, torch.Tensor], dict[str, Any]]] = [
        ("does not receive", 4, {keys["B"]: torch.zeros_like(shapes[keys["B"]])}, {}),
        ("does not receive", 4, {keys["head"]: torch.zeros_like(shapes[keys["head"]])}, {}),
        ("does not receive", 4, {stranger: torch.zeros(2, 2)}, {}),
        ("another shape than the model", 4, {keys["A"]: torch.zeros(1, 1)}, {}),
        ("is not finite", 4, {keys["A"]: torch.full_like(shapes[keys["A"]], float("nan"))}, {}),
        ("is none of this run", 9, {}, {}),
        ("is none of this run", 0, {}, {}),
        ("is over for the server", 3, {}, {"keep": [3]}),
        ("keeps rounds", 4, {}, {"keep": [999]}),
        ("keeps rounds", 4, {}, {"keep": [-1]}),
        ("does not say which rounds are kept", 4, {}, {"keep": []}),
        ("does not say which rounds are kept", 4, {}, {"keep": "x"}),
    ]
    before = north.states.load_client(client, 3)
    for text, round, state, more in cases:
        message = Message("step", run_id_of(north.agreement, SITES), round, {**about, **more}, {client: state})
        answer = decode(north.handle(encode(message)))
        assert answer.kind == "refuse", text
        assert text in answer.about["why"]
    after = north.states.load_client(client, 3)
    assert all(torch.equal(after.tensors[key], value) for key, value in before.tensors.items())


def asked_to_train(program: SiteProgram, round: int, kept: int, state: Mapping[Key, torch.Tensor]) -> Message:
    """Ask a site to train its first client; return its answer."""
    client = program.federation.clients[0]
    about = {"do": "train", "versions": {client: round - 1}, "held": {client: 0}, "keep": [kept]}
    message = Message("step", run_id_of(program.agreement, SITES), round, about, {client: state})
    return decode(program.handle(encode(message)))


def test_no_client_trains_after_the_last_round(deployed: Deployed) -> None:
    """There is no such round, and what privacy costs was counted without it."""
    answer = asked_to_train(deployed.programs["north"], 4, 3, {})
    assert "round 4 is none to train in: the run has 3 rounds" in answer.about["why"]


@NEEDS_PRIVACY
@pytest.mark.parametrize("noise_at", ["client", pytest.param("server", marks=pytest.mark.slow)])
def test_a_private_run_has_its_secrets_where_noise_is_made_and_trains_each_round_once(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, noise_at: str
) -> None:
    privacy = f"privacy={{kind='client', target_epsilon=8.0, clipping_norm=0.5, noise_at='{noise_at}'}}"
    seen: list[bool] = []
    prepare(tiny_recipe(*SETTINGS, "rounds=2", "weighting=uniform", privacy), tmp_path / "sites", SITES)
    programs = {site: open_site(tmp_path / "sites" / site) for site in SITES}

    def exchange(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        seen.append((tmp_path / "out" / "privacy.secret").exists())
        yield from exchange_with(programs)(requests, deadline)

    summary = run_over(tmp_path / "sites", tmp_path / "out", exchange)
    assert 7.9 < summary["privacy"]["epsilon"] <= 8.0
    assert set(seen) == {noise_at == "server"}, "the server has a secret where it makes noise, and only there"
    assert not (tmp_path / "out" / "privacy.secret").exists()
    for site, program in programs.items():
        assert stat.S_IMODE((tmp_path / "sites" / site / "privacy.secret").stat().st_mode) == 0o600
        keys = [key for key in program.federation.model.keys if key.factor is Factor.A]
        other = {key: torch.ones_like(program.federation.model.initial[key]) for key in keys}
        before = program.states.load_client(program.federation.clients[0], 2)
        answer = asked_to_train(program, 2, 1, other)
        assert "a second training of round 2 would spend its privacy twice" in answer.about["why"]
        after = program.states.load_client(program.federation.clients[0], 2)
        assert all(torch.equal(after.tensors[key], value) for key, value in before.tensors.items())
    (tmp_path / "out" / "privacy.secret").write_bytes(b"s" * 32)  # a crash came before it was removed
    assert run_over(tmp_path / "sites", tmp_path / "out", exchange) == summary
    assert not (tmp_path / "out" / "privacy.secret").exists()
    for program in programs.values():
        program.close()


def test_what_a_site_does_at_the_end_can_be_done_again(deployed: Deployed) -> None:
    """The server may have died before it wrote the summary; its message is then another one."""
    from fedsa.deploy.finishing import finish_site

    north = deployed.programs["north"]
    own = {client: deployed.summary["per_client"][client] for client in north.federation.clients}
    before = sorted(path.name for path in (deployed.sites / "north" / "adapters").iterdir())
    finish_site(north.folder, north.federation, north.states, {**deployed.summary, "per_client": own})
    assert sorted(path.name for path in (deployed.sites / "north" / "adapters").iterdir()) == before


def test_other_rows_than_the_run_began_with_are_refused(deployed: Deployed, tmp_path: Path) -> None:
    shutil.copytree(deployed.sites / "north", tmp_path / "north", ignore=shutil.ignore_patterns("states"))
    about = json.loads((tmp_path / "north" / "run.json").read_text())
    (tmp_path / "north" / "run.json").write_text(sealed_table({"run": about["run"], "rows": "others"}))
    answer = decode(open_site(tmp_path / "north").handle(encode(Message("setup", about["run"], 0))))
    assert answer.about == {"why": "it cannot take part: its own log says why"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (AGREEMENT, AGREEMENT),
        ("run.json", "run.json"),
        ("rows/rows.json", "rows.json"),
        ("rows/table/data-00000-of-00001.arrow", "data-00000-of-00001.arrow"),
        ("rows/SHA256SUMS", "rows"),
        ("sent.jsonl", "sent.jsonl, line"),
    ],
)
def test_a_flipped_bit_in_a_sites_own_files_is_told(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    """`settings.json` is its user's to edit; states and answers have tests of their own, as run folders and kits."""
    place, run = tmp_path / "north", deployed.programs["north"].agreement
    shutil.copytree(
        deployed.sites / "north", place, ignore=shutil.ignore_patterns("states", "run", "adapters", ".lock")
    )
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 2
    (place / name).write_bytes(content)
    about = {"fingerprint": run.fingerprint(), "initial": False}
    answer = decode(handler_of(place)(encode(Message("setup", run_id_of(run, SITES), 0, about))))
    assert answer.kind == "refuse"
    assert told in capsys.readouterr().err


def test_a_recipe_that_has_changed_since_is_known_by_its_agreed_settings(
    deployed: Deployed, tiny_recipe: Callable[..., Recipe]
) -> None:
    """`fedsa deploy local` with a folder that is there goes on with the old ones: others must not be passed over."""
    agreement = Agreement.read(deployed.sites / "north" / AGREEMENT)
    assert agreement.settings_changed_in(tiny_recipe(*SETTINGS)) == ()
    assert agreement.settings_changed_in(tiny_recipe(*SETTINGS, "compute.threads=2")) == (), "a machine's own"
    changed = tiny_recipe(*SETTINGS, "rounds=9", "training.learning_rate=0.5", "algorithm=fedit")
    assert agreement.settings_changed_in(changed) == ("algorithm", "rounds", "training.learning_rate")


def test_another_run_is_refused(deployed: Deployed) -> None:
    agreement = Agreement.read(deployed.sites / "north" / AGREEMENT)
    fleet = RemoteFleet(exchange_with(deployed.programs), SITES, "f" * 32)
    with pytest.raises(ProtocolError, match=r"site 'north' cannot take part: .*another run"):
        fleet.set_up(agreement)


def test_what_is_wrong_with_a_sites_own_files_does_not_leave_it(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    north = deployed.programs["north"]
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    program = SiteProgram(tmp_path, north.agreement, north.federation)
    answer = decode(program.handle(encode(Message("setup", "f" * 32, 0))))
    assert (answer.kind, answer.about) == ("refuse", {"why": "it cannot take part: its own log says why"})
    assert str(tmp_path / "run.json") in capsys.readouterr().err
    (entry,) = sent_messages(tmp_path)
    assert (entry["kind"], entry["about"]) == ("refuse", dict(answer.about)), "it has left, so it is in the list"


def test_a_site_writes_down_what_it_refuses_and_what_was_not_taken_of_it(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sides have a line: what is refused here goes to the server, and what is refused there comes here."""
    north = deployed.programs["north"]
    run, kept = run_id_of(north.agreement, SITES), sorted((north.folder / "answers").iterdir())
    answer = decode(north.handle(encode(Message("refuse", run, 2, {"why": "it is not finite\x1b"}))))
    assert answer.kind == "ready"
    assert "round 2: the server has not taken what this site sent: it is not finite\\x1b" in capsys.readouterr().err
    assert sorted((north.folder / "answers").iterdir()) == kept, "it takes the place of no answer that may be needed"
    changed = bytearray(encode(Message("setup", run, 0)))
    changed[-1] ^= 1
    for data, why in (
        (encode(Message("step", "f" * 32, 3)), "a message of another run"),
        (bytes(changed), "a damaged message"),
    ):
        assert why in decode(north.handle(data)).about["why"]
        assert f"refused, round 0: {why}" in capsys.readouterr().err


def test_a_site_whose_disk_cannot_take_its_log_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsa.client.answers import log

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    log("a line")


def test_the_server_is_told_that_a_site_has_another_base_model(
    deployed: Deployed, tiny_model_without_dropout: Path, tmp_path: Path
) -> None:
    """That names nothing of the site's; where its model lies does not leave it."""
    shutil.copytree(deployed.sites / "north", tmp_path / "north")
    own = json.loads((tmp_path / "north" / "settings.json").read_text())
    own["model"]["path"] = str(tiny_model_without_dropout)
    (tmp_path / "north" / "settings.json").write_text(json.dumps(own))
    answer = decode(handler_of(tmp_path / "north")(encode(Message("setup", "f" * 32, 0))))
    assert answer.kind == "refuse"
    assert "the base model's weights are not those that were agreed upon" in answer.about["why"]
    assert str(tiny_model_without_dropout) not in answer.about["why"]


def test_a_site_without_its_folder_says_so_in_the_middle_of_a_run(deployed: Deployed, tmp_path: Path) -> None:
    north = deployed.programs["north"]
    program = SiteProgram(tmp_path, north.agreement, north.federation)
    answer = decode(program.handle(encode(Message("step", "f" * 32, 3))))
    assert "the run has begun, and this site does not know of it" in answer.about["why"]


def test_another_agreement_is_refused_on_both_sides(deployed: Deployed, tmp_path: Path) -> None:
    agreement = Agreement.read(deployed.sites / "north" / AGREEMENT)
    other = agreement.model_copy(update={"settings": {**agreement.settings, "rounds": 9}})
    fleet = RemoteFleet(exchange_with(deployed.programs), SITES, run_id_of(agreement, SITES))
    with pytest.raises(ProtocolError, match=r"site 'north' cannot take part: .*agreement"):
        fleet.set_up(other)
    with (
        open_server_folder(deployed.out, other.recipe).locked() as folder,
        pytest.raises(RunFolderError, match=r"was begun with another agreement \(rounds\)"),
    ):
        serve(other, folder, fleet, engine="a test")


def test_a_site_that_refuses_is_left_out_and_named_while_a_quorum_is_left(
    deployed: Deployed, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    prepare(tiny_recipe(*SETTINGS, "rounds=2"), tmp_path / "sites", SITES)
    programs = {site: open_site(tmp_path / "sites" / site) for site in SITES}
    whole, told = exchange_with(programs), []

    def one_is_broken(requests: Mapping[str, bytes], deadline: float | None) -> Iterator[tuple[str, bytes]]:
        for site, answer in whole(requests, deadline):
            broken = site == "south" and decode(requests[site]).about.get("do") == "train"
            yield site, answer[:-1] + bytes([answer[-1] ^ 1]) if broken else answer

    summary = run_over(tmp_path / "sites", tmp_path / "out", one_is_broken, quorum=1, tell=told.append)
    for program in programs.values():
        program.close()
    assert any("south is left out: a damaged message" in line for line in told)
    south = set(programs["south"].federation.clients)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all((line["train"] is None) == (line["client"] in south) for line in lines if line["round"] > 0)
    assert summary["rounds"] == 2


def test_what_does_not_leave_a_site_cannot_be_asked_for(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny_recipe(
        *SETTINGS, "holdout_clients=0.4", "evaluation.global_model=average", "adaptation.share_personal=true"
    )
    with pytest.raises(ConfigError) as told:
        prepare(recipe, tmp_path, SITES)
    for name in ("holdout_clients", "evaluation.global_model", "adaptation.share_personal"):
        assert name in str(told.value)
    with pytest.raises(UserError, match="9 sites for 3 clients"):
        prepare(tiny_recipe(*SETTINGS), tmp_path, [f"site-{number}" for number in range(9)])
