"""The laws that every algorithm obeys, over all that are discovered, for every adapter variant; without a model.

Clients' tensors are random fp32 numbers, as they are in a run; "equal" means bit for bit.
"""

import dataclasses
import itertools
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, check_algorithm, make_algorithm
from fedsa.algorithms.base import Algorithm, Plan
from fedsa.errors import ConfigError, ProtocolError
from fedsa.server import Server
from fedsa.types import Factor, Key, Payload, Side, Update, total_bytes

ROUNDS = 4
LAW = settings(max_examples=12, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=5)

IN, OUT, RANK = 3, 4, 2
SHAPES = {
    Factor.A: (RANK, IN),
    Factor.B: (OUT, RANK),
    Factor.MAGNITUDE: (OUT,),
    Factor.HADAMARD_A1: (RANK, IN),
    Factor.HADAMARD_A2: (RANK, IN),
    Factor.HADAMARD_B1: (OUT, RANK),
    Factor.HADAMARD_B2: (OUT, RANK),
    Factor.SCALE: (OUT, 1),
    Factor.LAMBDA_D: (RANK,),
    Factor.LAMBDA_B: (OUT,),
    Factor.HEAD: (2, OUT),
}


def algorithms(*, like_local: bool = False) -> list:
    """Return every algorithm × head mode × variant, without the combinations that the algorithm itself refuses.

    Args:
        like_local: only those that train every tensor in every round, as ``local`` does.
    """
    cases = []
    for name, share_head in itertools.product(algorithm_names(), (False, True)):
        try:
            algorithm = make_algorithm(name, {}, share_head)
        except ConfigError:
            continue
        for variant in VARIANTS:
            if algorithm.refusal(variant):
                continue
            if like_local and not all(
                algorithm.plan(key, round).trained for key in keys_of(variant) for round in (1, 2)
            ):
                continue
            head = "head-shared" if share_head else "head-kept"
            cases.append(pytest.param(algorithm, variant, id=f"{name}-{head}-{variant}"))
    return cases


def keys_of(variant: str) -> list[Key]:
    adapted = [factor for factor in VARIANTS[variant].factors if factor is not Factor.HEAD]
    return [
        *(Key(f"layer.{number}", factor) for number in range(2) for factor in adapted),
        Key("classifier.weight", Factor.HEAD),
    ]


every_algorithm = pytest.mark.parametrize(("algorithm", "variant"), algorithms())


def random_state(variant: str, generator: torch.Generator) -> dict[Key, torch.Tensor]:
    return {key: torch.randn(SHAPES[key.factor], generator=generator) for key in keys_of(variant)}


def sent_keys(algorithm: Algorithm, variant: str, round: int) -> list[Key]:
    return [key for key in keys_of(variant) if algorithm.plan(key, round).sent]


def received_keys(algorithm: Algorithm, variant: str, round: int) -> list[Key]:
    return [key for key in keys_of(variant) if algorithm.plan(key, round).received]


def some_updates(algorithm: Algorithm, variant: str, seed: int, counts: list[int], round: int = 1) -> list[Update]:
    """Return the updates of clients ``c0``, ``c1``, ... with random tensors."""
    generator = torch.Generator().manual_seed(seed)
    sent = sent_keys(algorithm, variant, round)
    updates = []
    for number, count in enumerate(counts):
        state = random_state(variant, generator)
        updates.append(Update(f"c{number}", round, count, {key: state[key] for key in sent}))
    return updates


def open_server(algorithm: Algorithm, variant: str, seed: int, clients: int, **options) -> Server:
    """Return a server in the middle of round 1."""
    initial = random_state(variant, torch.Generator().manual_seed(seed + 1))
    server = Server(algorithm, algorithm.init(initial), [f"c{number}" for number in range(clients)], seed=0, **options)
    server.begin_round(1)
    return server


