"""What each method's server makes of two clients, against the method's own formula written out with numpy.

Two clients with weights 1 and 3 of one layer of shape (3, 4), rank 2, s = 2.
"""

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, find_algorithm
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.types import Factor, Key, State, Update
from support.tiny_models import adapt, client_tensors

LAYER = "layer"
A, B, HEAD, DELTA = (Key(LAYER, factor) for factor in (Factor.A, Factor.B, Factor.HEAD, Factor.DELTA))
S = 2.0
REST_A, REST_B = A._replace(adapter="rest"), B._replace(adapter="rest")
WEIGHTS = (1, 3)
P = (0.25, 0.75)

_random = np.random.default_rng(0)
A0, B0, DELTA0 = _random.normal(size=(2, 4)), _random.normal(size=(3, 2)), _random.normal(size=(3, 4))
A1, A2 = _random.normal(size=(2, 2, 4))
B1, B2 = _random.normal(size=(2, 3, 2))
HEAD0, HEAD1, HEAD2 = _random.normal(size=(3, 5))
REST = {REST_A: torch.from_numpy(_random.normal(size=(2, 4))), REST_B: torch.zeros(3, 2, dtype=torch.float64)}

MEAN_A, MEAN_B = 0.25 * A1 + 0.75 * A2, 0.25 * B1 + 0.75 * B2
MEAN_UPDATE = S * (0.25 * B1 @ A1 + 0.75 * B2 @ A2)
MEAN_HEAD = 0.25 * HEAD1 + 0.75 * HEAD2


def tensors(**values: np.ndarray) -> State:
    names = {"a": A, "b": B, "head": HEAD, "delta": DELTA}
    return {names[name]: torch.from_numpy(value) for name, value in values.items()}


def state_of(method: Algorithm) -> ServerState:
    initial = tensors(a=A0, b=B0, head=HEAD0)
    if method.folds:
        initial = {**initial, **tensors(delta=DELTA0)}
    return method.init(initial, {LAYER: S})


def updates_of(method: Algorithm, round: int, clients: list[State]) -> list[tuple[Update, int]]:
    return [
        (Update(f"c{place}", round, weight, {key: own[key] for key in own if method.plan(key, round).sent}), weight)
        for place, (own, weight) in enumerate(zip(clients, WEIGHTS, strict=False))
    ]


def after(method: Algorithm, round: int = 1, clients: list[State] | None = None) -> State:
    """Return the server's tensors after a round of the two clients."""
    if clients is None:
        clients = [tensors(a=A1, b=B1, head=HEAD1), tensors(a=A2, b=B2, head=HEAD2)]
    return method.aggregate(state_of(method), updates_of(method, round, clients), round).tensors


def same(tensor: torch.Tensor, expected: np.ndarray) -> bool:
    return bool(np.allclose(tensor.numpy(), expected, rtol=1e-12, atol=1e-12))


def make(name: str, **options: object) -> Algorithm:
    return find_algorithm(name)(**options)


# Of each method that averages in place: what A, B and the head come to in round 1.
AVERAGES = {
    "alora": (A0, MEAN_B, HEAD0),
    "fedit": (MEAN_A, MEAN_B, MEAN_HEAD),
    "fedsa": (MEAN_A, B0, HEAD0),
    "ffa": (A0, MEAN_B, MEAN_HEAD),
    "local": (A0, B0, HEAD0),
    "rolora": (A0, MEAN_B, MEAN_HEAD),
    "sfed": (MEAN_A, B0, HEAD0),
    "feddpa": (MEAN_A, MEAN_B, HEAD0),
    "clustered": (MEAN_A, MEAN_B, HEAD0),
    "pooled": (MEAN_A, MEAN_B, MEAN_HEAD),
}

OTHERS = {
    "fedex",
    "flora",
    "flora_na",
    "frlora",
    "flexlora",
    "fedsvd",
    "lora_fair",
    "hetlora",
    "fedalt",
    "fed_sb",
    "ravan",
}
ELSEWHERE = {"fedtreelora", "partial_pooling", "potara"}
"""Methods with a test file of their own."""


