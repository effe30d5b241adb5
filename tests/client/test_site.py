"""One client's part of a round, where the plan changes from round to round."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch

from fedsa.algorithms.base import FROZEN, LOCAL, Algorithm, Plan
from fedsa.api import run
from fedsa.client.learner import Learner
from fedsa.client.training.job import Job, TrainingResult
from fedsa.errors import TrainingError
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.export import personal_state
from fedsa.store import ClientState, RunFolder
from fedsa.types import Factor, Key, Payload, Payloads, State

pytestmark = pytest.mark.run


@final
@dataclass(frozen=True, kw_only=True)
class OddB(Algorithm):
    """Train B in odd rounds, A in even ones; share nothing."""

    source: ClassVar[str] = "-"

    def plan(self, key: Key, round: int) -> Plan:
        return LOCAL if (key.factor is Factor.B) == (round % 2 == 1) else FROZEN


@pytest.mark.parametrize("optimizer_state", ["reset", "keep"])
def test_what_a_round_does_not_train_keeps_its_value(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, optimizer_state: str
) -> None:
    settings = (f"algorithm={__name__}:OddB", "rounds=2", f"training.optimizer_state={optimizer_state}")
    run(Federation.from_recipe(tiny_recipe(*settings)), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    client = "site 1"
    state = folder.client_states.load_client(client, 2)
    assert state is not None
    held = personal_state(folder, OddB(), client, 2)
    assert any(bool(value.any()) for key, value in held.items() if key.factor is Factor.B)
    slots = {Key.parse(name.partition("|")[2]).factor for name in state.optimizer_state}
    assert slots == (set() if optimizer_state == "reset" else {Factor.A, Factor.B, Factor.HEAD})


# -- both halves of a client's round ----------------------------------------------------------------------------------


class Kept:
    """The last state of each client, in memory."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, ClientState]] = {}

    def load_client(self, client: str, round: int) -> ClientState | None:
        return self.states[client][1] if client in self.states else None

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        self.states[client] = (round, state)

    def save_personal(self, client: str, round: int, tensors: State) -> None:
        raise AssertionError("every client keeps its state")

    def load_ahead(self, clients: Iterable[str], round: int) -> None:
        pass


def payloads_of(round: int, by_client: Mapping[str, State], asked: list[str] | None = None) -> Payloads:
    """Return payloads with the given tensors; who is looked up is noted in ``asked``."""

    def made(client: str) -> Payload:
        if asked is not None and client not in asked:
            asked.append(client)
        return Payload(client, round, round - 1, by_client[client])

    return Payloads(round, by_client, made)


def nothing_for(round: int, clients: Iterable[str], asked: list[str] | None = None) -> Payloads:
    return payloads_of(round, {client: {} for client in clients}, asked)


@pytest.mark.parametrize("algorithm", ["fedsa", "ffa", "fedit", "local"])
def test_a_job_says_what_the_plan_says(tiny_recipe: Callable[..., Recipe], algorithm: str) -> None:
    federation = Federation.from_recipe(tiny_recipe(f"algorithm={algorithm}", "rounds=5"))
    method, initial = federation.algorithm, federation.model.initial
    received = {key for key in initial if method.plan(key, 2).received}
    trained = {key for key in initial if method.plan(key, 2).trained}
    site, sent = federation.site(Kept()), {key: torch.full_like(initial[key], 7.0) for key in received}
    job = site.prepare(Payload("site 1", 2, 1, sent))
    assert (job.client, job.round, job.rounds, job.seed) == ("site 1", 2, 5, 0)
    assert (set(job.received), set(job.keys), job.stored, job.optimizer_state) == (received, trained, (), {})
    assert job.version == 1
    assert job.rows is site.rows["site 1"].train
    for key, value in initial.items():
        assert torch.equal(job.tensors[key], torch.full_like(value, 7.0) if key in received else value), key