def same(one: dict[Key, torch.Tensor], two: dict[Key, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# -- the plan ---------------------------------------------------------------------------------------------------------


@every_algorithm
@given(seed=SEEDS, round=st.integers(1, 50))
@LAW
def test_combine_after_partition_is_the_identity(algorithm, variant, seed, round):
    state = random_state(variant, torch.Generator().manual_seed(seed))
    plans = {key: algorithm.plan(key, round) for key in state}
    sent = {key: value for key, value in state.items() if plans[key].sent}
    kept = {key: value for key, value in state.items() if plans[key].trained and not plans[key].sent}
    frozen = {key: value for key, value in state.items() if not plans[key].trained}

    assert len(sent) + len(kept) + len(frozen) == len(state)
    assert same({**frozen, **kept, **sent}, state)
    assert same(dict(algorithm.absorb({**frozen, **kept}, Payload(round, sent), state)), state)


@every_algorithm
def test_a_tensor_that_is_sent_is_trained_and_comes_back(algorithm, variant):
    for key, round in itertools.product(keys_of(variant), range(1, ROUNDS + 1)):
        plan = algorithm.plan(key, round)
        assert isinstance(plan, Plan)
        if plan.sent:
            assert plan.trained
            assert plan.received


@every_algorithm
def test_share_head_is_obeyed(algorithm, variant):
    plan = algorithm.plan(Key("classifier.weight", Factor.HEAD), 1)
    assert plan.trained
    assert plan.sent is plan.received is algorithm.share_head


@every_algorithm
def test_options_are_frozen_and_a_source_is_named(algorithm, variant):
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.share_head = True
    assert algorithm.source
    assert type(algorithm).__doc__
    assert type(algorithm).__final__, "a method is final: it is not derived from"


# -- what the server takes in -----------------------------------------------------------------------------------------


@every_algorithm
@given(seed=SEEDS, counts=COUNTS)
@LAW
def test_bytes_sent_are_bytes_planned(algorithm, variant, seed, counts):
    server = open_server(algorithm, variant, seed, len(counts))
    record = server.end_round(1, some_updates(algorithm, variant, seed, counts))

    planned = sum(4 * torch.Size(SHAPES[key.factor]).numel() for key in sent_keys(algorithm, variant, 1))
    received = sum(4 * torch.Size(SHAPES[key.factor]).numel() for key in received_keys(algorithm, variant, 2))
    assert record.upload_bytes == dict.fromkeys(server.clients, planned)
    assert record.download_bytes == dict.fromkeys(server.clients, 0), "everyone holds the initial tensors already"
    assert server.begin_round(2) == server.clients
    for client in server.clients:
        assert total_bytes(server.payload(client, 2).tensors) == received
    assert server.end_round(2, []).download_bytes == dict.fromkeys(server.clients, received)


def spoilt(update: Update, key: Key | None, how: str) -> Update:
    """Return an update with one thing wrong with it."""
    changed = dict(update.tensors)
    match how:
        case "missing":
            del changed[key]
        case "shape":
            changed[key] = changed[key].unsqueeze(0)
        case "dtype":
            changed[key] = changed[key].double()
        case "nan":
            changed[key] = changed[key] * float("nan")
        case "infinite":
            changed[key] = changed[key] + float("inf")
        case "client":
            return dataclasses.replace(update, client="c9")
        case "round":
            return dataclasses.replace(update, round=2)
        case "no examples":
            return dataclasses.replace(update, num_examples=0)
    return dataclasses.replace(update, tensors=changed)


REFUSALS = {
    "missing": r"^update of client 'c1' for round 1: its tensors are not exactly those that the plan declares sent \(.*"
    + "{key}",
    "shape": "^update of client 'c1' for round 1: {key} has shape",
    "dtype": "^update of client 'c1' for round 1: {key} .*torch.float32",
    "nan": "^update of client 'c1' for round 1: {key} is not finite$",
    "infinite": "^update of client 'c1' for round 1: {key} is not finite$",
}


@pytest.mark.parametrize("how", REFUSALS)
@every_algorithm
def test_a_spoilt_tensor_is_refused(algorithm, variant, how):
    for key in sent_keys(algorithm, variant, 1):
        server = open_server(algorithm, variant, 0, 2)
        before = server.state
        first, second = some_updates(algorithm, variant, 0, [1, 1])
        with pytest.raises(ProtocolError, match=REFUSALS[how].format(key=key)):
            server.end_round(1, [first, spoilt(second, key, how)])
        assert server.state is before
        assert server.held == {}


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("client", "^update of client 'c9' for round 1: not asked for in round 1, or sent twice$"),
        ("round", "^update of client 'c0' for round 2: not asked for in round 1, or sent twice$"),
        ("no examples", "^update of client 'c0' for round 1: num_examples is 0, must be at least 1$"),
    ],
)
@every_algorithm
def test_an_update_that_does_not_fit_the_round_is_refused(algorithm, variant, how, text):
    server = open_server(algorithm, variant, 0, 2)
    (update,) = some_updates(algorithm, variant, 0, [1])
    with pytest.raises(ProtocolError, match=text):
        server.end_round(1, [spoilt(update, None, how)])


