"""A chain of steps: its order, what its halves keep, what is refused; with steps made for these tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms import make_algorithm
from fedsa.client.training.job import TrainingResult
from fedsa.errors import ProtocolError
from fedsa.server import Server, load_state, save_state
from fedsa.steps import PLAIN
from fedsa.steps.base import ClientContext, Form, MeanContext, MeanStep, Slots, Step
from fedsa.steps.cast import Cast
from fedsa.steps.chain import Chain
from fedsa.store import ClientState, RunFolder
from fedsa.testing import check_step
from fedsa.types import Factor, Key, Payload, State, Update, total_bytes

A = Key("layer", Factor.A)


@final
@dataclass(frozen=True)
class Clip(Step):
    """Bound how far a client has gone from where it began: what client-level privacy begins with."""

    norm: float

    setting: ClassVar[str] = "-"

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        changes = {key: value - context.before[key] for key, value in tensors.items()}
        factor = min(1.0, self.norm / float(torch.cat([change.flatten() for change in changes.values()]).norm()))
        return {key: context.before[key] + factor * change for key, change in changes.items()}, {}


@final
@dataclass(frozen=True)
class Noise(MeanStep):
    """Noise on the mean, for the client that counts most."""

    scale: float

    setting: ClassVar[str] = "-"

    def on_mean(self, mean: State, slots: Slots, context: MeanContext) -> tuple[State, Slots]:
        share = max(context.weights) / sum(context.weights)
        return {
            key: value + self.scale * share * torch.randn(value.shape, generator=context.random, dtype=value.dtype)
            for key, value in mean.items()
        }, {"noise|rounds": slots.get("noise|rounds", torch.zeros(1)) + 1}


@final
@dataclass(frozen=True)
class Halves(Step):
    """Whole numbers of half a unit in 8 bits; the error of a round is added to the next update."""

    setting: ClassVar[str] = "-"
    additive: ClassVar[bool] = False

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        wanted = {key: value + slots.get(f"halves|{key}", 0.0) for key, value in tensors.items()}
        sent = {key: (2 * value).round().clamp(-127, 127).to(torch.int8) for key, value in wanted.items()}
        return sent, {f"halves|{key}": value - sent[key] / 2 for key, value in wanted.items()}

    def form(self, key: Key, form: Form) -> Form:
        return form._replace(dtype=torch.int8)

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        if any(bool((tensor == -128).any()) for tensor in update.tensors.values()):
            raise ProtocolError(f"update of client {update.client!r}: -128 is no value of a half")
        return replace(update, tensors={key: tensor / 2 for key, tensor in update.tensors.items()}), weight


@final
@dataclass(frozen=True)
class Stale(Step):
    """Who comes with an older version counts less."""

    setting: ClassVar[str] = "-"
    additive: ClassVar[bool] = False

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        return update, 12 * weight // (update.round - (update.base_version or 0))


@pytest.mark.parametrize("step", [Clip(1.0), Noise(1.0), Halves()], ids=str)
def test_steps_that_are_to_come_obey_the_laws(step: Step) -> None:
    check_step(step)


def test_a_chain_of_nothing_is_the_identity() -> None:
    chain, tensors = Chain(), {A: torch.randn(3, dtype=torch.float64)}
    sent, kept = chain.on_client(tensors, {}, client="a", round=1, before=tensors, seed=0)
    update = Update("a", 1, 5, sent)
    assert sent is tensors
    assert kept == {}
    assert chain.on_payload(tensors) is tensors
    assert chain.on_server(update, 5, tensors) == (update, 5)
    assert chain.upload_bytes(tensors) == total_bytes(tensors) == 24
    state = make_algorithm("fedit", {}).init({A: torch.zeros(3)})
    mean, slots = chain.mean([(update, 5), (Update("b", 1, 1, {A: torch.ones(3)}), 1)], state, 1, 0)
    assert torch.equal(mean[A], weighted_mean([(tensors, 5), ({A: torch.ones(3)}, 1)])[A])
    assert slots == {}


@final
@dataclass(frozen=True)
class Noted(MeanStep):
    """Says when it was its turn."""

    letter: str
    turns: list[str]

    setting: ClassVar[str] = "-"

    def on_client(self, tensors: State, slots: Slots, context: ClientContext) -> tuple[State, Slots]:
        self.turns.append(f"client {self.letter}")
        return tensors, {}

    def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
        self.turns.append(f"server {self.letter}")
        return update, weight

    def on_mean(self, mean: State, slots: Slots, context: MeanContext) -> tuple[State, Slots]:
        self.turns.append(f"mean {self.letter}")
        return mean, {}


def test_the_server_takes_the_steps_the_other_way_round() -> None:
    turns: list[str] = []
    chain, tensors = Chain((Noted("x", turns), Noted("y", turns))), {A: torch.zeros(1)}
    chain.on_client(tensors, {}, client="a", round=1, before=tensors, seed=0)
    state = make_algorithm("fedit", {}).init(tensors)
    chain.mean(iter([chain.on_server(Update("a", 1, 1, tensors), 1, tensors)]), state, 1, 0)
    assert turns == ["client x", "client y", "server y", "server x", "mean y", "mean x"]


def site_of(tiny_recipe: Callable[..., Any], steps: Chain, states: Any, *settings: str) -> Any:
    from fedsa.federation import Federation

    site = Federation.from_recipe(tiny_recipe(*settings)).site(states)
    return replace(site, steps=steps)


class Kept:
    """The last state of each client."""

    def __init__(self) -> None:
        self.states: dict[str, ClientState] = {}

    def load_client(self, client: str, round: int) -> ClientState | None:
        return self.states.get(client)

    def save_client(self, client: str, round: int, state: ClientState) -> None:
        self.states[client] = state


@pytest.mark.run
def test_a_client_keeps_the_state_of_its_steps(tiny_recipe: Callable[..., Any]) -> None:
    """Error feedback: what two rounds sent in halves adds up to what was trained, but for the last round's error."""
    states = Kept()
    site = site_of(tiny_recipe, Chain((Halves(),)), states)
    whole: dict[Key, torch.Tensor] = {}
    wanted: dict[Key, torch.Tensor] = {}
    for round in (1, 2, 3):
        job = site.prepare(Payload("site 0", round, round - 1, {}))
        after = {key: value + 0.3 for key, value in job.tensors.items()}
        update = site.finish(job, TrainingResult(after, {}, {"loss": 0.0, "seconds": 0.0}))
        for key, sent in update.tensors.items():
            assert sent.dtype == torch.int8
            whole[key] = whole.get(key, 0) + sent / 2
            wanted[key] = wanted.get(key, 0) + after[key]
    errors = states.states["site 0"].step_state
    assert set(errors) == {f"halves|{key}" for key in whole}
    for key, total in whole.items():
        assert float(errors[f"halves|{key}"].abs().max()) <= 0.25
        torch.testing.assert_close(total + errors[f"halves|{key}"], wanted[key])


