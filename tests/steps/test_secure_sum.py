"""What secure aggregation can be used with, and what a recipe is told of the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedsa.algorithms import built_in_names, find_algorithm
from fedsa.algorithms.fedit import FedIT
from fedsa.commands.shared.methods import STEPS_ON_SINGLE_UPDATES
from fedsa.commands.shared.methods_shown import single_updates
from fedsa.errors import ConfigError, ProtocolError
from fedsa.recipe import StepSettings, parse_recipe, server_settings
from fedsa.server import Server
from fedsa.steps import CHECKS, Chain, SecureSum, make_chain
from fedsa.steps.base import Step
from fedsa.steps.staleness import Staleness
from fedsa.types import Factor, Key, State, Update

BASE: dict[str, Any] = {
    "rounds": 1,
    "secure_aggregation": True,
    "model": {"path": "a-model"},
    "data": {"path": "rows.csv", "partition": {"kind": "column", "column": "site"}},
}


def mistakes(**more: Any) -> str:
    try:
        parse_recipe({**BASE, **more}, source="a recipe", checks=CHECKS)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"algorithm": "flora"}, "flora: its server needs each client's update, not their mean"),
        ({"algorithm": "local"}, "local: it sends nothing"),
        ({"robust": {"kind": "median"}}, "robust.kind = 'median': it needs single updates"),
        (
            {"robust": {"kind": "norm_bound", "clipping_norm": 1.0}},
            "'norm_bound': it needs single updates",
        ),
        (
            {"overlap": {"kind": "buffered", "buffer": 2}},
            "overlap.kind = 'overlap': rounds that overlap have",
        ),
        ({"algorithm": "hetlora", "adapter": {"ranks": [4, 8]}}, "secure_aggregation does not go with hetlora"),
        ({"algorithm": "fedit", "adapter": {"ranks": [4, 8]}}, "fedit: clients of different ranks have no sum of one"),
    ],
)
def test_what_needs_single_updates_is_refused_with_the_reason(more: dict[str, Any], text: str) -> None:
    assert text in mistakes(**more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"algorithm": "fedit"},
        {"server": {"optimizer": "fedadam", "learning_rate": 0.1}},
        {"wire_dtype": "bf16"},
        {"weighting": "uniform"},
        {"fraction_train": 0.5},
    ],
)
def test_what_needs_sums_alone_can_be_used(more: dict[str, Any]) -> None:
    assert mistakes(**more) == ""


KEY = Key("layer", Factor.A)


def server_of_sums(open_sum: Any, quorum: int | None = None, **more: Any) -> Server:
    steps = make_chain(StepSettings(secure_aggregation=True, **more))
    first = FedIT().init({KEY: torch.zeros(2)})
    return Server(FedIT(), first, ["a", "b", "c"], seed=0, steps=steps, quorum=quorum, open_sum=open_sum)


def updates(*clients: str, dtype: torch.dtype = torch.int64) -> Iterator[Update]:
    for place, client in enumerate(clients, start=1):
        yield Update(client, 1, 10 * place, {KEY: torch.tensor([place, -place], dtype=dtype)})


def test_a_server_of_sums_opens_the_sum_of_those_that_count() -> None:
    seen = []

    def open_sum(round: int, clients: Collection[str], sums: State) -> State:
        seen.append((round, tuple(clients), sums[KEY].tolist()))
        return {KEY: torch.tensor([0.25, 0.5], dtype=torch.float64)}

    server = server_of_sums(open_sum)
    server.begin_round(1)
    record = server.end_round(1, updates("a", "b", "c"))
    assert seen == [(1, ("a", "b", "c"), [6, -6])]
    assert server.state.tensors[KEY].tolist() == [0.25, 0.5]
    assert record.finished == ("a", "b", "c")


def test_a_sum_of_fewer_than_the_quorum_is_not_opened() -> None:
    """A sum that is opened cannot be closed again."""

    def open_sum(round: int, clients: Collection[str], sums: State) -> State:
        raise AssertionError("it was opened")

    server = server_of_sums(open_sum, quorum=3)
    server.begin_round(1)
    with pytest.raises(ProtocolError, match="2 good updates, the quorum is 3"):
        server.end_round(1, updates("a", "b"))


def test_a_server_of_sums_takes_integers_alone() -> None:
    server = server_of_sums(lambda *_: {})
    server.begin_round(1)
    with pytest.raises(ProtocolError, match=r"is of torch.float32, not torch.int64"):
        server.end_round(1, updates("a", dtype=torch.float32))


def test_a_server_optimiser_goes_on_from_the_mean_of_the_sum() -> None:
    """Steps on the mean act after the sum is opened, as a server optimiser does."""
    settings = server_settings({"optimizer": "fedavgm", "learning_rate": 0.5, "momentum": 0.0})
    server = server_of_sums(lambda *_: {KEY: torch.tensor([1.0, 2.0], dtype=torch.float64)}, server=settings)
    server.begin_round(1)
    server.end_round(1, updates("a", "b", "c"))
    assert server.state.tensors[KEY].tolist() == [0.5, 1.0]


def test_an_additive_half_at_the_server_acts_on_the_mean() -> None:
    class Halved(Step):
        setting = "a test"

        def on_server(self, update: Update, weight: int, before: State) -> tuple[Update, int]:
            return replace(update, tensors={key: value / 2 for key, value in update.tensors.items()}), weight

    state = FedIT().init({KEY: torch.zeros(2)})
    mean, _ = Chain((Halved(), SecureSum())).mean_of_sum({KEY: torch.tensor([1.0, 2.0])}, [1], state, 1, 0)
    assert mean[KEY].tolist() == [0.5, 1.0]


def test_the_methods_that_can_be_used_are_the_additive_ones_that_send_something() -> None:
    good = {name for name in built_in_names() if SecureSum().refusal(find_algorithm(name)()) is None}
    assert {"fedsa", "fedit", "ffa", "rolora"} <= good
    assert not {"flora", "fedalt", "local", "clustered"} & good


def kinds_of(step: type[Step]) -> set[type[Step]]:
    """Return the kinds of steps of fedsa's own."""
    below = step.__subclasses__()
    own = {kind for kind in below if kind.__module__.startswith("fedsa.steps.") and kind.__module__ != Step.__module__}
    return own.union(*(kinds_of(kind) for kind in below))


def test_all_steps_that_need_single_updates_are_listed_and_refused() -> None:
    listed = {type(step) for step in STEPS_ON_SINGLE_UPDATES}
    assert {kind for kind in kinds_of(Step) if not kind.additive} | {Staleness} == listed
    assert all(SecureSum().conflict(step) for step in STEPS_ON_SINGLE_UPDATES)
    text = single_updates([{"name": "fedex", "additive": False}, {"name": "fedsa", "additive": True}])
    assert "these methods: fedex; and for these steps: [robust] median, trimmed_mean, norm_bound, poison_score;" in text