@every_algorithm
def test_an_update_that_comes_twice_is_refused(algorithm, variant):
    server = open_server(algorithm, variant, 0, 2)
    (update,) = some_updates(algorithm, variant, 0, [1])
    with pytest.raises(ProtocolError, match=r"^update of client 'c0' for round 1: not asked for .* or sent twice$"):
        server.end_round(1, [update, update])


@every_algorithm
def test_an_update_of_a_client_that_was_not_sampled_is_refused(algorithm, variant):
    server = open_server(algorithm, variant, 0, 3, fraction_train=0.34)
    (sampled,) = server.sample(1)
    (update,) = some_updates(algorithm, variant, 0, [1])
    for client in set(server.clients) - {sampled}:
        with pytest.raises(ProtocolError, match=f"^update of client '{client}' for round 1: not asked for"):
            server.end_round(1, [dataclasses.replace(update, client=client)])


@every_algorithm
def test_no_tensor_gets_in_that_the_plan_does_not_declare_sent(algorithm, variant):
    own = random_state(variant, torch.Generator().manual_seed(0))
    foreign = {Key("layer.9", Factor.A): torch.zeros(SHAPES[Factor.A], dtype=torch.float64)}
    planned = set(sent_keys(algorithm, variant, 1))
    extra = {key: value for key, value in {**own, **foreign}.items() if key not in planned}
    for key, value in extra.items():
        server = open_server(algorithm, variant, 0, 1)
        (update,) = some_updates(algorithm, variant, 0, [1])
        with pytest.raises(ProtocolError, match=rf"plan declares sent \({key}"):
            server.end_round(1, [dataclasses.replace(update, tensors={**update.tensors, key: value})])


# -- aggregation ------------------------------------------------------------------------------------------------------


@every_algorithm
def test_updates_come_in_the_order_of_client_ids(algorithm, variant):
    first, second, third = some_updates(algorithm, variant, 0, [1, 1, 1])
    for wrong in ([second, first], [first, third, second]):
        server = open_server(algorithm, variant, 0, 3)
        with pytest.raises(ProtocolError, match=r"came after that of 'c\d'; bring updates in the order of client ids$"):
            server.end_round(1, wrong)
        assert server.end_round(1, [first, third]).finished == ("c0", "c2"), "the round is still open"


def spacing(value: Fraction) -> float:
    """Return the distance from a value to the next in fp32."""
    return float(np.spacing(np.float32(abs(float(value)))))


def is_rounded_mean(mean: torch.Tensor, tensors: list[torch.Tensor], weights: list[int]) -> bool:
    """Say whether a mean is the exact one but for one rounding to fp32 (and a float64 sum's, a billionth of it)."""
    whole = sum(weights)
    for got, *values in zip(mean.flatten().tolist(), *(tensor.flatten().tolist() for tensor in tensors), strict=True):
        terms = [weight * Fraction(value) / whole for weight, value in zip(weights, values, strict=True)]
        slack = 1e-14 * float(sum(map(abs, terms)))
        if abs(Fraction(got) - sum(terms)) > 0.5 * spacing(sum(terms)) + slack:
            return False
    return True


