"""What the server makes of a round's mean, against the papers' formulas written out for one number."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch

from fedsa.algorithms import check_algorithm, make_algorithm
from fedsa.algorithms.base import SHARED, Algorithm, Plan, ServerState
from fedsa.engines import simulator
from fedsa.errors import ConfigError
from fedsa.recipe import FedAvgMSettings, ServerSettings, StepSettings, dump_recipe, parse_recipe, server_settings
from fedsa.server import Server, load_state
from fedsa.steps import check_steps, make_chain
from fedsa.store import RunFolder
from fedsa.types import Factor, Key, State, Update
from support.methods import Alternating

A, B = Key("layer", Factor.A), Key("layer", Factor.B)
MEANS = (3.0, -1.0, 0.5, 0.5)
"""What the clients' mean is in each round, whatever they were sent."""


def fedavgm(x: float, means: Iterable[float], rate: float, beta: float) -> list[float]:
    values, velocity = [], 0.0
    for mean in means:
        velocity = beta * velocity + (mean - x)
        x += rate * velocity
        values.append(x)
    return values


def adaptive(x: float, means: Iterable[float], rate: float, b1: float, b2: float, tau: float, yogi: bool) -> list:
    values, m, v = [], 0.0, tau * tau
    for mean in means:
        delta = mean - x
        m = b1 * m + (1 - b1) * delta
        if yogi:
            v = v - (1 - b2) * delta * delta * math.copysign(1, v - delta * delta)
        else:
            v = b2 * v + (1 - b2) * delta * delta
        x += rate * m / (math.sqrt(v) + tau)
        values.append(x)
    return values


def trained(settings: ServerSettings, means: Iterable[float], start: float = 1.0, dtype=torch.float64) -> list[float]:
    """Return the server's value of A after each round, two clients' mean being as given."""
    algorithm = make_algorithm("fedsa", {})
    state = algorithm.init({A: torch.tensor([[start]], dtype=dtype), B: torch.zeros(1, 1)})
    server = Server(algorithm, state, ["c0", "c1"], seed=0, steps=make_chain(StepSettings(server=settings)))
    values = []
    for round, mean in enumerate(means, start=1):
        server.begin_round(round)
        sent = [Update(f"c{n}", round, 1, {A: torch.tensor([[mean + offset]])}) for n, offset in ((0, -1.0), (1, 1.0))]
        server.end_round(round, sent)
        values.append(float(server.state.tensors[A]))
        assert server.state.tensors[A].dtype == dtype
        assert {slot.dtype for slot in server.state.slots.values()} <= {dtype}
        assert server.state.versions == {A: round, B: 0}
    return values


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "none"}, list(MEANS)),
        ({"optimizer": "fedavgm"}, fedavgm(1.0, MEANS, 1.0, 0.9)),
        ({"optimizer": "fedavgm", "momentum": 0.0}, list(MEANS)),
        ({"optimizer": "fedavgm", "learning_rate": 0.5, "momentum": 0.7}, fedavgm(1.0, MEANS, 0.5, 0.7)),
        ({"optimizer": "fedadam"}, adaptive(1.0, MEANS, 0.01, 0.9, 0.99, 1e-3, False)),
        ({"optimizer": "fedyogi"}, adaptive(1.0, MEANS, 0.01, 0.9, 0.99, 1e-3, True)),
        (
            {"optimizer": "fedadam", "learning_rate": 1.0, "beta1": 0.5, "beta2": 0.6, "tau": 0.1},
            adaptive(1.0, MEANS, 1.0, 0.5, 0.6, 0.1, False),
        ),
        (
            {"optimizer": "fedyogi", "learning_rate": 1.0, "beta1": 0.5, "beta2": 0.6, "tau": 0.1},
            adaptive(1.0, MEANS, 1.0, 0.5, 0.6, 0.1, True),
        ),
    ],
    ids=str,
)
def test_the_papers_formulas(settings: dict[str, Any], expected: list[float]) -> None:
    assert trained(server_settings(settings), MEANS) == pytest.approx(expected, rel=1e-12)
    assert trained(server_settings(settings), MEANS, dtype=torch.float32) == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    """FedAvgM: 1, then m = 2, x = 3; then m = 0.9·2 − 4 = −2.2, x = 0.8."""
    assert trained(FedAvgMSettings(), (3.0, -1.0)) == pytest.approx([3.0, 0.8])


def test_the_three_differ() -> None:
    names = ("fedavgm", "fedadam", "fedyogi")
    values = {name: tuple(trained(server_settings({"optimizer": name}), MEANS)) for name in names}
    assert len(set(values.values())) == 3


def test_where_no_update_arrives_nothing_moves() -> None:
    algorithm = make_algorithm("fedsa", {})
    state = algorithm.init({A: torch.zeros(2)})
    server = Server(algorithm, state, ["c0"], seed=0, steps=make_chain(StepSettings(server=FedAvgMSettings())))
    server.begin_round(1)
    server.end_round(1, [Update("c0", 1, 1, {A: torch.ones(2)})])
    before = server.state
    server.begin_round(2)
    server.end_round(2, [])
    assert server.state.tensors[A].tolist() == before.tensors[A].tolist() == [1.0, 1.0]
    assert {name: slot.tolist() for name, slot in server.state.slots.items()} == {f"m|{A}": [1.0, 1.0]}


