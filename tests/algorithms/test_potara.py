"""Potara: FedIT's mean and a client's own model, merged with the weight of least expected distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.algorithms.potara import Potara
from fedsa.client.training.job import Job, TrainingResult
from fedsa.runs.personal import PersonalStates
from fedsa.testing.world import Case, World
from fedsa.types import Factor, Key, State
from support.tiny_runs import states_of

ROUNDS = (frozenset({0, 1, 2, 3}), frozenset({1, 3}), frozenset({0}), frozenset({0, 2, 3}), frozenset({2}))
FEDIT = make_algorithm("fedit", {})


def as_bytes(tensors: State) -> dict[Key, bytes]:
    return {key: value.contiguous().numpy().tobytes() for key, value in tensors.items()}


def federated(world: World) -> State:
    """The server's value of each of the model's tensors."""
    tensors = world.server.state.tensors
    return {key: tensors[key._replace(adapter="federated")] for key in world.algorithm.models(tensors)}


@pytest.mark.parametrize(("variant", "mixed"), [("lora", False), ("lora", True), ("dora", False), ("ia3", False)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_federated_model_is_fedit_and_both_ends_are_its_clients(weight: float, variant: str, mixed: bool):
    """To the byte: at 1 what FedIT's clients use after the aggregate, at 0 what their own training has left."""
    methods: tuple[Algorithm, Algorithm] = Potara(federated_weight=weight), FEDIT
    one, two = (World(Case(method, variant, mixed, 3, (5, 1, 8, 2), ROUNDS)) for method in methods)
    trained = set()
    for round, clients in enumerate(one.case.rounds, start=1):
        for client in clients:
            jobs = [world.job(client, round).tensors for world in (one, two)]
            assert as_bytes(one.algorithm.models(jobs[0])) == as_bytes(jobs[1])
        for world in (one, two):
            world.round(round, clients)
        trained |= set(clients)
        assert as_bytes(federated(one)) == as_bytes(two.server.state.tensors)
        for client in one.case.clients:
            mine = as_bytes(one.algorithm.models(one.personal(client, round)))
            if weight or client not in trained:
                assert mine == as_bytes(two.personal(client, round))
            else:
                state = two.states.load_client(client, round)
                assert state is not None
                assert mine == as_bytes(state.tensors)


class Differing:
    """A world whose clients learn something of their own, besides the random numbers of each half."""

    def __init__(self) -> None:
        self.world = World(Case(Potara(), "lora", weights=(1, 3, 2)))

    def result(self, job: Job) -> TrainingResult:
        found, own = self.world.result(job), 4.0 * (int(job.client[1:]) - 1)

        def moved(tensors: State) -> State:
            return {key: value + own if key in job.keys else value for key, value in tensors.items()}

        return replace(found, tensors=moved(found.tensors), halves=tuple(map(moved, found.halves)))

    def round(self, round: int) -> dict[str, TrainingResult]:
        """Run a round of all clients, and return what their trainings came to."""
        jobs = [self.world.job(client, round) for client in self.world.case.clients]
        results = {job.client: self.result(job) for job in jobs}
        self.world.server.begin_round(round)
        self.world.server.end_round(round, [self.world.site.finish(job, results[job.client]) for job in jobs])
        return results


def test_the_weight_is_that_of_the_formula():
    """w = v_own / |federated - own|^2, at most 1, where v_own is a quarter of the halves' squared distance."""
    differing, weights = Differing(), []
    world = differing.world
    for round in (1, 2):
        for client, result in differing.round(round).items():
            first, second = result.halves
            state = world.states.load_client(client, round)
            assert state is not None
            keys = list(world.algorithm.models(state.tensors))
            own, mean = ({key: each[key].double() for key in keys} for each in (state.tensors, federated(world)))
            variance = sum(float((first[key].double() - second[key].double()).square().sum()) for key in keys) / 4
            weight = min(1.0, variance / sum(float((mean[key] - own[key]).square().sum()) for key in keys))
            weights.append(weight)
            used = world.personal(client, round)
            for key in keys:
                expected = weight * mean[key] + (1 - weight) * own[key]
                torch.testing.assert_close(used[key].double(), expected, rtol=1e-5, atol=1e-6)
    assert min(weights) < 0.2