@every_algorithm
@given(seed=SEEDS, counts=COUNTS, factor=st.integers(1, 10**6), data=st.data())
@LAW
def test_the_mean_is_rounded_once_whatever_the_order_and_a_common_factor(
    algorithm, variant, seed, counts, factor, data
):
    state = algorithm.init(random_state(variant, torch.Generator().manual_seed(seed + 1)))
    weighted = list(zip(some_updates(algorithm, variant, seed, counts), counts, strict=True))
    shuffled = [(update, factor * weight) for update, weight in data.draw(st.permutations(weighted))]
    for updates in (weighted, shuffled):
        after = algorithm.aggregate(state, iter(updates), 1)
        for key in sent_keys(algorithm, variant, 1):
            assert after.tensors[key].dtype == torch.float32
            assert is_rounded_mean(after.tensors[key], [update.tensors[key] for update, _ in weighted], counts)


@every_algorithm
@given(seed=SEEDS, counts=COUNTS, power=st.integers(1, 9))
@LAW
def test_a_power_of_two_on_num_examples_changes_no_bit(algorithm, variant, seed, counts, power):
    one, two = (open_server(algorithm, variant, seed, len(counts)) for _ in range(2))
    one.end_round(1, some_updates(algorithm, variant, seed, counts))
    two.end_round(1, some_updates(algorithm, variant, seed, [count * 2**power for count in counts]))
    assert same(dict(one.state.tensors), dict(two.state.tensors))
    assert one.state.versions == two.state.versions


@every_algorithm
def test_an_additive_method_never_has_two_updates_at_once(algorithm, variant):
    """The server takes updates one by one and lets them go: its memory does not depend on the number of clients."""
    assert algorithm.additive
    server = open_server(algorithm, variant, 0, 9)
    sent = len(sent_keys(algorithm, variant, 1))
    made: list[weakref.ref] = []

    def trained():
        for number in range(9):
            assert sum(each() is not None for each in made) <= sent, "only those of the update before may be held"
            (update,) = some_updates(algorithm, variant, number, [1])
            made.extend(weakref.ref(tensor) for tensor in update.tensors.values())
            yield dataclasses.replace(update, client=f"c{number}")
            del update

    assert server.end_round(1, trained()).finished == server.clients
    assert len(made) == 9 * sent


@every_algorithm
def test_a_client_that_fails_in_the_middle_leaves_the_state_as_it_was(algorithm, variant):
    server = open_server(algorithm, variant, 0, 3)
    updates = some_updates(algorithm, variant, 0, [1, 2, 3])
    state, tensors = server.state, {key: value.clone() for key, value in server.state.tensors.items()}

    def failing():
        yield updates[0]
        yield updates[1]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        server.end_round(1, failing())
    assert server.state is state
    assert same(dict(state.tensors), tensors)
    assert server.held == {}
    record = server.end_round(1, updates)
    other = open_server(algorithm, variant, 0, 3)
    other.end_round(1, updates)
    assert same(dict(server.state.tensors), dict(other.state.tensors)), "nothing of the failed attempt is in it"
    assert record.finished == server.clients


@every_algorithm
@given(seed=SEEDS, count=st.integers(1, 10**6))
@LAW
def test_one_client_gets_its_own_tensors_back(algorithm, variant, seed, count):
    server = open_server(algorithm, variant, seed, 1)
    (update,) = some_updates(algorithm, variant, seed, [count])
    server.end_round(1, [update])
    sent = {key: server.state.tensors[key] for key in sent_keys(algorithm, variant, 1)}
    assert same(sent, dict(update.tensors))
    received = set(received_keys(algorithm, variant, 2))
    assert server.begin_round(2) == ("c0",)
    assert same(dict(server.payload("c0", 2).tensors), {key: value for key, value in sent.items() if key in received})


