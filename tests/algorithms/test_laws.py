"""The laws that every algorithm obeys, over all that are discovered, for every variant that they do not refuse.

Those of `fedsa.testing` run on federations that Hypothesis draws; below them are those of the server and of whole runs.
Clients' tensors are random fp32 numbers, as they are in a run; "equal" means bit for bit. What cannot apply to a method
is told by its declarations, never by its name.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, find_algorithm, make_algorithm
from fedsa.algorithms.base import Algorithm
from fedsa.errors import ProtocolError
from fedsa.server import Server
from fedsa.testing import LAWS, Case, cases, initial_tensors
from fedsa.types import Factor, Key, Side, Update
from support.tiers import factors_of, one_of_each

LAW = settings(max_examples=3, deadline=None, database=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=5)


def with_other_options(cls: type[Algorithm]) -> Iterator[tuple[str, Algorithm]]:
    """Yield the method as it is by default, and with one option at a time set to something else it takes."""
    default = cls()
    yield "", default
    for field in dataclasses.fields(cls):
        value = getattr(default, field.name)
        match value:
            case bool():
                other = not value
            case int():
                other = value + 1
            case float():
                other = value / 2 if value else 0.5
            case _:
                continue
        try:
            yield f"{field.name}={other}", dataclasses.replace(default, **{field.name: other})
        except ValueError:
            continue


def different(tried: Iterable[Case]) -> list[Case]:
    """Return the cases that differ in what a law sees of a variant: its factors, and whether it is a product.

    Of lora, rslora, pissa and olora that is the first, so mixed ranks meet none that a recipe refuses them with.
    """
    seen: dict[Any, Case] = {}
    for case in tried:
        seen.setdefault((VARIANTS[case.variant].factors, VARIANTS[case.variant].is_product, case.mixed_ranks), case)
    return list(seen.values())


def all_cases() -> Iterator[tuple[str, Case]]:
    """Yield every method × variant × ranks, and every other option with the first variant only."""
    for name in algorithm_names():
        for option, algorithm in with_other_options(find_algorithm(name)):
            for case in different(cases(algorithm))[: 1 if option else None]:
                ranks = "mixed" if case.mixed_ranks else ""
                yield "-".join(part for part in (name, option, case.variant, ranks) if part), case


CASES = dict(all_cases())
QUICK = {type(case.algorithm): name for name, case in reversed(CASES.items())}
"""The first case of each method; the others are left out of the quick tier."""


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in QUICK.values() else [pytest.mark.run]


EACH = [pytest.param(case, marks=marks_of(name), id=name) for name, case in CASES.items()]


@st.composite
def federations(draw: st.DrawFn, case: Case) -> Case:
    """Draw numbers of rows, and who trains in each round."""
    weights = tuple(draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=4)))
    there = st.frozensets(st.integers(0, len(weights) - 1))
    present = tuple(draw(st.lists(there, min_size=3, max_size=6)))
    return dataclasses.replace(case, seed=draw(SEEDS), weights=weights, present=present)


def test_of(law: Callable[[Case], None]) -> Callable[..., None]:
    """Return a test of one law over all cases; one function for all laws would run too often for Hypothesis."""

    @pytest.mark.parametrize("case", EACH)
    @given(data=st.data())
    @LAW
    def test(case: Case, data: st.DataObject) -> None:
        law(data.draw(federations(case)))

    return test


test_of.__test__ = False  # type: ignore[attr-defined]  # pytest: it makes tests, and is none
for name, law in LAWS.items():
    globals()[f"test_{name.replace(' ', '_')}"] = test_of(law)


@pytest.mark.parametrize("name", algorithm_names())
def test_options_are_frozen_and_a_source_is_named(name):
    algorithm = make_algorithm(name, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.share_head = True
    assert algorithm.source
    assert type(algorithm).__doc__
    assert type(algorithm).__final__, "a method is final: it is not derived from"


@pytest.mark.parametrize("name", algorithm_names())
def test_a_method_goes_with_some_variant(name):
    assert cases(make_algorithm(name, {}))


def algorithms() -> list:
    """Return every algorithm × variant."""
    return [
        pytest.param(case.algorithm, case.variant, marks=marks_of(name), id=name)
        for name, case in CASES.items()
        if not case.mixed_ranks and "=" not in name
    ]


def keys_of(algorithm: Algorithm, variant: str) -> list[Key]:
    return list(initial_tensors(Case(algorithm, variant)))


def averages(algorithm: Algorithm) -> bool:
    """Say whether the server's new value of what is sent is the mean, and nothing else."""
    return all(
        getattr(type(algorithm), name) is getattr(Algorithm, name)
        for name in ("aggregate", "combine", "combine_weighted", "renewed")
    )


