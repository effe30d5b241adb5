"""FedTreeLoRA: the tree, each layer's cut of it, and what clients of a group are sent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fedsa.algorithms.base import ServerState
from fedsa.algorithms.fedtreelora import FedTreeLoRA
from fedsa.types import Factor, Key, State, Update

SHALLOW, DEEP = "encoder.layer.2.query", "encoder.layer.10.query"
"""In the order of the model, which is not that of the alphabet."""
S = 2.0


def keys(module: str, adapter: str = "default") -> tuple[Key, Key]:
    return Key(module, Factor.A, adapter), Key(module, Factor.B, adapter)


def tensors(**b_of: list[float]) -> State:
    """A client's tensors: of each layer, B is a column of these numbers, and A is twice their row."""
    named = {"shallow": SHALLOW, "deep": DEEP}
    state = {}
    for name, numbers in b_of.items():
        a, b = keys(named.get(name, name))
        row = torch.tensor([numbers], dtype=torch.float64)
        state |= {a: 2 * row, b: row.T.clone()}
    return state


def first(method: FedTreeLoRA, modules: tuple[str, ...] = (SHALLOW, DEEP)) -> ServerState:
    initial: dict[Key, torch.Tensor] = {}
    for module, adapter in itertools.product(modules, method.adapters):
        a, b = keys(module, adapter)
        initial |= {a: torch.full((1, 2), 7.0).double(), b: torch.zeros(2, 1).double()}
    return method.init(initial, dict.fromkeys(modules, S))


def after(method: FedTreeLoRA, clients: list[State], *, weights: tuple[int, ...] = (), round: int = 1) -> ServerState:
    """The server's state after a first round in which clients c0, c1, ... have come to these tensors."""
    counts = weights or (1,) * len(clients)
    updates = [
        (Update(f"c{place}", round, count, own), count)
        for place, (own, count) in enumerate(zip(clients, counts, strict=True))
    ]
    return method.aggregate(first(method, tuple({key.module for key in clients[0]})), updates, round)


PAIRS = [  # alike in the shallow layer as far as 0 and 2 are, in the deep one 0 and 1, 2 and 3, all more than that
    tensors(shallow=[1.0, 0.0], deep=[10.0, 0.0]),
    tensors(shallow=[1.1, 0.0], deep=[11.0, 0.0]),
    tensors(shallow=[1.0, 0.1], deep=[0.0, 10.0]),
    tensors(shallow=[1.1, 0.1], deep=[0.0, 11.0]),
]


def test_a_shallow_layer_has_one_group_and_a_deep_one_two():
    method = FedTreeLoRA(threshold=0.3)
    state = after(method, PAIRS, weights=(1, 3, 2, 2))
    got = {client: method.broadcast(state, client, 2, 0) for client in ("c0", "c1", "c2", "c3")}
    (_, shallow), (_, other) = keys(SHALLOW), keys(SHALLOW, "external")
    for sent in got.values():
        assert sent[shallow][:, 0].tolist() == pytest.approx([(1 + 3.3 + 2 + 2.2) / 8, (0.2 + 0.2) / 8], rel=1e-12)
        assert not sent[other].any(), "nobody is outside"
    for adapter, near in (("default", ("c0", "c1")), ("external", ("c2", "c3"))):
        a, b = keys(DEEP, adapter)
        for client, sent in got.items():
            column = [(10 + 33) / 4, 0.0] if client in near else [0.0, (20 + 22) / 4]
            assert sent[b][:, 0].tolist() == column
            assert sent[a][0].tolist() == [2 * number for number in column]


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("window", [1, 2, 3, 9])
@pytest.mark.parametrize("clients", [1, 2, 3, 5, 8])
def test_groups_are_nested_cuts_of_best_silhouette(clients: int, window: int, threshold: float):
    """Written out with numpy, for clients in three places and some noise, in four layers that differ in it."""
    generator = np.random.default_rng(clients)
    noise, modules = (2.0, 0.5, 1.0, 0.1), [f"layer.{number}" for number in range(4)]
    places = generator.normal(size=(3, 6))
    b = {
        (client, module): places[client % 3] + size * generator.normal(size=6)
        for client in range(clients)
        for module, size in zip(modules, noise, strict=True)
    }
    method = FedTreeLoRA(window=window, threshold=threshold)
    initial = {key: torch.zeros(6, 1) for module in modules for key in keys(module)}
    sent = [
        {key: torch.from_numpy(b[client, module])[:, None] for module in modules for key in keys(module)}
        for client in range(clients)
    ]
    updates = [(Update(f"c{client}", 1, 1, own), 1) for client, own in enumerate(sent)]
    state = method.aggregate(method.init(initial), updates, 1)

    def distances(module: str) -> np.ndarray:
        rows = np.stack([b[client, module] for client in range(clients)])
        return np.linalg.norm(rows[:, None] - rows[None], axis=2)

    by_layer = [distances(module) for module in modules]
    cuts, before = merged(np.mean(by_layer, axis=0)), 1
    for row, own in enumerate(by_layer):
        scores = {
            count: threshold if count == 1 else score(own, cuts[count])
            for count in range(before, min(clients, before + window))
        }
        before = max(scores, key=lambda count: (scores[count], -count), default=1)
        smallest = [int(state.groups[f"c{client}"]) for client in range(clients)]
        found = [int(state.slots["tree"][row, group]) for group in smallest]
        assert {frozenset(np.flatnonzero(np.equal(found, each)).tolist()) for each in found} == cuts[before]