@every_algorithm
@given(seed=SEEDS, counts=COUNTS)
@LAW
def test_aggregate_is_pure_and_leaves_what_is_not_sent(algorithm, variant, seed, counts):
    state = algorithm.init(random_state(variant, torch.Generator().manual_seed(seed + 1)))
    updates = some_updates(algorithm, variant, seed, counts)
    tensors_before = {key: value.clone() for key, value in state.tensors.items()}
    updates_before = [{key: value.clone() for key, value in update.tensors.items()} for update in updates]

    after = algorithm.aggregate(state, zip(updates, counts, strict=True), 1)

    assert same(dict(state.tensors), tensors_before)
    assert all(same(dict(update.tensors), before) for update, before in zip(updates, updates_before, strict=True))
    for key in set(state.tensors) - set(sent_keys(algorithm, variant, 1)):
        assert torch.equal(after.tensors[key], tensors_before[key])
        assert after.versions[key] == 0


def weight_update(state: dict[Key, torch.Tensor], layer: int, frozen: tuple[torch.Tensor, torch.Tensor]):
    """Return B·A, or for VeRA Λ_b·B·Λ_d·A with the frozen A and B; the scale is 1."""
    tensors = {key.factor: value for key, value in state.items() if key.module == f"layer.{layer}"}
    if Factor.A in tensors:
        return tensors[Factor.B] @ tensors[Factor.A]
    a, b = frozen
    return tensors[Factor.LAMBDA_B].diag() @ b @ tensors[Factor.LAMBDA_D].diag() @ a