def test_a_run_folder_keeps_the_state_of_a_clients_steps(tmp_path: Path) -> None:
    from fedsa.store import Progress

    kept = ClientState({A: torch.ones(2)}, {f"m|{A}": torch.zeros(2)}, 3, {f"halves|{A}": torch.full((2,), 0.5)})
    with RunFolder.create(tmp_path / "run", "").locked() as folder:
        folder.register_clients({"a": {}})
        folder.client_states.save_client("a", 4, kept)
        folder.commit(Progress(round=4))
        state = folder.client_states.load_client("a", 4)
    assert state is not None
    assert {name: value.tolist() for name, value in state.step_state.items()} == {f"halves|{A}": [0.5, 0.5]}
    assert set(state.optimizer_state) == {f"m|{A}"}
    assert set(state.tensors) == {A}


@pytest.mark.run
def test_before_is_what_the_client_received_even_where_its_head_is_warmed_up(tiny_recipe: Callable[..., Any]) -> None:
    site = site_of(tiny_recipe, PLAIN, Kept(), "algorithm=fedit", "training.head_warmup_epochs=1")
    job = site.prepare(Payload("site 0", 1, 0, {}))
    (warmed,), _ = site._trained([job])
    head = [key for key in job.tensors if key.factor is Factor.HEAD]
    assert head
    for key in head:
        assert not torch.equal(warmed.tensors[key], job.tensors[key])
        assert torch.equal(warmed.before[key], job.tensors[key])