def test_every_method_has_golden_numbers():
    assert set(algorithm_names()) == set(AVERAGES) | OTHERS | ELSEWHERE


@pytest.mark.parametrize("name", AVERAGES)
def test_what_is_averaged(name):
    a, b, head = AVERAGES[name]
    got = after(make(name))
    assert same(got[A], a)
    assert same(got[B], b)
    assert same(got[HEAD], head)


def test_rolora_averages_a_alone_in_even_rounds():
    got = after(make("rolora"), round=2)
    assert same(got[A], MEAN_A)
    assert same(got[B], B0)


def test_feddpa_keeps_the_local_adapter_at_the_client():
    method = make("feddpa")
    plans = {adapter: method.plan(A._replace(adapter=adapter), 1) for adapter in method.adapters}
    assert plans["default"] == (True, True, True)
    assert plans["local"] == (True, False, False)


def test_feddpa_weighs_a_row_by_its_likeness_to_the_clients_own():
    rows, own = torch.tensor([[2.0, 0.0], [0.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    # mean cosines ½, -½ (taken as 0) and √½; the local adapter's share is λ times that, of a whole of 2
    local = 2 * 0.5 * np.array([0.5, 0.0, np.sqrt(0.5)])
    got = make("feddpa").weights(rows, own)
    assert np.allclose(got["local"], local, rtol=1e-6)
    assert np.allclose(got["default"], 2 - local, rtol=1e-6)
    assert np.allclose(make("feddpa", max_weight=1.0).weights(rows, own)["local"], 2 * local, rtol=1e-6)
    assert make("feddpa").references == 5
    assert make("feddpa", mixing="equal").references == 0


def test_sfeds_scale():
    assert make("sfed").scaling(16 / 8, 8, 3) == pytest.approx(16 * np.sqrt(3 / 8), rel=1e-15)


def test_fedex_folds_the_residual():
    got = after(make("fedex"))
    assert same(got[A], MEAN_A)
    assert same(got[DELTA], DELTA0 + MEAN_UPDATE - S * MEAN_B @ MEAN_A)


def test_flora_folds_the_stacked_product_and_begins_anew():
    method = make("flora")
    got = after(method)
    stacked = np.concatenate([0.25 * B1, 0.75 * B2], axis=1) @ np.concatenate([A1, A2])
    assert same(got[DELTA], DELTA0 + S * stacked - S * B0 @ A0)
    assert same(got[A], A0)
    assert same(got[HEAD], MEAN_HEAD)
    mine = method.absorb(tensors(a=A1, b=B1, delta=DELTA0), {DELTA: got[DELTA]}, state_of(method).tensors)
    assert same(mine[A], A0)
    assert same(mine[B], B0)
    assert same(mine[DELTA], got[DELTA].numpy())


def test_flora_takes_clients_of_different_ranks():
    got = after(make("flora"), clients=[tensors(a=A1[:1], b=B1[:, :1]), tensors(a=A2, b=B2)])
    assert same(got[DELTA], DELTA0 + S * (0.25 * B1[:, :1] @ A1[:1] + 0.75 * B2 @ A2) - S * B0 @ A0)


def test_frlora_folds_the_averaged_adapters_change():
    got = after(make("frlora"))
    assert same(got[DELTA], DELTA0 + S * (MEAN_B @ MEAN_A - B0 @ A0))
    assert same(got[B], B0)


def test_flexlora_is_the_truncated_svd_of_the_mean_update():
    got = after(make("flexlora"))
    u, sigma, v = np.linalg.svd(0.25 * B1 @ A1 + 0.75 * B2 @ A2)
    assert same(got[B] @ got[A], (u[:, :2] * sigma[:2]) @ v[:2])
    assert np.allclose(got[A] @ got[A].T, np.eye(2))
    assert same(got[B].norm(dim=0), sigma[:2])


def test_flexlora_takes_clients_of_different_ranks():
    got = after(make("flexlora"), clients=[tensors(a=A1[:1], b=B1[:, :1]), tensors(a=A2[:1], b=B2[:, :1])])
    assert same(got[B] @ got[A], 0.25 * B1[:, :1] @ A1[:1] + 0.75 * B2[:, :1] @ A2[:1])


def test_fed_sb_is_exact_and_is_fedit_on_r():
    middle, left, right = Key(LAYER, Factor.MIDDLE), B1, A1  # B and A, frozen and everybody's
    r0, r1, r2 = np.random.default_rng(1).normal(size=(3, 2, 2))
    clients: list[State] = [
        {middle: torch.from_numpy(r), HEAD: torch.from_numpy(head)} for r, head in ((r1, HEAD1), (r2, HEAD2))
    ]
    got = {}
    for name in ("fed_sb", "fedit"):
        method = make(name)
        state = method.init({middle: torch.from_numpy(r0), **tensors(head=HEAD0)}, {LAYER: S})
        got[name] = method.aggregate(state, updates_of(method, 1, clients), 1).tensors
        assert method.plan(middle, 1) == (True, True, True)
    update = S * left @ got["fed_sb"][middle].numpy() @ right
    assert np.allclose(update, 0.25 * S * left @ r1 @ right + 0.75 * S * left @ r2 @ right, rtol=0, atol=1e-12)
    assert same(got["fed_sb"][HEAD], MEAN_HEAD)
    assert all(torch.equal(got["fed_sb"][key], got["fedit"][key]) for key in (middle, HEAD))


def test_ravan_averages_each_core():
    method = make("ravan")
    cores = [Key(LAYER, Factor.MIDDLE, adapter) for adapter in method.adapters]
    drawn = np.random.default_rng(1).normal(size=(3, 4, 2, 2))
    left, right = np.random.default_rng(2).normal(size=(4, 3, 2)), np.random.default_rng(3).normal(size=(4, 2, 4))
    initial, *clients = [{key: torch.from_numpy(r) for key, r in zip(cores, own, strict=True)} for own in drawn]
    state = method.aggregate(method.init(initial, {LAYER: S}), updates_of(method, 1, clients), 1)
    update = sum(S * b @ state.tensors[key].numpy() @ a for key, b, a in zip(cores, left, right, strict=True))
    one, two = (sum(S * b @ r @ a for r, b, a in zip(own, left, right, strict=True)) for own in drawn[1:])
    assert np.allclose(update, 0.25 * one + 0.75 * two, rtol=0, atol=1e-12)
    assert all(method.plan(key, 1) == (True, True, True) for key in cores)
    assert [variant for variant in VARIANTS if method.refusal(variant) is None] == ["lora_xs"]
    assert "lora has no R: use adapter.variant = 'lora_xs'" in str(method.refusal("lora"))


def test_ravan_sends_each_core_times_its_number_which_is_1_again_then():
    method, gate = make("ravan"), Key(LAYER, Factor.GATE)
    cores = [Key(LAYER, Factor.MIDDLE, adapter) for adapter in method.adapters]
    drawn = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 4, 2, 2)))
    kept = {**dict(zip(cores, drawn[0], strict=True)), gate: torch.tensor([1.0, 2.0, -0.5, 0.0], dtype=torch.float64)}
    sent = method.outgoing({}, kept, (), 1)
    assert all(same(sent[key], number * kept[key].numpy()) for key, number in zip(cores, (1, 2, -0.5, 0), strict=True))
    assert method.plan(gate, 1) == (True, False, False)
    assert not method.keeps(gate), "it leaves the client in what it scales"
    received = dict(zip(cores, drawn[1], strict=True))
    taken = method.absorb(kept, received, kept)
    assert taken[gate].tolist() == [1, 1, 1, 1]
    assert all(torch.equal(taken[key], value) for key, value in received.items())
    assert torch.equal(method.absorb(kept, {}, kept)[gate], kept[gate]), "its cores are its own then"