every_algorithm = pytest.mark.parametrize(("algorithm", "variant"), algorithms())
averaging = pytest.mark.parametrize(
    ("algorithm", "variant"), [case for case in algorithms() if averages(case.values[0])]
)
additive = pytest.mark.parametrize(
    ("algorithm", "variant"), [case for case in algorithms() if case.values[0].is_additive()]
)


def random_state(algorithm: Algorithm, variant: str, seed: int) -> dict[Key, torch.Tensor]:
    return initial_tensors(Case(algorithm, variant, seed=seed))


def sent_keys(algorithm: Algorithm, variant: str, round: int) -> list[Key]:
    return [key for key in keys_of(algorithm, variant) if algorithm.plan(key, round).sent]


def received_keys(algorithm: Algorithm, variant: str, round: int) -> list[Key]:
    return [key for key in keys_of(algorithm, variant) if algorithm.plan(key, round).received]


def some_updates(algorithm: Algorithm, variant: str, seed: int, counts: list[int], round: int = 1) -> list[Update]:
    """Return the updates of clients ``c0``, ``c1``, ... with random tensors."""
    sent = sent_keys(algorithm, variant, round)
    updates = []
    for number, count in enumerate(counts):
        state = random_state(algorithm, variant, seed + 1000 + number)
        updates.append(Update(f"c{number}", round, count, {key: state[key] for key in sent}))
    return updates


def open_server(algorithm: Algorithm, variant: str, seed: int, clients: int, **options) -> Server:
    """Return a server in the middle of round 1."""
    initial = random_state(algorithm, variant, seed + 1)
    state = algorithm.init(initial, {key.module: 2.0 for key in initial})
    server = Server(algorithm, state, [f"c{number}" for number in range(clients)], seed=0, **options)
    server.begin_round(1)
    return server