def test_a_tensor_that_is_not_sent_rests_and_its_moments_with_it() -> None:
    algorithm = Alternating()
    state = algorithm.init({A: torch.zeros(1, 1), B: torch.zeros(1, 1)})
    server = Server(algorithm, state, ["c0"], seed=0, steps=make_chain(StepSettings(server=FedAvgMSettings())))
    for round, key in enumerate((A, B, A), start=1):
        server.begin_round(round)
        server.end_round(round, [Update("c0", round, 1, {key: torch.ones(1, 1)})])
        if round == 1:
            assert set(server.state.slots) == {f"m|{A}"}
    # A: m = 1, x = 1; rests; m = 0.9·1 + 0, x = 1.9
    assert float(server.state.tensors[A]) == pytest.approx(1.9)
    assert float(server.state.tensors[B]) == 1.0


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"momentum": 0.5}, "server: `momentum` does not go with optimizer = 'none'; it goes with fedavgm"),
        (
            {"optimizer": "fedadam", "momentum": 0.5},
            "server: `momentum` does not go with optimizer = 'fedadam'; it goes with fedavgm",
        ),
        (
            {"optimizer": "fedavgm", "beta1": 0.5, "tau": 1.0},
            "`tau` does not go with optimizer = 'fedavgm'; it goes with fedadam, fedyogi",
        ),
        ({"optimizer": "fedavg"}, "server: optimizer = 'fedavg': did you mean 'fedavgm'?"),
        ({"optimizer": "fedyogi", "beta2": 1.0}, "server.beta2: input should be less than 1"),
        ({"optimizer": 3}, "server: optimizer = 3: known: fedadam, fedavgm, fedyogi, none"),
        ({"optimiser": "fedyogi"}, "did you mean 'optimizer'?"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(tiny_data: dict[str, Any], server: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**tiny_data, "server": server}, checks=[check_algorithm, check_steps])
    assert text in str(caught.value)


def test_defaults_are_written_out_and_read_back(tiny_recipe: Callable[..., Any]) -> None:
    import tomllib

    recipe = tiny_recipe("server.optimizer=fedadam", "server.tau=0.5")
    written = tomllib.loads(dump_recipe(recipe))
    assert written["server"] == {
        "optimizer": "fedadam",
        "learning_rate": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
        "tau": 0.5,
    }
    assert parse_recipe(written) == recipe


@final
@dataclass(frozen=True, kw_only=True)
class FoldingMean(Algorithm):
    """Adds to the base, and needs no more than the mean."""

    source: ClassVar[str] = "a test"
    folds: ClassVar[bool] = True

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED


@final
@dataclass(frozen=True, kw_only=True)
class Own(Algorithm):
    """Aggregates in its own way."""

    source: ClassVar[str] = "a test"

    def plan(self, key: Key, round: int) -> Plan:
        return SHARED

    def combine(self, state: ServerState, mean: State, round: int) -> ServerState:
        return state


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fedsa", None),
        ("fedit", None),
        ("ffa", None),
        ("local", "it sends nothing"),
        (f"{__name__}:FoldingMean", "its server adds to the frozen weights"),
        (f"{__name__}:Own", "its server computes other values than the mean of what is sent"),
        ("support.methods:Median", "its server needs each client's update, not their mean"),
        ("support.methods:Alternating", None),
    ],
)
def test_methods_that_do_not_average_in_place_are_refused(name: str, reason: str | None) -> None:
    assert check_steps({"algorithm": name}) == []
    assert check_steps({"algorithm": name, "server": {"optimizer": "none"}}) == []
    mistakes = check_steps({"algorithm": name, "server": {"optimizer": "fedadam"}})
    if reason is None:
        assert mistakes == []
    else:
        (mistake,) = mistakes
        assert mistake.where == "server.optimizer"
        assert mistake.what.startswith(f"fedadam does not go with {name}: {reason}")


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam", "fedyogi"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    optimizer: str, tiny_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_run("algorithm=fedit", f"server.optimizer={optimizer}", "rounds=3")
    plain = tiny_run("algorithm=fedit", "rounds=3")
    assert whole.summary["server_optimizer"] == optimizer
    state, other = load_state(whole.folder.server_states, 3), load_state(plain.folder.server_states, 3)
    assert state.slots
    assert not other.slots
    assert any(not torch.equal(state.tensors[key], other.tensors[key]) for key in state.tensors)

    end_round = Server.end_round

    def dies_in_round_2(self: Server, round: int, updates: Any) -> Any:
        if round == 2:
            raise KeyboardInterrupt
        return end_round(self, round, updates)

    path = tmp_path / "run"
    with RunFolder.create(path, dump_recipe(whole.federation.recipe)).locked() as folder:
        monkeypatch.setattr(Server, "end_round", dies_in_round_2)
        with pytest.raises(KeyboardInterrupt):
            simulator.simulate(whole.federation, folder)
    monkeypatch.setattr(Server, "end_round", end_round)
    with RunFolder.open(path, write=True).locked() as folder:
        simulator.simulate(whole.federation, folder)
    files = sorted(file.relative_to(path) for file in path.rglob("*.safetensors"))
    assert files == sorted(file.relative_to(whole.folder.path) for file in whole.folder.path.rglob("*.safetensors"))
    for file in files:
        assert (path / file).read_bytes() == (whole.folder.path / file).read_bytes()
    shutil.rmtree(path)