@pytest.mark.parametrize("name", ["fed_sb", "ravan"])
def test_the_mean_of_middle_factors_is_exact_in_a_model(name):
    method, weights = make(name), (1, 3, 5)
    model = adapt(variant="lora_xs", method={"adapters": method.adapters, "gated": method.gated})  # in float64
    clients = client_tensors(model, 3)

    def weight_updates(state: State) -> dict[str, torch.Tensor]:
        model.write(state)
        found = {}
        for path, layer in model.model.named_modules():
            if isinstance(layer, LoraLayer):
                gate = state.get(Key(path.removeprefix("base_model.model."), Factor.GATE), [1])
                pairs = zip(gate, method.adapters, strict=True)
                found[path] = sum(number * layer.get_delta_weight(adapter) for number, adapter in pairs)
        return found

    updates = []
    for place, (own, weight) in enumerate(zip(clients, weights, strict=True)):
        outgoing = method.outgoing({}, own, (), 1)
        sent = {key: value for key, value in outgoing.items() if method.plan(key, 1).sent}
        updates.append((Update(f"c{place}", 1, weight, sent), weight))
    initial = model.read(model.keys)
    state = method.init(initial, model.scaling)
    after = method.aggregate(state, updates, 1)
    given = weight_updates(method.absorb(clients[0], method.broadcast(after, "c0", 2, 0), initial))
    own = [weight_updates(client) for client in clients]
    for path, update in given.items():
        mean = sum(weight * each[path] for weight, each in zip(weights, own, strict=True)) / sum(weights)
        torch.testing.assert_close(update, mean, rtol=0, atol=1e-10)
        assert update.abs().max() > 0.1
    assert len(given) == 4