def same(one: dict[Key, torch.Tensor], two: dict[Key, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# -- what the server takes in -----------------------------------------------------------------------------------------


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
        assert server.client_versions == {}


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("client", "^update of client 'c9' for round 1: this client was not asked to train in round 1$"),
        ("round", "^update of client 'c0' for round 2: it is for another round than the open one, 1$"),
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
    with pytest.raises(ProtocolError, match=r"^update of client 'c0' for round 1: it came twice$"):
        server.end_round(1, [update, update])


@every_algorithm
def test_an_update_of_a_client_that_was_not_sampled_is_refused(algorithm, variant):
    server = open_server(algorithm, variant, 0, 3, fraction_train=0.34)
    (sampled,) = server.sample(1)
    (update,) = some_updates(algorithm, variant, 0, [1])
    for client in set(server.clients) - {sampled}:
        with pytest.raises(
            ProtocolError, match=f"^update of client '{client}' for round 1: this client was not asked to train"
        ):
            server.end_round(1, [dataclasses.replace(update, client=client)])


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


@averaging
@given(seed=SEEDS, counts=COUNTS, factor=st.integers(1, 10**6), data=st.data())
@LAW
def test_the_mean_is_rounded_once_whatever_the_order_and_a_common_factor(
    algorithm, variant, seed, counts, factor, data
):
    state = algorithm.init(random_state(algorithm, variant, seed + 1))
    weighted = list(zip(some_updates(algorithm, variant, seed, counts), counts, strict=True))
    shuffled = [(update, factor * weight) for update, weight in data.draw(st.permutations(weighted))]
    for updates in (weighted, shuffled):
        after = algorithm.aggregate(state, iter(updates), 1)
        for key in sent_keys(algorithm, variant, 1):
            assert after.tensors[key].dtype == torch.float32
            assert is_rounded_mean(after.tensors[key], [update.tensors[key] for update, _ in weighted], counts)


@averaging
@given(seed=SEEDS, counts=COUNTS, power=st.integers(1, 9))
@LAW
def test_a_power_of_two_on_num_examples_changes_no_bit(algorithm, variant, seed, counts, power):
    one, two = (open_server(algorithm, variant, seed, len(counts)) for _ in range(2))
    one.end_round(1, some_updates(algorithm, variant, seed, counts))
    two.end_round(1, some_updates(algorithm, variant, seed, [count * 2**power for count in counts]))
    assert same(dict(one.state.tensors), dict(two.state.tensors))
    assert one.state.versions == two.state.versions


@additive
def test_an_additive_method_never_has_two_updates_at_once(algorithm, variant):
    """The server takes updates one by one and lets them go: its memory does not depend on the number of clients."""
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
    assert server.client_versions == {}
    record = server.end_round(1, updates)
    other = open_server(algorithm, variant, 0, 3)
    other.end_round(1, updates)
    assert same(dict(server.state.tensors), dict(other.state.tensors)), "nothing of the failed attempt is in it"
    assert record.finished == server.clients


@given(seed=SEEDS, counts=COUNTS)
@LAW
def test_ffa_is_exact_on_vera(seed, counts):
    """Σ pᵢ·Λᵢ·B·Λ_d·A with frozen A, B and Λ_d is the update of the mean Λ, but for rounding."""
    algorithm = make_algorithm("ffa", {})
    initial = random_state(algorithm, "vera", seed)
    lambda_b, lambda_d = Key("layer.0", Factor.LAMBDA_B), Key("layer.0", Factor.LAMBDA_D)
    out, rank, width = initial[lambda_b].numel(), initial[lambda_d].numel(), 3
    b, a = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for shape in ((out, rank), (rank, width)))

    def weight_update(state):
        return state[lambda_b].diag() @ b @ initial[lambda_d].diag() @ a

    updates = some_updates(algorithm, "vera", seed, counts)
    after = algorithm.aggregate(algorithm.init(initial), zip(updates, counts, strict=True), 1)
    mean = sum(weight_update(u.tensors) * count for u, count in zip(updates, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(weight_update(after.tensors), mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["lora", "vera"])
def test_local_sends_nothing_ever(variant):
    algorithm = make_algorithm("local", {})
    server = open_server(algorithm, variant, 0, 3)
    initial = dict(server.state.tensors)
    for round in range(1, 5):
        assert all(not server.payload(client, round).tensors for client in server.begin_round(round))
        record = server.end_round(round, some_updates(algorithm, variant, round, [1, 2, 3], round))
        assert set(record.upload_bytes.values()) == set(record.download_bytes.values()) == {0}
    assert same(dict(server.state.tensors), initial)


@pytest.mark.parametrize("variant", ["lora", "vera"])
def test_fedsa_sends_the_a_side_alone(variant):
    fedsa = make_algorithm("fedsa", {})
    sent = sent_keys(fedsa, variant, 1)
    assert sent == [key for key in keys_of(fedsa, variant) if key.factor.side is Side.A]


# -- the whole stack --------------------------------------------------------------------------------------------------


def is_local_with_one_client(case: Case) -> bool:
    """Say whether a method trains all of one adapter in every round, and the server makes nothing but means."""
    algorithm = case.algorithm
    own = (
        "aggregate",
        "combine",
        "combine_weighted",
        "outgoing",
        "beside",
        "renewed",
        "broadcast",
        "absorb",
        "after_training",
        "penalty",
        "scaling",
    )
    plain = all(getattr(type(algorithm), name) is getattr(Algorithm, name) for name in own)
    plans = [algorithm.plan(key, round) for key in initial_tensors(case) for round in (1, 2)]
    return plain and not algorithm.folds and len(algorithm.adapters) == 1 and all(plan.trained for plan in plans)


@pytest.mark.parametrize(
    ("name", "variant"),
    one_of_each(
        (
            (name, variant)
            for name in algorithm_names()
            for variant in VARIANTS
            if make_algorithm(name, {}).refusal(variant) is None
            and is_local_with_one_client(Case(make_algorithm(name, {}), variant))
        ),
        lambda name, variant: (name, factors_of(variant)),
    ),
)
def test_with_one_client_averaging_is_local_training(name, variant, tiny_run):
    """Whatever trains the same tensors as ``local`` gives, for one client, the same bits as ``local``."""
    one_client = ("data.partition={kind='iid', clients=1}", f"adapter.variant={variant}")
    local = tiny_run(*one_client, "algorithm=local")
    federated = tiny_run(*one_client, f"algorithm={name}")
    (client,) = local.federation.clients
    assert same(dict(federated.personal(client)), dict(local.personal(client)))
    assert not same(dict(local.personal(client)), dict(local.federation.model.initial))
