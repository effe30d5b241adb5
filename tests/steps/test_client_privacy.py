"""Client-level differential privacy: what is clipped, how much noise there is, and what does not go with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsa.accounting import noise_multiplier_for
from fedsa.adapters.algebra import norm_of
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import ServerState
from fedsa.engines.spent import privacy_of
from fedsa.errors import ConfigError
from fedsa.federation.resolving import with_noise
from fedsa.federation.without_rows import agree
from fedsa.recipe import StepSettings, apply_overrides, parse_recipe, privacy_settings
from fedsa.server import Server, most_rounds
from fedsa.steps import CHECKS, client_privacy, make_chain
from fedsa.steps.cast import Cast
from fedsa.steps.chain import Chain
from fedsa.steps.client_privacy import NoisyMean, NoisyUpdate, clipped
from fedsa.steps.noise import Noise
from fedsa.testing import check_step
from fedsa.types import Factor, Key, State, Update
from support.extras import NEEDS_PRIVACY

A, B = Key("layer", Factor.A), Key("layer", Factor.B)


@pytest.mark.parametrize("step", [NoisyMean(1.0, 0.5), NoisyUpdate(1.0, 0.5), NoisyMean(0.1, 0.0)])
def test_the_steps_obey_the_laws(step: NoisyMean | NoisyUpdate) -> None:
    check_step(step)


def test_a_recipe_gets_the_step_that_it_asks_for() -> None:
    given = privacy_settings({"kind": "client", "noise_multiplier": 2, "clipping_norm": 3})
    assert list(make_chain(StepSettings(privacy=given)).steps) == [NoisyMean(3.0, 2.0), Cast("fp32")]
    given = privacy_settings({"kind": "client", "noise_multiplier": 2, "clipping_norm": 3, "noise_at": "client"})
    assert list(make_chain(StepSettings(privacy=given)).steps) == [NoisyUpdate(3.0, 2.0), Cast("fp32")]
    rows = privacy_settings({"kind": "example", "noise_multiplier": 2})
    assert list(make_chain(StepSettings(privacy=rows)).steps) == [Cast("fp32")]


@pytest.mark.run
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    before=st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    bound=st.floats(1e-2, 1e3),
)
@settings(max_examples=30)
def test_no_change_is_larger_than_the_bound_also_after_rounding(
    values: list[float], before: list[float], bound: float
) -> None:
    start = {A: torch.tensor(before[:2]), B: torch.tensor(before[2:])}
    tensors = {A: torch.tensor(values[:2]), B: torch.tensor(values[2:])}
    made = clipped(tensors, start, bound)

    def norm(state: State) -> float:
        return sum(float((state[key].double() - start[key].double()).square().sum()) for key in (A, B)) ** 0.5

    assert norm(made) <= bound
    if norm(tensors) <= bound:
        assert all(torch.equal(made[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("distance", [1.0, 1 + 1e-12, 0.999, 1e-3, 3.0])
def test_clipping_ends_where_a_bound_is_less_than_what_rounding_moves(
    distance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around 10⁴ fp32 values are about 10⁻³ apart: a bound just below that lets no value move."""
    start = {A: torch.tensor([1e4, 1.0])}
    near = {A: torch.nextafter(start[A], torch.tensor(2e4))}
    step = float((near[A].double() - start[A].double()).norm())
    tries: list[float] = []
    monkeypatch.setattr(client_privacy, "norm_of", lambda tensors: tries.append(norm_of(tensors)) or tries[-1])
    made = clipped(near, start, distance * step * (1 - 1e-9))
    assert norm_of({A: made[A].double() - start[A].double()}) <= distance * step * (1 - 1e-9)
    assert len(tries) < 60


def sent(step: NoisyMean | NoisyUpdate, value: float, size: int, client: str = "c", seed: int = 0) -> State:
    """Return what a client sends that has come from zeros to ``value`` everywhere."""
    before = {A: torch.zeros(size)}
    tensors, _ = Chain((step,)).on_client(
        {A: torch.full((size,), value)}, {}, client=client, round=1, before=before, seed=seed
    )
    return tensors


def test_noise_at_the_client_has_the_size_that_the_recipe_says() -> None:
    size = 40_000
    (noisy,) = sent(NoisyUpdate(clipping_norm=2.0, noise_multiplier=3.0), 1.0, size).values()
    noise = noisy.double() - 2.0 / size**0.5  # the change has a norm of 200, and is clipped to 2
    assert float(noise.std()) == pytest.approx(6.0, rel=0.02)
    assert stats.kstest(noise.numpy() / 6.0, "norm").pvalue > 0.001


