"""What an update counts that comes late, and which methods let rounds overlap."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsa.algorithms import algorithm_names, make_algorithm
from fedsa.errors import ConfigError
from fedsa.recipe import parse_recipe
from fedsa.server import Server, load_state, save_state
from fedsa.steps import CHECKS, Staleness, make_chain
from fedsa.steps.chain import Chain
from fedsa.steps.norm_bound import NormBound
from fedsa.testing import check_step
from fedsa.types import Factor, Key, Update

A = Key("layer", Factor.A)
FITTING = {"alora", "fed_sb", "feddpa", "fedit", "fedsa", "ffa", "potara", "ravan", "sfed"}


def server_of(*clients: str, exponent: float = 0.5, most: int = 3, start: float = 0.0, **options) -> Server:
    algorithm = make_algorithm("fedsa", {})
    steps = options.pop("steps", Chain((Staleness(exponent, most),)))
    return Server(algorithm, algorithm.init({A: torch.tensor([start])}), clients, seed=0, steps=steps, **options)


def update(client: str, round: int, value: float, examples: int = 1) -> Update:
    return Update(client, round, examples, {A: torch.tensor([value])}, base_version=round - 1)


def test_it_obeys_the_laws_of_steps() -> None:
    check_step(Staleness(0.5, 3))


@pytest.mark.parametrize(("exponent", "staleness", "weight"), [(0.5, 0, 1.0), (0.5, 3, 0.5), (1.0, 3, 0.25), (0, 7, 1)])
def test_the_weight_of_an_update_that_is_late(exponent: float, staleness: int, weight: float) -> None:
    assert Staleness(exponent, 9).weight(staleness) == weight


def test_what_a_late_client_learned_is_added_to_the_present_value_and_counts_less() -> None:
    """The value goes 1 → 3 while the slow client goes from 1 to 2: it has learned +1, and counts (1+1)^-1 of it."""
    server = server_of("fast", "slow", exponent=1.0, start=1.0)
    server.begin_round(1)
    record = server.end_round(1, [update("fast", 1, 3.0)])
    assert (record.clients, record.finished, record.staleness) == (("fast", "slow"), ("fast",), {"fast": 0})
    assert list(server.begin_round(2, {"slow": 1})) == ["fast"], "who still trains is not asked again"
    record = server.end_round(2, [update("fast", 2, 5.0, examples=3), update("slow", 1, 2.0, examples=1)])
    assert (record.clients, record.finished, record.staleness) == (("fast",), ("fast", "slow"), {"fast": 0, "slow": 1})
    assert float(server.state.tensors[A]) == pytest.approx((3 * 5.0 + 1 * (3.0 + 0.5 * 1.0)) / 4)
    assert server.client_versions == {"fast": 1, "slow": 0}, "the slow one has not received what the others made"


def test_one_update_alone_moves_the_value_by_its_part() -> None:
    """A weight in a mean of one would be lost: it counts for the way, not for the share."""
    server = server_of("a", "b", exponent=1.0)
    server.begin_round(1)
    server.end_round(1, [update("a", 1, 4.0)])
    server.begin_round(2, {"b": 1})
    server.end_round(2, [update("b", 1, 2.0)])
    assert float(server.state.tensors[A]) == 4.0 + 0.5 * 2.0


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-4, 4, width=32)), min_size=1, max_size=4), st.floats(0, 3))
def test_an_update_in_time_is_left_as_it_is_bit_for_bit(sent: list[tuple[int, float]], exponent: float) -> None:
    clients = [f"c{number}" for number in range(len(sent))]
    updates = [update(client, 1, value, count) for client, (count, value) in zip(clients, sent, strict=True)]
    servers = [server_of(*clients, exponent=exponent), server_of(*clients, steps=Chain())]
    for server in servers:
        server.begin_round(1)
        server.end_round(1, updates)
    one, two = (server.state.tensors[A] for server in servers)
    assert one.numpy().tobytes() == two.numpy().tobytes()


def test_an_update_that_is_too_late_does_not_count_and_ends_no_round() -> None:
    server = server_of("fast", "slow", most=1)
    server.begin_round(1)
    server.end_round(1, [update("fast", 1, 1.0)])
    for round in (2, 3):
        server.begin_round(round, {"slow": 1})
        late = [update("slow", 1, 99.0)] if round == 3 else []
        record = server.end_round(round, [update("fast", round, 1.0), *late])
    assert float(server.state.tensors[A]) == 1.0
    assert record.finished == ("fast",)
    assert record.rejected == {"slow": "update of client 'slow' for round 1: it comes 2 rounds late, 1 count"}
    assert server.client_versions == {"fast": 2}


def test_an_update_counts_once() -> None:
    server = server_of("fast", "slow")
    server.begin_round(1)
    server.end_round(1, [update("fast", 1, 1.0)])
    server.begin_round(2, {"slow": 1})
    server.end_round(2, [update("slow", 1, 1.0)])
    server.begin_round(3, {"fast": 2})
    with pytest.raises(Exception, match="it is for another round than the open one, 3"):
        server.end_round(3, [update("slow", 1, 1.0)])


def test_the_server_keeps_what_clients_began_with_as_long_as_one_may_come() -> None:
    """It is saved with the state, so a server that goes on computes the same."""
    server = server_of("fast", "slow", most=2, start=5.0)
    kept = []
    for round in (1, 2, 3):
        server.begin_round(round, {"slow": 1} if round > 1 else {})
        server.end_round(round, [update("fast", round, float(round))])
        kept.append({name: float(value) for name, value in server.state.slots.items()})
    assert kept == [{f"base|0|{A}": 5.0}, {f"base|0|{A}": 5.0}, {}]


class OneState:
    """Keeps one state of a server."""

    def save_server(self, *state) -> None:
        self.state = state

    def load_server(self, round: int):
        _, tensors, versions, _, slots, about = self.state
        return tensors, versions, slots, about


def test_a_server_that_goes_on_has_the_bases() -> None:
    values = []
    for interrupted in (False, True):
        server = server_of("fast", "slow", start=5.0)
        server.begin_round(1)
        server.end_round(1, [update("fast", 1, 1.0)])
        if interrupted:
            store = OneState()
            save_state(store, 1, server.state, server.client_versions)
            server = server_of("fast", "slow", client_versions=server.client_versions)
            server.state = load_state(store, 1)
        server.begin_round(2, {"slow": 1})
        server.end_round(2, [update("slow", 1, 4.0)])
        values.append(float(server.state.tensors[A]))
    assert values[0] == values[1] == pytest.approx(1.0 + 2**-0.5 * (4.0 - 5.0))


def test_a_bound_holds_for_what_a_client_learned_not_for_how_far_the_others_have_gone() -> None:
    server = server_of("fast", "slow", steps=Chain((NormBound(1.0), Staleness(0.0, 9))))
    server.begin_round(1)
    server.end_round(1, [update("fast", 1, 1.0)])
    server.begin_round(2, {"slow": 1})
    server.end_round(2, [update("slow", 1, 0.5)])
    assert float(server.state.tensors[A]) == 1.5, "it has gone 0.5, which is within the bound"


def test_what_came_in_bf16_is_compared_to_what_went_in_bf16() -> None:
    """A client that learns nothing changes nothing, though the server's value is none of bf16's."""
    overlap = {"kind": "buffered", "buffer": 1}
    steps = make_chain(parse_recipe(recipe_with("fedsa", wire_dtype="bf16", overlap=overlap)).steps)
    server = server_of("fast", "slow", steps=steps)
    value = torch.tensor([1.0], dtype=torch.bfloat16)
    third = torch.tensor([1 / 3], dtype=torch.bfloat16)
    server.begin_round(1)
    server.end_round(1, [Update("fast", 1, 1, {A: third}), Update("slow", 1, 2, {A: value})])
    server.begin_round(2)
    server.end_round(2, [Update("fast", 2, 1, {A: value})])
    before = float(server.state.tensors[A])
    received = server.payload("fast", 2)  # of the round before
    server.begin_round(3, {"slow": 2})
    base = torch.tensor([(1 * float(third) + 2 * 1.0) / 3]).to(torch.bfloat16)
    server.end_round(3, [Update("slow", 2, 1, {A: base})])
    assert received.tensors[A].dtype == torch.bfloat16
    assert float(server.state.tensors[A]) == before


def recipe_with(algorithm: str, **settings) -> dict:
    options = {"share_head": False} if algorithm == "local" else {}
    return {
        "rounds": 3,
        "algorithm": algorithm,
        "model": {"path": "some/model"},
        "data": {"path": "rows.csv", "partition": {"kind": "iid", "clients": 2}},
        **options,
        **settings,
    }


@pytest.mark.parametrize("name", algorithm_names())
def test_rounds_of_a_method_overlap_where_its_mean_is_the_new_value(name: str) -> None:
    reason = Staleness(0.5, 3).refusal(make_algorithm(name, {}))
    assert (reason is None) == (name in FITTING), reason
    if reason is not None:
        with pytest.raises(ConfigError, match="overlap does not go with") as told:
            parse_recipe(recipe_with(name, overlap={"kind": "buffered", "buffer": 1}), checks=CHECKS)
        assert "overlap.kind" in str(told.value)
        assert reason in str(told.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flora", "its server needs each client's update, not their mean"),
        ("local", "it sends nothing"),
        ("fedsvd", "its server computes other values than the mean of what is sent"),
        ("rolora", "what its clients send is not the same in all rounds, so a late update fits none but its own"),
        ("frlora", "its server adds to the frozen weights, so a sent tensor does not start from the previous mean"),
    ],
)
def test_a_refusal_says_why(name: str, reason: str) -> None:
    assert Staleness(0.5, 3).refusal(make_algorithm(name, {})) == reason


def test_the_weight_is_a_number_however_late() -> None:
    assert math.isfinite(Staleness(3.0, 10**6).weight(10**6))