def server_of(*steps: Step, **options: Any) -> Server:
    algorithm = make_algorithm("fedit", {})
    state = algorithm.init({A: torch.zeros(1)})
    return Server(algorithm, state, ["c0", "c1"], steps=Chain(steps), **{"seed": 0, **options})


def rounds(server: Server, *values: tuple[float, ...]) -> list[float]:
    """Return the server's value after each round, in which clients of 1 and 3 rows sent the given values."""
    after = []
    for round, sent in enumerate(values, start=1):
        server.begin_round(round)
        server.end_round(
            round,
            [Update(f"c{n}", round, 1 + 2 * n, {A: torch.tensor([value])}) for n, value in enumerate(sent)],
        )
        after.append(float(server.state.tensors[A]))
    return after


def test_the_server_keeps_the_state_of_steps_on_the_mean(tmp_path: Path) -> None:
    server = server_of(Noise(1.0))
    values = rounds(server, (0.0, 0.0), (0.0, 0.0))
    assert values[0] != values[1] != 0.0, "each round has noise of its own"
    assert float(server.state.slots["noise|rounds"]) == 2
    assert rounds(server_of(Noise(1.0)), (0.0, 0.0), (0.0, 0.0)) == values, "a run that is repeated has the same"
    assert rounds(server_of(Noise(1.0), seed=1), (0.0, 0.0)) != values[:1]
    assert rounds(server_of(Noise(1.0), weighting="uniform"), (0.0, 0.0)) == pytest.approx([values[0] * 0.5 / 0.75])
    with RunFolder.create(tmp_path / "run", "").locked() as folder:
        folder.register_clients({"c0": {}, "c1": {}})
        save_state(folder.server_states, 2, server.state, server.client_versions)
        assert float(load_state(folder.server_states, 2).slots["noise|rounds"]) == 2


def test_a_step_may_weigh_updates() -> None:
    server = server_of(Stale())
    server.begin_round(3)
    fresh = Update("c0", 3, 1, {A: torch.tensor([0.0])}, base_version=2)
    stale = Update("c1", 3, 1, {A: torch.tensor([4.0])}, base_version=0)
    server.end_round(3, [fresh, stale])
    assert float(server.state.tensors[A]) == pytest.approx(1.0)  # weights 1 and 1/3


def test_what_a_step_cannot_take_is_a_bad_update() -> None:
    good, bad = (torch.tensor([value], dtype=torch.int8) for value in (4, -128))
    server = server_of(Halves(), quorum=1)
    server.begin_round(1)
    record = server.end_round(1, [Update("c0", 1, 1, {A: good}), Update("c1", 1, 1, {A: bad})])
    assert record.rejected == {"c1": "update of client 'c1': -128 is no value of a half"}
    assert record.upload_bytes == {"c0": 1}
    assert float(server.state.tensors[A]) == 2.0
    server.begin_round(2)
    record = server.end_round(2, [Update("c0", 2, 1, {A: torch.zeros(1)}), Update("c1", 2, 1, {A: good})])
    assert record.rejected == {
        "c0": f"update of client 'c0' for round 2: {A} is of torch.float32, not torch.int8, the wire's"
    }


def test_steps_go_one_after_the_other_to_the_plain_computation() -> None:
    """Clip to 1, cast to bf16, mean of weights 1 and 3, by hand."""
    before, chain = {A: torch.zeros(2)}, Chain((Clip(1.0), Cast("bf16")))
    assert chain.upload_bytes(before) == 4
    server = Server(
        (algorithm := make_algorithm("fedit", {})), algorithm.init(before), ["c0", "c1"], seed=0, steps=chain
    )
    server.begin_round(1)
    updates = []
    for client, rows, value in (("c0", 1, [3.0, 4.0]), ("c1", 3, [0.25, 0.5])):
        sent, _ = chain.on_client({A: torch.tensor(value)}, {}, client=client, round=1, before=before, seed=0)
        updates.append(Update(client, 1, rows, sent))
    record = server.end_round(1, updates)
    clipped = torch.tensor([0.6, 0.8]).to(torch.bfloat16).double()
    expected = (clipped + 3 * torch.tensor([0.25, 0.5])) / 4
    assert torch.equal(server.state.tensors[A], expected.float())
    assert set(record.upload_bytes.values()) == {4}