def test_fed_sb_takes_an_adapter_with_a_middle_factor_alone():
    method = make("fed_sb")
    assert [variant for variant in VARIANTS if method.refusal(variant) is None] == ["lora_xs"]
    assert method.refusal("lora") == "it averages the R of s·B·R·A, and lora has no R: use adapter.variant = 'lora_xs'"
    assert method.refusal("lora_xs", mixed_ranks=True) is not None
    assert make("fedsa").refusal("lora_xs") == (
        "it treats the sides of the update differently, and lora_xs has no A side and B side"
    )


def test_fedsvd_turns_the_factors_and_keeps_the_product():
    got = after(make("fedsvd"))
    assert same(got[B] @ got[A], MEAN_B @ A0)
    assert np.allclose(got[A] @ got[A].T, np.eye(2))


def test_lora_fair_minimises_distance_and_penalty():
    strength = 0.5
    got = after(make("lora_fair", regularization=strength))
    # The same minimum as a least-squares problem: rows of s·ΔB against [Āᵀ; √λ·I].
    residual = MEAN_UPDATE - S * MEAN_B @ MEAN_A
    design = np.concatenate([MEAN_A.T, np.sqrt(strength) * np.eye(2)])
    target = np.concatenate([residual.T, np.zeros((2, 3))])
    change = np.linalg.lstsq(design, target, rcond=None)[0].T
    assert same(got[A], MEAN_A)
    assert same(got[B], MEAN_B + change / S)


def test_hetlora_weighs_by_the_size_of_the_update():
    got = after(make("hetlora"), clients=[tensors(a=A1[:1], b=B1[:, :1], head=HEAD1), tensors(a=A2, b=B2, head=HEAD2)])
    first, second = np.linalg.norm(B1[:, :1] @ A1[:1]), np.linalg.norm(B2 @ A2)
    share = first / (first + second)
    whole = np.concatenate([A1[:1], np.zeros((1, 4))])
    assert same(got[A], share * whole + (1 - share) * A2)
    assert same(got[HEAD], MEAN_HEAD)


def test_hetlora_drops_directions_that_shrank():
    method = make("hetlora", decay=0.5, regularization=0.1)
    before, small = tensors(a=A1, b=B1), tensors(a=np.stack([A1[0], 0.1 * A1[1]]), b=B1)
    assert method.after_training(before, small, 1)[A].shape == (1, 4)
    assert method.after_training(before, small, 1)[B].shape == (3, 1)
    assert method.after_training(small, before, 1)[A].shape == (2, 4)
    assert float(method.penalty(before, before)) == pytest.approx(
        0.1 * np.linalg.norm(B1[:, 1:]) * np.linalg.norm(A1[1:])
    )