def merged(distances: np.ndarray) -> dict[int, set[frozenset[int]]]:
    """The groups that are left when so many are, where the two nearest by their mean distance are merged in turn."""
    groups = [frozenset([place]) for place in range(len(distances))]
    cuts = {len(groups): set(groups)}
    while len(groups) > 1:
        one, other = min(itertools.combinations(groups, 2), key=lambda two: distances[np.ix_(*map(list, two))].mean())
        groups = [each for each in groups if each not in (one, other)] + [one | other]
        cuts[len(groups)] = set(groups)
    return cuts


def score(distances: np.ndarray, groups: set[frozenset[int]]) -> float:
    """The mean silhouette."""
    scores = []
    for own in groups:
        for place in own:
            inside = [distances[place, other] for other in own if other != place]
            nearest = min(distances[place, list(each)].mean() for each in groups if each != own)
            scores.append((nearest - np.mean(inside)) / max(nearest, np.mean(inside)) if inside else 0.0)
    return float(np.mean(scores))


def test_clients_train_alone_until_there_is_a_tree():
    method = FedTreeLoRA(warmup_rounds=2)
    state = after(method, PAIRS)
    assert method.broadcast(state, "c0", 2, 0) == {}
    assert not state.groups
    state = after(method, PAIRS, round=2)
    assert method.broadcast(state, "c0", 3, 1).keys() == first(method).tensors.keys()


def test_who_was_not_there_begins_with_the_mean_of_all_and_joins_the_nearest():
    method = FedTreeLoRA(threshold=0.3)
    state = after(method, PAIRS)
    got = method.broadcast(state, "new", 2, 0)
    assert got[keys(DEEP)[1]][:, 0].tolist() == [21 / 4, 21 / 4]
    assert not got[keys(DEEP, "external")[1]].any()
    own = tensors(shallow=[1.0, 0.0], deep=[2.0, 9.0])
    joined = method.aggregate(state, [(Update("new", 2, 1, own), 1)], 2)
    assert joined.groups["new"] == state.groups["c2"] == state.groups["c3"] != state.groups["c0"]
    assert method.broadcast(joined, "c2", 3, 1)[keys(DEEP)[1]][:, 0].tolist() == [2, 9]
    kept = method.broadcast(joined, "c2", 3, 1)[keys(DEEP, "external")[1]][:, 0]
    assert kept.tolist() == [21 / 2, 0], "nobody of the others came"
    apart = method.broadcast(joined, "c0", 3, 1)
    assert apart[keys(DEEP)[1]][:, 0].tolist() == [21 / 2, 0], "nobody of its group came"
    assert apart[keys(DEEP, "external")[1]][:, 0].tolist() == [2, 9]


def test_the_tree_stays():
    method = FedTreeLoRA(threshold=0.3)
    state = after(method, PAIRS)
    exchanged = [(Update(f"c{place}", 2, 1, own), 1) for place, own in enumerate([PAIRS[0], *PAIRS[:0:-1]])]
    later = method.aggregate(state, exchanged, 2)
    assert later.groups == state.groups
    assert torch.equal(later.slots["tree"], state.slots["tree"])


def test_clients_that_are_alike_are_one_group():
    state = after(FedTreeLoRA(), [PAIRS[0]] * 5)
    assert set(state.groups.values()) == {"0"}
    assert state.slots["tree"].tolist() == [[0], [0]]


def test_what_has_no_number_in_its_name_is_deepest_and_blocks_of_one_number_are_one_layer():
    modules = ("pooler", "decoder.block.0.q", "encoder.block.0.q", "encoder.block.1.q")
    clients = [tensors(**{m: [1.0, float(m == "pooler" and place > 1)] for m in modules}) for place in range(4)]
    state = after(FedTreeLoRA(), clients)
    assert state.slots["tree"][:2].tolist() == [[0, 0], [0, 0]], "of 0 and of 1: all are alike"
    assert sorted(state.slots["tree"][2].tolist()) == [0, 1]


def test_what_is_trained_and_sent():
    method = FedTreeLoRA()
    for own, external in zip(keys(DEEP), keys(DEEP, "external"), strict=True):
        assert method.plan(own, 1) == (True, True, True)
        assert method.plan(external, 1) == (False, False, True)
        assert method.renews(external, 1)
    assert method.plan(Key(DEEP, Factor.GATE), 1) == (True, False, False)
    assert method.plan(Key("head", Factor.HEAD), 1) == (True, False, False)