@pytest.mark.parametrize("algorithm", ["fedsa", "ffa", "fedit", "local"])
def test_what_is_kept_and_sent_is_what_the_plan_says(tiny_recipe: Callable[..., Recipe], algorithm: str) -> None:
    federation = Federation.from_recipe(tiny_recipe(f"algorithm={algorithm}"))
    states, plan = Kept(), {key: federation.algorithm.plan(key, 3) for key in federation.model.keys}
    site = federation.site(states)
    job = site.prepare(Payload("site 0", 3, 2, {}))
    after = {key: value + 1 for key, value in job.tensors.items()}
    update = site.finish(job, TrainingResult(after, {"step|x": torch.ones(1)}, {"loss": 0.5}))
    assert (update.client, update.round, update.num_examples) == ("site 0", 3, len(site.rows["site 0"].train))
    assert update.base_version == 2
    assert update.metrics == {"loss": 0.5}
    assert set(update.tensors) == {key for key in plan if plan[key].sent}
    assert all(torch.equal(value, after[key]) for key, value in update.tensors.items())
    round, state = states.states["site 0"]
    assert (round, state.version) == (3, 2)
    assert set(state.tensors) == {key for key in plan if plan[key].trained or plan[key].received}
    assert all(torch.equal(value, after[key]) for key, value in state.tensors.items())
    assert set(state.optimizer_state) == {"step|x"}
    assert set(site.prepare(Payload("site 0", 4, 3, {})).stored) == set(state.tensors)


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_a_client_without_a_state_starts_from_the_initial_one(tiny_recipe: Callable[..., Recipe], trainer: str) -> None:
    federation = Federation.from_recipe(tiny_recipe(f"training.trainer={trainer}"))
    results = []
    for _ in range(2):
        states = Kept()
        site = federation.site(states)
        (update,) = site.train(nothing_for(1, ["site 2"]))
        results.append(update)
        assert update.num_examples == len(site.rows["site 2"].train)
        assert list(states.states) == ["site 2"]
    first, second = results
    assert first.tensors
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)


# -- many clients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "taken"),
    [
        ("training.trainer=sequential", [1, 2, 3]),
        ("training.cohort_size=1", [1, 2, 3]),
        ("training.cohort_size=2", [2, 2, 3]),
        ("training.cohort_size=3", [3, 3, 3]),
        ("training.cohort_size=9", [3, 3, 3]),
    ],
)
def test_clients_are_taken_as_many_as_train_together(
    tiny_recipe: Callable[..., Recipe], trainer: str, taken: list[int]
) -> None:
    federation = Federation.from_recipe(tiny_recipe("training.local_steps=1", trainer))
    states, asked = Kept(), []
    seen = []
    for update in federation.site(states).train(nothing_for(1, federation.clients, asked)):
        assert update.client in states.states, "what a client comes to is kept before it is told"
        seen.append((update.client, len(asked)))
    assert seen == list(zip(federation.clients, taken, strict=True))


def test_nobody_is_asked(tiny_recipe: Callable[..., Recipe]) -> None:
    assert list(Federation.from_recipe(tiny_recipe()).site(Kept()).train(nothing_for(1, []))) == []


def test_cohorts_of_any_size_come_to_what_one_by_one_comes_to(
    tiny_recipe: Callable[..., Recipe], tiny_model_without_dropout: Path
) -> None:
    common = f"model.path='{tiny_model_without_dropout.as_posix()}'", "adapter.dropout=0.1", "rounds=1"
    came = {}
    for trainer in ("trainer=sequential", "cohort_size=2", "cohort_size=3"):
        federation = Federation.from_recipe(tiny_recipe(*common, f"training.{trainer}"))
        states = Kept()
        list(federation.site(states).train(nothing_for(1, federation.clients)))
        came[trainer] = states.states
    alone, *others = came.values()
    for other, client in itertools.product(others, alone):
        for key, value in alone[client][1].tensors.items():
            torch.testing.assert_close(other[client][1].tensors[key], value, rtol=0, atol=1e-6)
            assert (value - federation.model.initial[key]).abs().max() > 1e-4