def test_clustered_shares_b_among_those_that_are_alike():
    method = make("clustered", groups=2)
    near = B1 + 1e-3 * B2
    clients = [tensors(a=A1, b=B1), tensors(a=A1, b=near), tensors(a=A1, b=-B2)]
    updates = [(Update(f"c{place}", 1, 1, own), 1) for place, own in enumerate(clients)]
    state = method.aggregate(state_of(method), updates, 1)
    assert state.groups["c0"] == state.groups["c1"] != state.groups["c2"]
    sent = {client: method.broadcast(state, client, 2, 0)[B] for client in ("c0", "c1", "c2", "new")}
    assert same(sent["c0"], (B1 + near) / 2)
    assert same(sent["c2"], -B2)
    assert same(sent["new"], (B1 + near - B2) / 3)
    joined = method.aggregate(state, [(Update("new", 2, 1, tensors(a=A1, b=-2 * B2)), 1)], 2)
    assert joined.groups["new"] == state.groups["c2"]


def test_clustered_sends_no_b_before_there_are_groups():
    method = make("clustered", group_after=2)
    updates = updates_of(method, 1, [tensors(a=A1, b=B1), tensors(a=A2, b=B2)])
    state = method.aggregate(state_of(method), updates, 1)
    assert set(method.broadcast(state, "c0", 2, 0)) == {A}


def test_fedalt_sends_each_client_the_mean_of_the_others():
    method = make("fedalt")
    state = method.init({**tensors(a=A0, b=B0, head=HEAD0), **REST}, {LAYER: S})
    updates = updates_of(method, 1, [tensors(a=A1, b=B1, head=HEAD1), tensors(a=A2, b=B2, head=HEAD2)])
    third = (Update("c2", 1, 2, tensors(a=A0, b=-B1)), 2)
    after = method.aggregate(state, [*updates, third], 1)  # weights 1, 3 and 2
    for client, a, b in (
        ("c0", (3 * A2 + 2 * A0) / 5, (3 * B2 - 2 * B1) / 5),
        ("c1", (A1 + 2 * A0) / 3, (B1 - 2 * B1) / 3),
        ("c2", (A1 + 3 * A2) / 4, (B1 + 3 * B2) / 4),
        ("new", (A1 + 3 * A2 + 2 * A0) / 6, (B1 + 3 * B2 - 2 * B1) / 6),
    ):
        got = method.broadcast(after, client, 2, 0)
        assert set(got) == set(REST), "nobody's own is overwritten"
        assert same(got[REST_A], a)
        assert same(got[REST_B], b)
    alone = method.aggregate(after, [(Update("c0", 2, 1, tensors(a=A2, b=B2)), 1)], 2)
    assert same(method.broadcast(alone, "c0", 3, 1)[REST_A], (3 * A2 + 2 * A0) / 5), "there is nobody else"
    assert same(method.broadcast(alone, "c1", 3, 1)[REST_A], A2)
    assert method.plan(Key(LAYER, Factor.GATE), 1) == (True, False, False)
    assert method.plan(REST_A, 1) == (False, False, True)


def test_flora_na_comes_nearer_to_the_mean_update_than_averages_do():
    distances = []
    for turns in (0, 1, 5, 20):
        got = after(make("flora_na", turns=turns))
        distances.append(np.linalg.norm(S * (got[B] @ got[A]).numpy() - MEAN_UPDATE))
    assert distances[0] == pytest.approx(np.linalg.norm(S * MEAN_B @ MEAN_A - MEAN_UPDATE), rel=1e-12)
    assert distances[0] > distances[1] > distances[2] >= distances[3]


def test_flora_na_solves_for_b_and_then_for_a():
    got = after(make("flora_na", turns=1))
    target = MEAN_UPDATE / S
    columns = np.stack([(B1 @ MEAN_A).ravel(), (B2 @ MEAN_A).ravel()], axis=1)
    q = np.linalg.lstsq(columns, target.ravel(), rcond=None)[0]
    whole_b = q[0] * B1 + q[1] * B2
    columns = np.stack([(whole_b @ A1).ravel(), (whole_b @ A2).ravel()], axis=1)
    weights = np.linalg.lstsq(columns, target.ravel(), rcond=None)[0]
    assert np.allclose(got[B].numpy(), whole_b, rtol=1e-9)
    assert np.allclose(got[A].numpy(), weights[0] * A1 + weights[1] * A2, rtol=1e-9)