def mean_of(step: NoisyMean, values: list[float], size: int, *, asked: int | None = None, seed: int = 0) -> np.ndarray:
    """Return the mean that a server makes of clients' updates, each from zeros to a value everywhere."""
    state = ServerState({A: torch.zeros(size)}, {A: 0})
    updates = [
        (Update(f"c{number}", 1, 1, sent(step, value, size, f"c{number}")), 1) for number, value in enumerate(values)
    ]
    mean, _ = Chain((step,)).mean(iter(updates), state, 1, seed, asked)
    return mean[A].numpy()


def test_noise_at_the_server_is_that_of_the_sum_over_a_fixed_number() -> None:
    size, step = 40_000, NoisyMean(clipping_norm=2.0, noise_multiplier=3.0)
    each = 2.0 / size**0.5
    all_came = mean_of(step, [1.0, 1.0, -1.0, 1.0], size)
    assert all_came.mean() == pytest.approx(2 * each / 4, abs=4 * 1.5 / size**0.5)
    assert all_came.std() == pytest.approx(2.0 * 3.0 / 4, rel=0.02)
    one_is_lost = mean_of(step, [1.0, 1.0, -1.0], size, asked=4)
    assert one_is_lost.std() == pytest.approx(2.0 * 3.0 / 4, rel=0.02), "who comes does not change the noise"


def test_the_divisor_is_the_number_of_clients_that_were_asked() -> None:
    step = NoisyMean(clipping_norm=100.0, noise_multiplier=0.0)
    assert mean_of(step, [4.0, 8.0], 1).tolist() == [6.0]
    assert mean_of(step, [4.0, 8.0], 1, asked=4).tolist() == [3.0]


def test_one_client_changes_the_sum_by_no_more_than_the_bound() -> None:
    step, size, others = NoisyMean(clipping_norm=0.5, noise_multiplier=0.0), 9, [0.3, -2.0, 0.01]
    without = mean_of(step, others, size, asked=4) * 4
    for value in (0.1, -50.0, 1e6):
        with_it = mean_of(step, [*others, value], size, asked=4) * 4
        assert np.linalg.norm(with_it - without) <= 0.5 * (1 + 1e-6)


def test_the_server_asks_the_step_for_the_number_of_clients_that_it_asked() -> None:
    algorithm = make_algorithm("fedit", {})
    server = Server(
        algorithm,
        algorithm.init({A: torch.zeros(1)}),
        ["a", "b", "c", "d"],
        seed=0,
        weighting="uniform",
        steps=Chain((NoisyMean(100.0, 0.0),)),
    )
    server.begin_round(1)
    server.end_round(1, [Update("a", 1, 7, {A: torch.tensor([4.0])}), Update("c", 1, 1, {A: torch.tensor([8.0])})])
    assert server.state.tensors[A].tolist() == [3.0]


# -- where noise comes from ------------------------------------------------------------------------------------------


def test_a_secret_gives_other_noise_than_the_seed_and_the_same_again() -> None:
    seeded, secret, other = (Noise(0, key, "noise", 1).normal((500,)) for key in (None, b"x" * 32, b"y" * 32))
    assert not torch.equal(seeded, secret)
    assert not torch.equal(other, secret)
    assert torch.equal(Noise(0, b"x" * 32, "noise", 1).normal((500,)), secret)
    assert torch.equal(Noise(7, b"x" * 32, "noise", 1).normal((500,)), secret), "the shared seed plays no part"
    assert not torch.equal(Noise(0, b"x" * 32, "noise", 2).normal((500,)), secret)


def noise_of(chain: Chain, value: float, before: float = 0.0) -> torch.Tensor:
    """Return what a client's step adds to a change of nothing but this value."""
    start, after = {A: torch.full((64,), before)}, {A: torch.full((64,), before + value)}
    tensors, _ = chain.on_client(after, {}, client="c", round=1, before=start, seed=0)
    return tensors[A] - after[A]


def test_two_inputs_of_one_round_never_have_the_same_noise_from_a_secret() -> None:
    """Otherwise the difference of two messages would be the exact difference of what was trained."""
    step = NoisyUpdate(100.0, 1.0)
    secret, seeded = Chain((step,), secret=b"s" * 32), Chain((step,))
    assert torch.equal(noise_of(secret, 1.0), noise_of(secret, 1.0)), "the same again is no second draw"
    for other in (noise_of(secret, 2.0), noise_of(secret, 1.0, before=8.0)):
        assert not torch.allclose(noise_of(secret, 1.0), other, atol=1.0)
    assert torch.allclose(noise_of(seeded, 1.0), noise_of(seeded, 2.0), atol=1e-3), "a simulation is as it was"