@pytest.mark.parametrize("variant", [name for name, about in VARIANTS.items() if about.is_product or name == "vera"])
@given(seed=SEEDS, counts=COUNTS)
@LAW
def test_ffa_is_exact(variant, seed, counts):
    """Σ pᵢBᵢA = (Σ pᵢBᵢ)A: the mean of the clients' weight updates is the update of the mean, but for rounding."""
    algorithm = make_algorithm("ffa", {})
    generator = torch.Generator().manual_seed(seed)
    initial = random_state(variant, generator)
    frozen = (
        torch.randn(RANK, IN, generator=generator),
        torch.randn(OUT, RANK, generator=generator),
    )
    updates = some_updates(algorithm, variant, seed, counts)
    after = algorithm.aggregate(algorithm.init(initial), zip(updates, counts, strict=True), 1)
    for layer in range(2):
        products = [weight_update({**initial, **update.tensors}, layer, frozen) for update in updates]
        mean = sum(product * count for product, count in zip(products, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(weight_update(dict(after.tensors), layer, frozen), mean, rtol=1e-4, atol=1e-4)


# -- what the server sends --------------------------------------------------------------------------------------------


@every_algorithm
@given(seed=SEEDS, present=st.lists(st.sets(st.integers(0, 3)), min_size=ROUNDS, max_size=2 * ROUNDS))
@LAW
def test_a_client_that_skips_rounds_gets_exactly_what_it_lacks(algorithm, variant, seed, present):
    """Client 0 is there in every round, the others as drawn; ``lacks`` is kept by hand beside the versions."""
    generator = torch.Generator().manual_seed(seed)
    initial = random_state(variant, generator)
    state = algorithm.init(initial)
    clients = {number: dict(initial) for number in range(4)}
    held = dict.fromkeys(clients, 0)
    lacks: dict[int, set[Key]] = {number: set() for number in clients}

    for round, drawn in enumerate(present, start=1):
        there = sorted(drawn | {0})
        received = set(received_keys(algorithm, variant, round))
        sent = sent_keys(algorithm, variant, round)
        for number in there:
            payload = algorithm.broadcast(state, str(number), round, held[number])
            assert payload.round == round
            assert set(payload.tensors) == lacks[number] & received
            clients[number] = dict(algorithm.absorb(clients[number], payload, initial))
        for number, key in itertools.product(there, received):
            assert torch.equal(clients[number][key], clients[0][key])
            assert torch.equal(clients[number][key], state.tensors[key])
        updates = []
        for number in there:
            lacks[number].clear()
            for key in clients[number]:
                if algorithm.plan(key, round).trained:
                    clients[number][key] = torch.randn(SHAPES[key.factor], generator=generator)
            held[number] = round - 1
            updates.append(Update(f"c{number}", round, number + 1, {key: clients[number][key] for key in sent}))
        state = algorithm.aggregate(state, [(update, update.num_examples) for update in updates], round)
        for number in clients:
            lacks[number].update(sent)


@every_algorithm
def test_when_no_update_arrives_values_stay_and_are_sent_again(algorithm, variant):
    server = open_server(algorithm, variant, 0, 2)
    server.end_round(1, some_updates(algorithm, variant, 0, [1, 3]))
    server.begin_round(2)
    first = {client: server.payload(client, 2) for client in server.clients}
    values = dict(server.state.tensors)
    record = server.end_round(2, [])  # everybody trained, and nobody's update came through
    server.begin_round(3)
    again = {client: server.payload(client, 3) for client in server.clients}

    assert record.finished == ()
    assert record.upload_bytes == {}
    assert same(dict(server.state.tensors), values)
    for client in server.clients:
        assert set(first[client].tensors) == set(received_keys(algorithm, variant, 2))
        assert same(dict(again[client].tensors), dict(first[client].tensors))


@pytest.mark.parametrize(
    ("name", "variant", "reason"),
    [
        ("fedsa", "ia3", "it shares the sides of the update differently, and ia3 has no A side and B side"),
        ("ffa", "ia3", "it shares the sides of the update differently, and ia3 has no A side and B side"),
        ("ffa", "loha", "it freezes the A side, which in loha is zero at the start: nothing would ever change"),
        *((name, "ia3", None) for name in ("fedit", "local")),
        *((name, variant, None) for name in ("fedsa", "fedit", "local") for variant in VARIANTS if variant != "ia3"),
        *(("ffa", variant, None) for variant in VARIANTS if variant not in ("ia3", "loha")),
    ],
)
def test_what_a_method_refuses(name, variant, reason):
    assert make_algorithm(name, {}).refusal(variant) == reason
    mistakes = check_algorithm({"algorithm": name, "adapter": {"variant": variant}})
    told = f"{name} does not go with adapter.variant = {variant!r}: {reason}"
    assert [mistake.what for mistake in mistakes] == ([told] if reason else [])


@pytest.mark.parametrize("variant", VARIANTS)
def test_local_sends_nothing_ever(variant):
    algorithm = make_algorithm("local", {})
    server = open_server(algorithm, variant, 0, 3)
    initial = dict(server.state.tensors)
    for round in range(1, ROUNDS + 1):
        assert all(not server.payload(client, round).tensors for client in server.begin_round(round))
        record = server.end_round(round, some_updates(algorithm, variant, round, [1, 2, 3], round))
        assert set(record.upload_bytes.values()) == set(record.download_bytes.values()) == {0}
    assert same(dict(server.state.tensors), initial)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "ia3"])
def test_fedsa_sends_the_a_side_alone(variant):
    sent = sent_keys(make_algorithm("fedsa", {}), variant, 1)
    assert sent == [key for key in keys_of(variant) if key.factor.side is Side.A]


# -- the whole stack --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "variant"), algorithms(like_local=True))
def test_with_one_client_averaging_is_local_training(algorithm, variant, tiny_run):
    """Whatever trains the same tensors as ``local`` gives, for one client, the same bits as ``local``."""
    one_client = ("data.partition={kind='iid', clients=1}", f"adapter.variant={variant}")
    (name,) = (name for name in algorithm_names() if type(make_algorithm(name, {})) is type(algorithm))
    head = str(algorithm.share_head).lower()
    local = tiny_run(*one_client, "algorithm=local")
    federated = tiny_run(*one_client, f"algorithm={name}", f"share_head={head}")
    (client,) = local.federation.clients
    assert same(dict(federated.personal(client)), dict(local.personal(client)))
    assert not same(dict(local.personal(client)), dict(local.federation.model.initial))


@every_algorithm
def test_what_is_received_is_the_same_in_all_rounds(algorithm, variant):
    for key in keys_of(variant):
        assert len({algorithm.plan(key, round).received for round in range(1, 9)}) == 1
