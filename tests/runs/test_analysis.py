"""fedsa analyze: what clients have in common, from a run folder alone."""

import csv
import json

import numpy as np
import pytest
import torch

from fedsa.adapters.similarity import cosine
from fedsa.callbacks import Callback
from fedsa.engines.simulator import simulate
from fedsa.errors import UserError
from fedsa.federation import Federation
from fedsa.recipe import dump_recipe
from fedsa.runs.analysis import analyze, label_similarity
from fedsa.store import RunFolder
from fedsa.types import Factor


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    """Run tiny recipes, once each, and return their folders."""
    made = {}

    def run(*settings):
        if settings not in made:
            federation = Federation.from_recipe(tiny_recipe("rounds=3", *settings))
            path = tmp_path_factory.mktemp("run") / "run"
            with RunFolder.create(path, dump_recipe(federation.recipe)).locked() as folder:
                simulate(federation, folder)
            made[settings] = path
        return made[settings]

    return run


def test_every_round_is_compared_where_all_are_kept(finished):
    found = analyze(finished("keep_rounds=all"))
    assert found.rounds == [1, 2, 3]
    assert found.clients == ("site 0", "site 1", "site 2")
    assert {measure for _, measure, *_ in found.matrices} == {"raw", "moved", "within", "span", "update"}
    assert {factor for _, _, factor, _ in found.matrices} == {"A", "B", "head", "BA"}
    for matrix in found.matrices.values():
        assert matrix.shape == (3, 3)
        assert np.array_equal(matrix, matrix.T)
        assert (np.abs(matrix) <= 1 + 1e-12).all()


def test_the_figures_are_those_of_the_clients_tensors(finished):
    path = finished("keep_rounds=all")
    found, folder = analyze(path), RunFolder.open(path)
    initial = folder.load_initial()
    states = [folder.client_states.load_client(client, 2).tensors for client in found.clients]
    key = next(key for key in initial if key.factor.value == "B")
    moved = [state[key] - initial[key] for state in states]
    assert found.matrices[2, "raw", "B", key.module][0, 1] == cosine(states[0][key], states[1][key])
    assert found.matrices[2, "moved", "B", key.module][0, 2] == cosine(moved[0], moved[2])
    key = next(key for key in initial if key.factor.value == "A")
    averaged = folder.server_states.load_server(1)[0][key]
    within = [state[key] - averaged for state in states]
    assert found.matrices[2, "within", "A", key.module][1, 2] == cosine(within[1], within[2])
    products = [state[key._replace(factor=Factor.B)] @ state[key] for state in states]
    similarity = cosine(products[0], products[1])
    assert found.matrices[2, "update", "BA", key.module][0, 1] == pytest.approx(similarity, rel=1e-5)
    distance = (states[1][key] - initial[key]).norm() / initial[key].norm()
    assert found.distances[2, "A", key.module][1] == pytest.approx(float(distance), rel=1e-6)


def test_in_the_first_round_the_movement_is_that_of_the_run(finished):
    found = analyze(finished("keep_rounds=all"), [1])
    for (round, measure, factor, module), matrix in found.matrices.items():
        if measure == "within":
            assert np.array_equal(matrix, found.matrices[round, "moved", factor, module])


def test_identical_clients_give_one(finished):
    path = finished("keep_rounds=all")
    folder = RunFolder.open(path)
    found = analyze(path)
    state = folder.client_states.load_client(found.clients[0], 3)
    for client in found.clients[1:]:
        target = folder.client_states.path_of(client, 3)
        kept = target.read_bytes()
        folder.client_states.save_client(client, 3, state)
        folder.settle()
        try:
            same = analyze(path, [3])
        finally:
            target.write_bytes(kept)
        place = same.clients.index(client)
        for (_, measure, _, _), matrix in same.matrices.items():
            if measure != "within":  # they did not begin the round alike
                assert matrix[0, place] == pytest.approx(1, abs=1e-6)
    assert state is not None