def test_a_server_with_a_secret_has_other_noise_for_other_sums() -> None:
    state = ServerState({A: torch.zeros(64)}, {A: 0})

    def noise(secret: bytes | None, value: float) -> torch.Tensor:
        mean, _ = Chain((NoisyMean(100.0, 1.0),), secret).mean(
            iter([(Update("c", 1, 1, {A: torch.full((64,), value)}), 1)]), state, 1, 0
        )
        return mean[A] - value

    assert torch.equal(noise(b"s" * 32, 1.0), noise(b"s" * 32, 1.0))
    assert not torch.allclose(noise(b"s" * 32, 1.0), noise(b"s" * 32, 2.0), atol=1.0)
    assert torch.allclose(noise(None, 1.0), noise(None, 2.0), atol=1e-6)


def test_a_servers_noise_is_another_one_for_another_sum_of_the_same_mean() -> None:
    """Two clients that send the same have the mean of one of them: with one noise, one client would be the difference.

    How many were asked changes nothing of the sum: with two noises, the mean of both would tell more than one does.
    """
    state, value = ServerState({A: torch.zeros(64)}, {A: 0}), torch.full((64,), 2.0)

    def sum_of(clients: int, asked: int) -> torch.Tensor:
        updates = [(Update(f"c{number}", 1, 1, {A: value}), 1) for number in range(clients)]
        mean, _ = Chain((NoisyMean(100.0, 1.0),), b"s" * 32).mean(iter(updates), state, 1, 0, asked)
        return mean[A] * asked

    assert not torch.allclose(sum_of(1, 2) - value, sum_of(2, 2) - 2 * value, atol=1.0)
    assert torch.allclose(sum_of(1, 2), sum_of(1, 3))


@pytest.mark.parametrize("secret", [None, b"s" * 32])
def test_noise_is_normal_and_each_draw_is_a_new_one(secret: bytes | None) -> None:
    noise = Noise(3, secret, "a purpose")
    one, two = noise.normal((200, 100)), noise.normal((20_000,))
    assert one.shape == (200, 100)
    assert one.dtype == torch.float64
    for drawn in (one.flatten(), two):
        assert stats.kstest(drawn.numpy(), "norm").pvalue > 0.001
    assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two]))[0, 1])) < 0.03
    shares = noise.uniform(20_000)
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 0.001


def test_a_chain_with_a_secret_does_not_show_it_and_is_the_same_chain() -> None:
    plain = Chain((NoisyUpdate(1.0, 1.0),))
    with_secret = Chain(plain.steps, secret=b"s" * 32)
    assert with_secret == plain
    assert "secret" not in repr(with_secret)
    before = {A: torch.zeros(8)}
    one, two = (
        chain.on_client(before, {}, client="c", round=1, before=before, seed=0)[0][A] for chain in (plain, with_secret)
    )
    assert not torch.equal(one, two)


# -- what does not go with it ------------------------------------------------------------------------------------------