@pytest.mark.parametrize(("noise", "difference"), [(1.0, 1.0), (1.0, 0.5), (0.5, 2.0), (1.0, 0.0)])
def test_the_merge_is_the_nearest_to_what_is_best_for_the_client(noise: float, difference: float):
    """With noise the norm of each half's error and difference that of the federated model's: v_own = noise^2 / 2."""
    method, size, key = Potara(), 40_000, Key("layer", Factor.B)
    random = np.random.default_rng(0)

    def drawn(norm: float) -> torch.Tensor:
        return torch.from_numpy(norm * random.normal(size=(1, size)) / size**0.5).float()

    initial = method.whole({key: torch.zeros(1, size)})
    best = drawn(3.0)
    halves = [{key: best + drawn(noise)} for _ in range(2)]
    kept = {**initial, key: (halves[0][key] + halves[1][key]) / 2}
    mean = {key._replace(adapter="federated"): best + drawn(difference)}
    used = method.absorb({**kept, **method.outgoing(initial, kept, halves, 1)}, mean, initial)
    own, common = noise**2 / 2, difference**2
    weight = own / (own + common)
    left = float((used[key] - best).square().sum())
    assert left == pytest.approx(weight**2 * common + (1 - weight) ** 2 * own, abs=0.02)
    assert left <= min(own, common) + 0.02


def test_a_newcomer_has_the_federated_model():
    world = World(Case(Potara(federated_weight=0.5), "lora", weights=(2, 3, 4)))
    world.round(1, ["c0", "c1"])
    assert as_bytes(world.algorithm.models(world.personal("c2", 1))) == as_bytes(federated(world))
    assert as_bytes(world.algorithm.models(world.personal("c0", 1))) != as_bytes(federated(world))


def test_what_leaves_a_client_is_all_that_it_trains():
    keys = [Key("layer", Factor.A), Key("layer", Factor.B), Key("classifier.weight", Factor.HEAD)]
    assert all(Potara().leaves(key, 1) for key in keys)
    assert not any(Potara().keeps(key) for key in keys), "so no client draws an initial A of its own"
    assert Potara().trains_halves(1)
    assert not Potara(federated_weight=0.5).trains_halves(1)
    assert Potara().sends()


@pytest.mark.run
@pytest.mark.parametrize("cohort", [(), ("training.trainer=cohort", "training.cohort_size=3")], ids=["alone", "cohort"])
def test_ends_of_whole_runs_are_fedits_to_the_byte(tiny_run: Callable[..., Any], cohort: tuple[str, ...]):
    settings = ("data.partition={kind='dirichlet', clients=5, dirichlet_alpha=0.5}", "fraction_train=0.4", "rounds=4")
    limit = tiny_run(*settings, *cohort, "algorithm=fedit", "evaluation.evaluate_after=both")
    for weight, name in ((1.0, "test_final"), (0.0, "test_final_after_training")):
        run = tiny_run(*settings, *cohort, "algorithm=potara", f"algorithm_options.federated_weight={weight}")
        mine = states_of(run)
        for key, value in limit.federation.initial_state().tensors.items():
            server = mine[f"server {key._replace(adapter='federated')}"]
            assert server.numpy().tobytes() == states_of(limit)[f"server {key}"].numpy().tobytes()
            assert server.shape == value.shape
        for client, metrics in limit.summary["per_client"].items():
            if weight or limit.folder.client_states.last_round(client):  # who never trained has the federated model
                assert run.summary["per_client"][client]["test_final"] == metrics[name]


@pytest.mark.run
def test_the_estimate_goes_with_sums_alone(tiny_run: Callable[..., Any]):
    """The server needs no more than FedIT's, so secure aggregation and eight bits go with it."""
    plain = states_of(tiny_run("algorithm=potara", "rounds=2"))
    for more in ("secure_aggregation=true", "compression.kind=int8"):
        other = states_of(tiny_run("algorithm=potara", "rounds=2", more))
        for name, value in plain.items():
            if name.endswith(":federated"):
                torch.testing.assert_close(other[name], value, rtol=0, atol=5e-3)


@pytest.mark.run
def test_an_audit_trains_again_from_the_federated_model(tiny_run: Callable[..., Any]):
    run = tiny_run("algorithm=potara", "rounds=2", "algorithm_options.federated_weight=0.5")
    states, method = PersonalStates(run.folder, run.federation.algorithm, 2), run.federation.algorithm
    server = states_of(run)
    for client in run.federation.clients:
        begins, uses = (states.of(client, for_training=each) for each in (True, False))
        assert begins.keys() == uses.keys() == method.models(begins).keys()
        assert all(torch.equal(begins[key], server[f"server {key._replace(adapter='federated')}"]) for key in begins)
        assert any(not torch.equal(begins[key], uses[key]) for key in uses)