def test_averaging_alone_makes_a_alike_and_leaves_b(finished):
    """What every client received is the same in all: FedSA's A at the start of round 3, not its B."""
    path = finished("keep_rounds=all")
    means = {(row["round"], row["measure"], row["factor"]): row["mean"] for row in analyze(path).means()}
    assert means[3, "raw", "A"] > means[3, "raw", "B"]
    assert means[3, "moved", "A"] > means[3, "within", "A"]


def test_only_what_is_kept_can_be_compared(finished):
    path = finished("evaluation.evaluate_every=3")
    found = analyze(path)
    assert found.rounds == [3]
    assert "within" not in {measure for _, measure, *_ in found.matrices}
    with pytest.raises(UserError, match=r"does not keep round 1: it has .*3 of 3.*keep_rounds"):
        analyze(path, [1])


@pytest.mark.parametrize("variant", ["rslora", "vera"])
def test_other_variants(finished, variant):
    found = analyze(finished("keep_rounds=all", f"adapter.variant={variant}", "adapter.r=4"))
    factors = {"A", "B", "head", "BA"} if variant == "rslora" else {"lambda_d", "lambda_b", "head"}
    assert {factor for _, _, factor, _ in found.matrices} == factors
    spanning = {factor for _, measure, factor, _ in found.matrices if measure == "span"}
    assert spanning == factors & {"A", "B"}


def test_label_similarity_is_the_cosine_of_counts():
    about = [{"labels": {"a": 3, "b": 4}}, {"labels": {"a": 4, "b": 3}}, {"labels": {"a": 6, "b": 8}}]
    matrix = label_similarity(about)
    assert matrix[0, 1] == pytest.approx(24 / 25)
    assert matrix[0, 2] == pytest.approx(1)


def test_the_command_writes_tables_and_pictures(finished, fedsa_command, tmp_path):
    to = tmp_path / "out"
    done = fedsa_command("analyze", finished("keep_rounds=all"), "--to", to, "--json", "--formats", "svg,pdf")
    assert done.code == 0, done.err
    means = json.loads(done.out)["means"]
    assert {(row["factor"], row["measure"]) for row in means} >= {("A", "raw"), ("B", "span"), ("head", "within")}
    names = {path.name for path in to.iterdir()}
    pictures = {f"{name}.{kind}" for name in ("clients", "layers", "rounds", "clusters") for kind in ("svg", "pdf")}
    assert names == {"pairs.parquet", "pairs.csv", "distances.csv", "means.json", "SHA256SUMS"} | pictures
    with (to / "pairs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(analyze(finished("keep_rounds=all")).matrices)


def test_mistakes_are_told(finished, fedsa_command, tmp_path):
    for arguments, text in [
        ([str(tmp_path / "none")], "none"),
        ([str(finished("keep_rounds=all")), "--round", "9"], "does not keep round 9"),
        ([str(finished("keep_rounds=all")), "--formats", "gif"], "--formats gif: known are pdf, svg and png"),
    ]:
        done = fedsa_command("analyze", *arguments)
        assert done.code == 2
        assert text in done.error


@pytest.mark.run
def test_a_run_with_all_rounds_kept_goes_on_where_it_stopped(tiny_recipe, tmp_path):
    federation = Federation.from_recipe(tiny_recipe("rounds=3", "keep_rounds=all"))

    class Stop(Callback):
        def on_round_end(self, round, *rest):
            if round == 2:
                raise KeyboardInterrupt

    paths = tmp_path / "whole", tmp_path / "stopped"
    for path in paths:
        with RunFolder.create(path, dump_recipe(federation.recipe)).locked() as folder:
            if path.name == "whole":
                simulate(federation, folder)
                continue
            with pytest.raises(KeyboardInterrupt):
                simulate(federation, folder, [Stop()])
    with RunFolder.open(paths[1], write=True).locked() as folder:
        simulate(federation, folder)
    first, second = (analyze(path) for path in paths)
    assert first.rounds == second.rounds == [1, 2, 3]
    for key, matrix in first.matrices.items():
        assert torch.equal(torch.from_numpy(matrix), torch.from_numpy(second.matrices[key]))