def mistakes(tiny_data: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(apply_overrides(tiny_data, overrides), checks=CHECKS)
    return str(caught.value)


CLIENT = "privacy={kind='client', noise_multiplier=1, clipping_norm=1}"
AT_CLIENT = "privacy={kind='client', noise_multiplier=1, clipping_norm=1, noise_at='client'}"
EXAMPLE = "privacy={kind='example', noise_multiplier=1}"


def test_all_that_breaks_the_guarantee_is_refused_at_once(tiny_data: dict[str, Any]) -> None:
    told = mistakes(
        tiny_data,
        CLIENT,
        "wire_dtype=bf16",
        "robust.kind=median",
        "overlap={kind='buffered', buffer=2}",
        "adaptation.share_personal=true",
        "adapter.ranks=[1, 2]",
        "algorithm=hetlora",
    )
    settings = ("weighting", "wire_dtype", "robust.kind", "overlap.kind", "adaptation.share_personal", "privacy.kind")
    for setting in settings:
        assert setting in told, told


def test_a_change_from_values_of_a_clients_own_cannot_be_clipped(tiny_data: dict[str, Any]) -> None:
    for privacy in (CLIENT, AT_CLIENT):
        assert "adapter.own_initial_a" in mistakes(
            tiny_data, privacy, "weighting=uniform", "adapter.own_initial_a=true"
        )


def test_a_rank_that_is_cut_is_no_change_that_noise_could_cover(tiny_data: dict[str, Any]) -> None:
    """Which rank is left depends on the rows, and a cut tensor has no difference from the one before."""
    cut = "its clients may send tensors of other shapes than they were given, so a change cannot be clipped"
    assert cut in mistakes(tiny_data, AT_CLIENT, "algorithm=hetlora", "algorithm_options.decay=0.5")
    parse_recipe(apply_overrides(tiny_data, [AT_CLIENT, "algorithm=hetlora"]), checks=CHECKS)


def test_noise_at_the_client_leaves_the_server_free(tiny_data: dict[str, Any]) -> None:
    data = apply_overrides(tiny_data, [AT_CLIENT, "wire_dtype=bf16", "robust.kind=median"])
    parse_recipe(data, checks=CHECKS)
    parse_recipe(apply_overrides(tiny_data, [AT_CLIENT, "overlap={kind='buffered', buffer=2}"]), checks=CHECKS)


@pytest.mark.parametrize("server", ["server.optimizer=fedadam", "robust={kind='norm_bound', clipping_norm=1}"])
def test_what_is_made_of_the_noisy_mean_goes_with_it(tiny_data: dict[str, Any], server: str) -> None:
    parse_recipe(apply_overrides(tiny_data, [CLIENT, "weighting=uniform", server]), checks=CHECKS)


@pytest.mark.parametrize("algorithm", ["flora", "fedex", "local", "frlora"])
def test_methods_whose_clients_do_not_begin_with_what_the_server_has_are_refused(
    tiny_data: dict[str, Any], algorithm: str
) -> None:
    for privacy in (CLIENT, AT_CLIENT):
        told = mistakes(tiny_data, privacy, "weighting=uniform", f"algorithm={algorithm}")
        assert f"client-level privacy does not go with {algorithm}" in told


@pytest.mark.parametrize("algorithm", ["fedsa", "fedit", "ffa", "rolora"])
def test_methods_that_average_in_place_go_with_it(tiny_data: dict[str, Any], algorithm: str) -> None:
    for privacy in (CLIENT, AT_CLIENT):
        parse_recipe(
            apply_overrides(tiny_data, [privacy, "weighting=uniform", f"algorithm={algorithm}"]), checks=CHECKS
        )


def test_all_that_trains_without_noise_is_refused_where_rows_are_protected(tiny_data: dict[str, Any]) -> None:
    told = mistakes(
        tiny_data,
        EXAMPLE,
        "training.head_warmup_epochs=1",
        "personal_state=reconstruct",
        "holdout_clients=0.3",
        "training.group_by_length=true",
        "training.packing=true",
    )
    settings = ("head_warmup_epochs", "personal_state", "holdout_clients", "group_by_length", "training.packing")
    for setting in settings:
        assert setting in told, told


def test_a_recipe_says_how_much_noise_there_is(tiny_data: dict[str, Any]) -> None:
    told = mistakes(tiny_data, "privacy={kind='client', clipping_norm=1}", "weighting=uniform")
    assert "give target_epsilon, or noise_multiplier" in told


def test_two_ways_to_say_how_much_noise_there_is_must_agree(tiny_data: dict[str, Any]) -> None:
    told = mistakes(tiny_data, "privacy={kind='example', noise_multiplier=1, target_epsilon=8}")
    assert "target_epsilon and noise_multiplier both say how much noise there is" in told


@NEEDS_PRIVACY
def test_noise_that_spends_more_than_the_target_is_refused(tiny_recipe: Callable[..., Any]) -> None:
    both = "privacy={kind='client', noise_multiplier=1, target_epsilon=8, clipping_norm=1, noise_at='client'}"
    with pytest.raises(ConfigError, match=r"with 1 a client spends ε = .* in 9 rounds, and target_epsilon is 8"):
        with_noise(tiny_recipe(both), 9)
    wanted = tiny_recipe("privacy={kind='client', target_epsilon=8, clipping_norm=1, noise_at='client'}")
    written = with_noise(wanted, 9)
    assert written.privacy.noise_multiplier == noise_multiplier_for(8.0, 1e-5, 9)
    assert with_noise(written, 9) == written, "a run's own recipe has both"


@NEEDS_PRIVACY
@pytest.mark.run
def test_across_machines_noise_is_enough_for_every_round(tiny_recipe: Callable[..., Any]) -> None:
    """Sites come and go, so that nobody knows how often a client will be drawn."""
    settings = ("rounds=9", "fraction_train=0.4", "weighting=uniform", 'task.labels=["bad","good"]')
    recipe = tiny_recipe(*settings, "privacy={kind='client', target_epsilon=8, clipping_norm=1}")
    clients = ["a", "b", "c", "d", "e"]
    assert most_rounds(recipe, clients) < 9
    agreed = agree(recipe, clients).recipe.privacy
    assert agreed.noise_multiplier == noise_multiplier_for(8.0, 1e-5, 9)


def lines(*asked: tuple[int, str, bool, bool]) -> list[str]:
    """Return lines of the metrics of overlapping rounds: round, client, whether it was asked, whether it came."""
    made = [
        {"round": round, "client": client, "train": {} if came else None, "asked": was}
        for round, client, was, came in asked
    ]
    return [json.dumps(line) for line in made]


@NEEDS_PRIVACY
def test_where_rounds_overlap_a_client_has_spent_when_it_was_asked(tiny_recipe: Callable[..., Any]) -> None:
    """Its update comes in a later round, or too late to count."""
    at_client = "privacy={kind='client', noise_multiplier=4, clipping_norm=1, noise_at='client'}"
    about = {client: {"folder": client} for client in ("a", "b", "c")}
    text = lines((1, "a", True, True), (1, "b", True, False), (2, "a", True, True), (3, "b", False, True))
    told = privacy_of(tiny_recipe(at_client), text, about)["privacy"]["per_client"]
    assert {client: entry["rounds"] for client, entry in told.items()} == {"a": 2, "b": 1, "c": 0}
    before = [json.dumps({"round": 1, "client": c, "train": t, **m}) for c, t, m in (("a", {}, {}), ("b", None, {}))]
    lost = json.dumps({"round": 1, "client": "c", "train": None, "lost": True})
    told = privacy_of(tiny_recipe(at_client), [*before, lost], about)["privacy"]["per_client"]
    assert {client: entry["rounds"] for client, entry in told.items()} == {"a": 1, "b": 0, "c": 1}


def test_the_most_rounds_of_a_client_are_those_that_the_server_draws(tiny_recipe: Callable[..., Any]) -> None:
    recipe = tiny_recipe("rounds=12", "fraction_train=0.3")
    clients = [f"c{number}" for number in range(10)]
    algorithm = make_algorithm("fedit", {})
    server = Server(algorithm, algorithm.init({}), clients, seed=recipe.seed, fraction_train=0.3)
    drawn = [client for round in range(1, 13) for client in server.sample(round)]
    assert most_rounds(recipe, clients) == max(map(drawn.count, clients)) < 12
    assert most_rounds(tiny_recipe("rounds=12"), clients) == 12


# -- a run -------------------------------------------------------------------------------------------------------------


@NEEDS_PRIVACY
@pytest.mark.run
def test_a_run_spends_what_it_was_told_to(tiny_run: Callable[..., Any]) -> None:
    wanted = "privacy={kind='client', target_epsilon=4.0, clipping_norm=0.5}"
    run = tiny_run(wanted, "weighting=uniform", "keep_rounds=all")
    told = run.summary["privacy"]
    assert told["kind"] == "client"
    assert 3.9 < told["epsilon"] <= 4.0
    assert (told["delta"], told["clipping_norm"]) == (1e-5, 0.5)
    assert told["noise_multiplier"] == run.federation.recipe.privacy.noise_multiplier > 1
    assert {entry["rounds"] for entry in told["per_client"].values()} == {2}
    states = [run.folder.server_states.load_server(round)[0] for round in (1, 2)]
    keys = [key for key in states[0] if run.federation.algorithm.plan(key, 1).sent]
    noise = torch.cat([(states[1][key] - states[0][key]).flatten() for key in keys])
    assert float(noise.std()) == pytest.approx(told["noise_multiplier"] * 0.5 / 3, rel=0.35)


@NEEDS_PRIVACY
@pytest.mark.run
def test_a_client_that_is_asked_less_often_spends_less(tiny_run: Callable[..., Any]) -> None:
    settings = ("rounds=2", "fraction_train=0.67", "weighting=uniform")
    run = tiny_run("privacy={kind='client', target_epsilon=4.0, clipping_norm=0.5, noise_at='client'}", *settings)
    told = run.summary["privacy"]["per_client"]
    rounds = {client: entry["rounds"] for client, entry in told.items()}
    assert sum(rounds.values()) == 4, "of three clients, so not all alike"
    by_rounds = sorted((entry["rounds"], entry["epsilon"]) for entry in told.values())
    assert by_rounds[0][1] < by_rounds[-1][1] <= 4.0
