"""Partial pooling: its limits are FedSA and FedIT to the byte, and λ is what the variances are."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsa.adapters.means import weighted_mean
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.algorithms.partial_pooling import PartialPooling
from fedsa.errors import UserError
from fedsa.secure.fixed_point import FixedPoint, added, fixed_point_for
from fedsa.testing.world import Case, World
from fedsa.types import Factor, Key, State, Update
from support.tiny_rows import write_rows
from support.tiny_runs import states_of

A, B = Key("layer", Factor.A), Key("layer", Factor.B)
HEAD = Key("classifier.weight", Factor.HEAD)
ROUNDS = (frozenset({0, 1, 2, 3}), frozenset({1, 3}), frozenset({0}), frozenset({0, 2, 3}), frozenset({2}))

LIMITS = {
    "no pooling is FedSA": (PartialPooling(own_share=1.0, pool_columns=1.0), make_algorithm("fedsa", {})),
    "whatever the columns": (PartialPooling(own_share=1.0), make_algorithm("fedsa", {})),
    "complete pooling is FedIT with a local head": (
        PartialPooling(own_share=0.0, pool_columns=1.0, pool_head=False),
        make_algorithm("fedit", {}, share_head=False),
    ),
    "with the head it is FedIT": (PartialPooling(own_share=0.0, pool_columns=1.0), make_algorithm("fedit", {})),
    "and so it is with share_head": (
        PartialPooling(own_share=0.0, pool_columns=1.0, share_head=True),
        make_algorithm("fedit", {}),
    ),
}
either_limit = pytest.mark.parametrize(("pooling", "limit"), LIMITS.values(), ids=LIMITS)


def as_bytes(tensors: State) -> dict[Key, bytes]:
    return {key: value.contiguous().numpy().tobytes() for key, value in tensors.items()}


def common_to(world: World) -> State:
    """The server's value of each of the model's tensors that a newcomer would begin with."""
    tensors = world.server.state.tensors
    return {key: tensors.get(key._replace(adapter="common"), tensors[key]) for key in world.algorithm.models(tensors)}


@pytest.mark.parametrize(("variant", "mixed"), [("lora", False), ("lora", True), ("dora", False), ("vera", False)])
@either_limit
def test_a_limit_is_the_other_method_to_the_byte(pooling: Algorithm, limit: Algorithm, variant: str, mixed: bool):
    """Server and clients, who is there in some rounds only, before and after the aggregate."""
    cases = [Case(algorithm, variant, mixed, 3, (5, 1, 8, 2), ROUNDS) for algorithm in (pooling, limit)]
    one, two = (World(case) for case in cases)
    for round, clients in enumerate(cases[0].rounds, start=1):
        for client in clients:
            jobs = [world.job(client, round).tensors for world in (one, two)]
            assert as_bytes(one.algorithm.models(jobs[0])) == as_bytes(jobs[1])
        one.round(round, clients)
        two.round(round, clients)
        if pooling.pool_columns == 1:
            assert as_bytes(common_to(one)) == as_bytes(two.server.state.tensors)
        for client in cases[0].clients:
            mine = one.algorithm.models(one.personal(client, round))
            assert as_bytes(mine) == as_bytes(two.personal(client, round))


@pytest.mark.parametrize("columns", [1, 2])
def test_a_client_keeps_its_share_of_a_movement(columns: int):
    """The next value is what training left, less (1 - λ) times the movement's distance from the mean one."""
    share, rows = 0.3, (1, 3)
    world = World(Case(PartialPooling(own_share=share, pool_columns=columns / 2), "lora", weights=rows))
    key = Key("layer.0", Factor.B)
    for round in (1, 2):
        before = {client: world.job(client, round).tensors[key] for client in world.case.clients}
        world.round(round, world.case.clients)
        ends = {client: world.states.load_client(client, round).tensors[key] for client in world.case.clients}
        moved = {client: (ends[client] - before[client]).double() for client in ends}
        mean = sum(weight * each for weight, each in zip(rows, moved.values(), strict=True)) / sum(rows)
        for client, end in ends.items():
            expected = end.double() - (1 - share) * (moved[client] - mean)
            expected[:, columns:] = end[:, columns:].double()
            torch.testing.assert_close(world.personal(client, round)[key].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
def test_columns_of_b_that_are_not_pooled_are_each_clients_own(mixed: bool):
    """One of two columns is pooled in full; the other is what the client's own training has left."""
    world = World(Case(PartialPooling(own_share=0.0, pool_columns=0.49), "lora", mixed, 3, (5, 1, 8), ROUNDS[:2]))
    common, key = world.server.state.tensors, Key("layer.0", Factor.B)
    columns = max(1, int(0.49 * common[key].shape[1]))
    assert common[key._replace(adapter="common")].shape[1] == columns < common[key].shape[1]
    for round in (1, 2):
        world.round(round, world.case.clients)
        for client in world.case.clients:
            mine, end = world.personal(client, round)[key], world.states.load_client(client, round).tensors[key]
            now = world.server.state.tensors[key._replace(adapter="common")]
            assert torch.equal(mine[:, :columns], now[:, : mine.shape[1]])
            assert torch.equal(mine[:, columns:], end[:, columns:])


def test_a_run_that_pools_other_columns_is_not_read_as_if_it_pooled_these():
    world = World(Case(PartialPooling(pool_columns=1.0), "lora", weights=(4, 4)))
    world.round(1, world.case.clients)
    with pytest.raises(UserError, match=r"0\.5 does not fit this run, which pools 2 columns of 2"):
        PartialPooling(pool_columns=0.5).broadcast(world.server.state, "c0", 2, 0)


@pytest.mark.parametrize(("begun", "now"), [("difference", 0.25), (0.25, "posterior")])
def test_a_run_whose_share_is_estimated_is_not_read_as_if_it_were_given(begun: Any, now: Any):
    world = World(Case(PartialPooling(own_share=begun), "lora", weights=(4, 4)))
    world.round(1, world.case.clients)
    how = "given" if isinstance(begun, float) else "estimated"
    with pytest.raises(UserError, match=f"own_share: {now!r} does not fit this run, whose share is {how}: give it"):
        PartialPooling(own_share=now).broadcast(world.server.state, "c0", 2, 0)


def test_shares_may_be_given_by_layer():
    method = make_algorithm("partial_pooling", {"own_share": {"layer": 0.25, "layer.1": 1.0}, "pool_columns": 1.0})
    world = World(Case(method, "lora", weights=(1, 3)))
    world.round(1, world.case.clients)
    given = method.own_shares(world.server.state)[1]
    assert {key.module: values for key, values in given.items() if key.factor is Factor.B} == {
        "layer.0": [0.25],
        "layer.1": [1.0],
    }
    assert given[next(key for key in given if key.factor.side.name == "HEAD")] == [0.0]
    with pytest.raises(UserError, match="has 'layer7' in its name; did you mean 'layer"):
        PartialPooling(own_share={"layer7": 0.5}).init(world.initial)
    for client in world.case.clients:
        end = world.states.load_client(client, 1).tensors[Key("layer.1", Factor.B)]
        assert torch.equal(world.personal(client, 1)[Key("layer.1", Factor.B)], end), "it is all the client's own"


@pytest.mark.parametrize("columns", [1, 2])
def test_a_client_that_was_away_keeps_its_share_of_how_it_differed_then(columns: int):
    method = PartialPooling(own_share="difference", estimate_every=1, pool_columns=columns / 2)
    world = World(Case(method, "lora", weights=(4, 4, 4), seed=1))
    key, common = Key("layer.0", Factor.B), []
    for round, clients in enumerate([["c0", "c1", "c2"], ["c1", "c2"], ["c1", "c2"]], start=1):
        world.round(round, clients)
        common.append(world.server.state.tensors[key._replace(adapter="common")])
    slots, given = dict(world.server.state.slots), (0.25, 0.5, 0.75)
    for round, share in enumerate(given, start=1):
        slots[f"own_share|{round:06d}"] = torch.full_like(slots[f"own_share|{round:06d}"], share)
    state = dataclasses.replace(world.server.state, slots=slots)
    end, then = world.states.load_client("c0", 1).tensors[key], common[0]
    mine = world.personal("c0", 3, state)[key]
    own = mine[:, :columns] - state.tensors[key._replace(adapter="common")]
    torch.testing.assert_close(own, 0.25 * (end[:, :columns] - then), rtol=1e-4, atol=1e-6)
    assert torch.equal(mine[:, columns:], end[:, columns:])
    assert not torch.equal(then, common[1])


def test_the_server_forgets_what_was_common_long_ago():
    world = World(Case(PartialPooling(memory=2), "lora", weights=(4, 4, 4)))
    for round in range(1, 6):
        world.round(round, ["c0", "c1"] if round > 1 else world.case.clients)
        kept = {int(name.split("|")[1]) for name in world.server.state.slots if name.startswith("common_then")}
        assert kept == {round, round - 1} - {0}
    key = Key("layer.0", Factor.B)
    then = world.server.payload("c2", 6).tensors[key._replace(adapter="common_then")]
    assert torch.equal(then, world.server.state.slots[f"common_then|000004|{key._replace(adapter='common_then')}"])


def test_a_newcomer_begins_with_what_is_common():
    world = World(Case(PartialPooling(), "lora", weights=(2, 3, 4)))
    world.round(1, ["c0", "c1"])
    tensors = world.personal("c2", 1)
    for key in world.algorithm.models(tensors):
        common = key._replace(adapter="common")
        if common in tensors:
            value = world.server.state.tensors[common]
            assert torch.equal(tensors[key][:, : value.shape[1]], value)
            assert not torch.equal(value, world.initial[key][:, : value.shape[1]])
            assert torch.equal(tensors[key][:, value.shape[1] :], world.initial[key][:, value.shape[1] :])


def test_an_own_part_draws_the_common_one_and_so_does_the_warm_up_of_a_head():
    """In the first round the warm-up is sent; later it is an own part, of which `anchor` goes into what is common."""
    method = PartialPooling(anchor=0.2)
    common = method.whole({A: torch.zeros(2, 3), HEAD: torch.ones(2, 2)})
    warmed = {**common, HEAD: common[HEAD] + 5}
    trained = {**warmed, HEAD: warmed[HEAD] + 0.25}

    def sent(round: int, halves: list[State]) -> float:
        return float(method.outgoing(warmed, trained, halves, round)[HEAD._replace(adapter="common")][0, 0])

    assert [sent(1, []), sent(2, [])] == pytest.approx([1 + 5 + 0.25, 1 + 0.2 * 5 + 0.25])
    assert sent(6, [trained, trained]) == 1 + 0.25, "what the server takes for a movement is one"


@pytest.mark.parametrize(("anchor", "end"), [(0.0, 2.0), (0.2, 4.0)])
def test_what_is_common_comes_to_be_the_mean_of_clients_that_stay_where_they_are(anchor: float, end: float):
    """It was the mean of the first two clients; movements tell nothing of two more, which do not move at all."""
    method, place = PartialPooling(own_share=0.5, anchor=anchor), HEAD._replace(adapter="common")
    clients = [torch.full((2, 2), value) for value in (1.0, 3.0, 5.0, 7.0)]
    state = method.init({HEAD: torch.full((2, 2), 2.0)})
    for round in range(2, 40):
        stays = [{**state.tensors, HEAD: client} for client in clients]
        sent = torch.stack([method.outgoing(each, each, (), round)[place] for each in stays])
        state = method.combine_weighted(state, {place: sent.double().mean(0)}, [1] * 4, round)
    assert float(state.tensors[place].mean()) == pytest.approx(end, abs=0.01)


def test_between_rounds_that_train_a_it_is_frozen_and_not_sent():
    world = World(Case(PartialPooling(train_a_every=3), "lora", weights=(4, 4, 4)))
    key, moved, sent = Key("layer.0", Factor.A), [], []
    for round in range(1, 5):
        before = world.server.state.tensors[key]
        sent.append(sorted({name.factor.side.name for name in world.server.payload("c0", round).tensors}))
        world.round(round, world.case.clients)
        ends = [world.states.load_client(client, round).tensors[key] for client in world.case.clients]
        moved.append([not torch.equal(each, before) for each in (world.server.state.tensors[key], *ends)])
    assert moved == [[True] * 4, [False] * 4, [False] * 4, [True] * 4]
    assert ["A" in sides for sides in sent] == [False, True, False, False], "it is told once after each change"
    assert [PartialPooling(train_a_every=3).plan(A, round).sent for round in (1, 2, 3, 4)] == [True, False, False, True]


# -- the estimate -----------------------------------------------------------------------------------------------------


def estimated(
    common: float, own: float, noise: float, *, method: PartialPooling | None = None, seed: int = 0, clients: int = 12
) -> dict[Key, list[float]]:
    """λ after a round in which clients' halves have moved by given amounts (norms).

    Args:
        common: of the movement that all have in common.
        own: of each client's own.
        noise: of each half's, besides.
        method: the method.
        seed: of the directions.
        clients: their number.
    """
    method = method or PartialPooling(own_share="difference")
    random = torch.Generator().manual_seed(seed)

    def drawn(size: float) -> dict[Key, torch.Tensor]:
        shapes = {B: (30, 20), HEAD: (4, 600)}
        return {key: size * torch.randn(shape, generator=random) / 600**0.5 for key, shape in shapes.items()}

    initial = {A: torch.zeros(20, 10), **drawn(1.0)}
    state, shared = method.init(initial), drawn(common)
    updates = []
    for number in range(clients):
        start = method.absorb(state.tensors, {}, state.tensors)
        mine = drawn(own)
        halves = [
            {**start, **{key: start[key] + shared[key] + mine[key] + noisy for key, noisy in drawn(noise).items()}}
            for _ in range(2)
        ]
        end = {key: (halves[0][key] + halves[1][key]) / 2 for key in halves[0]}
        outgoing = method.outgoing(start, end, halves, 1)
        sent = {key: outgoing[key] for key in outgoing if method.plan(key, 1).sent}
        updates.append((Update(f"c{number:02d}", 1, 1 + number % 3, sent), 1 + number % 3))
    return method.own_shares(method.aggregate(state, updates, 1))[1]


def lowest_and_highest(shares: Iterable[dict[Key, list[float]]]) -> tuple[float, float]:
    values = [value for share in shares for value in itertools.chain(*share.values())]
    return min(values), max(values)


SEEDS = range(10)


def test_each_tensor_has_a_share_and_each_row_of_the_head():
    shares = estimated(1.0, 1.0, 1.0)
    assert {key: len(values) for key, values in shares.items()} == {B: 1, HEAD: 4}


def test_pure_noise_is_shared_in_full():
    shares = [estimated(0.0, 0.0, 1.0, seed=seed) for seed in SEEDS]
    values = list(itertools.chain(*(itertools.chain(*share.values()) for share in shares)))
    assert np.mean(np.array(values) == 0) > 0.9  # it is a test of two standard errors
    assert np.median(values) == 0


def test_pure_differences_are_kept_in_full():
    lowest, highest = lowest_and_highest(estimated(0.0, 1.0, 0.1, seed=seed) for seed in SEEDS)
    assert lowest > 0.9
    assert highest <= 1


def test_what_is_common_is_shared_however_noisy():
    assert lowest_and_highest(estimated(1.0, 0.0, 1.0, seed=seed) for seed in SEEDS)[1] < 0.1


def test_differences_are_told_from_noise_and_from_what_is_common():
    """λ = 1 - ‖common‖² / (‖common‖² + ‖own‖²), whatever the noise."""
    for common, own, noise in ((1.0, 1.0, 0.5), (1.0, 2.0, 1.0), (2.0, 1.0, 1.0)):
        shares = [estimated(common, own, noise, seed=seed)[B][0] for seed in SEEDS]
        assert np.mean(shares) == pytest.approx(own**2 / (common**2 + own**2), abs=0.05)


def test_the_posterior_shrinks_noise_too():
    """λ = ‖own‖² / (‖own‖² + ‖noise‖² / 2): the mean of two halves has half of the noise of one."""
    method = PartialPooling(own_share="posterior")
    for common, own, noise in ((0.0, 1.0, 1.0), (3.0, 1.0, 1.0), (1.0, 1.0, 2.0)):
        shares = [estimated(common, own, noise, method=method, seed=seed)[B][0] for seed in SEEDS]
        assert np.mean(shares) == pytest.approx(own**2 / (own**2 + noise**2 / 2), abs=0.07)


def test_a_round_of_one_client_leaves_the_share_as_it_was():
    world = World(Case(PartialPooling(own_share="difference", estimate_every=1), "lora", weights=(4, 4)))
    world.round(1, world.case.clients)
    shares = world.algorithm.own_shares(world.server.state)
    world.round(2, ["c0"])
    assert world.algorithm.own_shares(world.server.state) == shares


def test_what_a_client_learns_of_b_leaves_it_unless_all_of_it_is_its_own():
    for method in (PartialPooling(), PartialPooling(own_share=0.9)):
        assert all(method.leaves(key, 1) for key in (A, B, HEAD))
    assert [PartialPooling(own_share=1.0).leaves(key, 1) for key in (A, B, HEAD)] == [True, False, False]
    assert not PartialPooling(pool_head=False).leaves(HEAD, 1)
    assert [make_algorithm("fedsa", {}).leaves(key, 1) for key in (A, B)] == [True, False]


def test_ranks_that_differ_need_a_given_share():
    assert "set algorithm_options.own_share to a number" in str(
        PartialPooling(own_share="difference").refusal("lora", mixed_ranks=True)
    )
    assert PartialPooling(own_share=0.5).refusal("lora", mixed_ranks=True) is None
    assert "has no A side and B side" in str(PartialPooling().refusal("ia3"))


def shares_after(
    signs: Iterable[int], size: float, point: FixedPoint | None, state: ServerState | None = None, round: int = 1
) -> tuple[list[float], ServerState]:
    """λ of B after a round in which each client's halves move one number of it, both alike or one against the other."""
    algorithm, clients = (
        PartialPooling(own_share="difference", estimate_every=1, pool_columns=1.0),
        list(enumerate(signs)),
    )
    state = state or algorithm.init({A: torch.zeros(2, 3), B: torch.zeros(2, 2)})
    sent: list[State] = []
    for place, sign in clients:
        start = algorithm.absorb(state.tensors, {}, state.tensors)
        start = {**start, B: start[B._replace(adapter="common")]}
        one = torch.zeros(4).index_fill(0, torch.tensor([place]), size).view(2, 2)
        halves = [{**start, B: start[B] + half} for half in (one, sign * one)]
        kept = {**start, B: (halves[0][B] + halves[1][B]) / 2}
        outgoing = algorithm.outgoing(start, kept, halves, round)
        sent.append({key: value for key, value in outgoing.items() if algorithm.plan(key, round).sent})
    if point is None:
        mean = weighted_mean((tensors, 1) for tensors in sent)
    else:
        mean = point.decode_mean(added(point.encode(tensors, 1, "a client") for tensors in sent), len(sent))
    after = algorithm.combine_weighted(state, mean, [1] * len(sent), round)
    return algorithm.own_shares(after)[round][B], after


@pytest.mark.parametrize("size", [0.02, 2e-3, 3e-4])
@pytest.mark.parametrize("point", [None, fixed_point_for(2600)], ids=["plain", "secure"])
def test_what_cannot_be_told_from_noise_is_not_told_where_sums_round_either(size: float, point: FixedPoint | None):
    """Three halves that agree and one that does not: the mean agreement is one standard error."""
    assert shares_after([1, 1, 1, -1], size, point)[0] == [0.0]
    if size == 0.02:
        assert shares_after([1, 1, 1, 1], size, point)[0] == pytest.approx([1.0], abs=1e-3)


def test_where_nothing_can_be_told_the_last_share_holds():
    told, state = shares_after([1, 1, 1, 1], 0.02, None)
    again, _ = shares_after([1, 1, 1, -1], 0.02, None, state, 2)
    assert again == told == pytest.approx([1.0])


# -- whole runs -------------------------------------------------------------------------------------------------------

FIVE = ("data.partition={kind='dirichlet', clients=5, dirichlet_alpha=0.5}", "fraction_train=0.4", "rounds=4")


@pytest.mark.run
@pytest.mark.parametrize("known", ["false", "true"], ids=["", "with class priors"])
@pytest.mark.parametrize("cohort", [(), ("training.trainer=cohort", "training.cohort_size=3")], ids=["alone", "cohort"])
def test_limits_of_whole_runs_are_the_other_methods_to_the_byte(
    tiny_run: Callable[..., Any], cohort: tuple[str, ...], known: str
):
    for settings, other in (
        (("algorithm_options.own_share=1.0",), ("algorithm=fedsa",)),
        (
            ("algorithm_options.own_share=0.0", "algorithm_options.pool_head=false"),
            ("algorithm=fedit", "share_head=false"),
        ),
    ):
        every = "algorithm_options.pool_columns=1.0"
        prior = f"algorithm_options.class_prior={known}"
        pooled = tiny_run(*FIVE, *cohort, "algorithm=partial_pooling", every, prior, *settings)
        limit = tiny_run(*FIVE, *cohort, prior, *other)
        mine = states_of(pooled)
        for name, value in states_of(limit).items():
            whose, _, key = name.partition(" ")
            common = f"{whose} {Key.parse(key)._replace(adapter='common')}"
            expected = mine[common] if whose == "server" and common in mine else mine[name]
            assert expected.numpy().tobytes() == value.numpy().tobytes(), name
        for client, metrics in limit.summary["per_client"].items():
            assert pooled.summary["per_client"][client]["test"] == metrics["test"]


def shares_of(run: Any) -> dict[int, dict[Key, list[float]]]:
    state: ServerState = run.federation.initial_state()
    tensors, versions, slots, about = run.folder.server_states.load_server(run.federation.recipe.rounds)
    state = dataclasses.replace(state, tensors=tensors, versions=versions, slots=slots, groups=about["groups"])
    shares: dict[int, dict[Key, list[float]]] = run.federation.algorithm.own_shares(state)
    return shares


@pytest.mark.run
def test_the_estimate_goes_with_sums_alone(tiny_run: Callable[..., Any]):
    """What secure aggregation shows of the updates is enough."""
    settings = ("algorithm=partial_pooling", "rounds=2", "algorithm_options={own_share='difference', estimate_every=1}")
    plain, secure = (tiny_run(*settings, *more) for more in ((), ("secure_aggregation=true",)))
    for one, two in zip(shares_of(plain)[1].values(), shares_of(secure)[1].values(), strict=True):
        assert one == pytest.approx(two, abs=1e-3)
    assert set(shares_of(plain)) == {1, 2}


@pytest.mark.slow
@pytest.mark.run
@pytest.mark.parametrize("seed", range(3))
def test_controls_on_a_tiny_model(
    tiny_run: Callable[..., Any], tiny_model_without_dropout: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
):
    """Rows shared out by chance: all of B is shared; and nothing of it where each client's B belongs to an own A.

    The model has no dropout, its adapter has: it must not be taken for what a client has learned.
    """
    rows = tmp_path_factory.mktemp("rows") / "rows.csv"
    write_rows(rows, 9600, seed=0)
    by_chance = (
        *(f"model.path={tiny_model_without_dropout}", f"data.path={rows}", "rounds=1", "algorithm=partial_pooling"),
        "algorithm_options={own_share='difference', pool_columns=1.0}",  # from one column of four it is less sure
        *("data.partition={kind='iid', clients=20}", "adapter.r=4", f"seed={seed}"),
        "training={local_steps=40,batch_size=32,optimizer='sgd',learning_rate=1.0,trainer='cohort'}",
    )
    own_a = ("algorithm_options.share_a=false", "adapter.own_initial_a=true")
    one, two = (shares_of(tiny_run(*by_chance, *more))[1] for more in ((), own_a))
    of_b = [[values[0] for key, values in each.items() if key.factor is Factor.B] for each in (one, two)]
    assert [len(values) for values in of_b] == [4, 4]
    assert max(of_b[0]) < 0.15
    assert min(of_b[1]) > 0.85
    assert np.mean([one[key] for key in one if key.factor is Factor.HEAD]) < 0.15