# -- memory that runs out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "trainer", "expected"),
    [
        (
            "training.trainer=sequential",
            "sequential",
            r"^client 'site 0', round 1: out of memory on cpu; lower training.batch_size or task.max_length, or set ",
        ),
        (
            "training.cohort_size=1",
            "cohort",
            r"^client 'site 0', round 1: out of memory on cpu; lower training.batch_size or task.max_length, or set ",
        ),
        (
            "training.cohort_size=2",
            "cohort",
            r"^2 clients from 'site 0' on, round 1: out of memory on cpu; "
            r"lower training.cohort_size, training.batch_size or task.max_length, or set ",
        ),
    ],
)
def test_out_of_memory_names_who_trained_and_what_to_lower(
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    trainer: str,
    expected: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"fedsa.client.training.{trainer}.train", fail)
    with pytest.raises(TrainingError, match=expected):
        run(Federation.from_recipe(tiny_recipe(settings)), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert all(folder.client_states.load_client(client, 1) is None for client in ("site 0", "site 1", "site 2"))


def test_of_clients_that_trained_together_nothing_is_kept_if_one_fails(tiny_recipe: Callable[..., Recipe]) -> None:
    federation = Federation.from_recipe(
        tiny_recipe("training.cohort_size=2", "training.optimizer=sgd", "training.momentum=0.0")
    )
    states, key = Kept(), federation.model.keys[0]
    broken = {key: torch.full_like(federation.model.initial[key], 1e38)}
    payloads = payloads_of(1, {client: broken if client == "site 1" else {} for client in federation.clients})
    with pytest.raises(TrainingError, match="round 1: the loss is not finite"):
        list(federation.site(states).train(payloads))
    assert states.states == {}


@pytest.mark.parametrize(
    ("round", "advice"),
    [(1, "the base model gives it: take another"), (2, r"lower training\.learning_rate .*, and start the run again")],
)
@pytest.mark.parametrize("trainer", ["cohort_size=3", "trainer=sequential"])
def test_a_client_that_begins_with_infinite_tensors_is_named(
    tiny_recipe: Callable[..., Recipe], trainer: str, round: int, advice: str
) -> None:
    """In a cohort all who train with it would get nan: 0 · inf is nan."""
    federation = Federation.from_recipe(tiny_recipe(f"training.{trainer}"))
    broken = {key: torch.full_like(value, torch.inf) for key, value in federation.model.initial.items()}
    payloads = payloads_of(round, {client: broken if client == "site 1" else {} for client in federation.clients})
    with pytest.raises(TrainingError, match=rf"^client 'site 1', round {round}: .* is not finite before .*; {advice}$"):
        list(federation.site(Kept()).train(payloads))


def test_what_the_server_added_is_in_memory_once(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client's state on disk has a copy; of those that train together one is kept where they are equal."""
    federation = Federation.from_recipe(tiny_recipe("algorithm=support.methods:Folding", "training.cohort_size=3"))
    states, added = Kept(), {key for key in federation.model.keys if key.factor is Factor.DELTA}
    for number, client in enumerate(federation.clients):
        tensors = {key: torch.full(federation.model.initial[key].shape, 0.5 + (number == 2)) for key in added}
        states.save_client(client, 1, ClientState(tensors, {}, version=0))
    jobs: list[Job] = []
    train = Learner.train
    monkeypatch.setattr(Learner, "train", lambda self, given: jobs.extend(given) or train(self, given))
    list(federation.site(states).train(nothing_for(2, federation.clients)))
    for key in added:
        first, second, third = (job.tensors[key] for job in jobs)
        assert first is second
        assert float(first[0, 0]) == 0.5
        assert float(third[0, 0]) == 1.5
    others = [key for key in federation.model.keys if key not in added]
    assert all(set(job.tensors) == {*added, *others} for job in jobs)
