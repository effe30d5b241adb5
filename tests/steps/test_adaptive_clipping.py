"""A clipping norm that adapts itself: where it goes, what it costs, what travels, and that it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsa.accounting import epsilon_of, noise_of_updates, privacy_in_words
from fedsa.adapters.algebra import norm_of
from fedsa.algorithms import make_algorithm
from fedsa.algorithms.base import ServerState
from fedsa.callbacks import Callback
from fedsa.engines.simulator import simulate
from fedsa.errors import ConfigError, ProtocolError
from fedsa.federation import Federation
from fedsa.federation.resolving import with_count_noise
from fedsa.recipe import StepSettings, dump_recipe, privacy_settings
from fedsa.runs.report.page import report_html
from fedsa.server import Server
from fedsa.steps import make_chain
from fedsa.steps.adaptive_clipping import NORM, WITHIN, AdaptiveMean, norms_in
from fedsa.steps.base import Slots
from fedsa.steps.cast import Cast
from fedsa.steps.chain import Chain
from fedsa.steps.norm_bound import NormBound
from fedsa.steps.poison_score import PoisonScore
from fedsa.store import RunFolder
from fedsa.testing import check_step
from fedsa.types import Factor, Key, State, Update
from support.extras import NEEDS_PRIVACY

A = Key("layer", Factor.A)
ADAPTIVE = "privacy={kind='client', target_epsilon=8.0, clipping_norm=0.1, clipping='adaptive'}"


@pytest.mark.parametrize("step", [AdaptiveMean(1.0, 0.5, 0.5, 0.2, 1.0), AdaptiveMean(0.1, 0.0, 0.9, 0.2, 0.0)])
def test_the_step_obeys_the_laws(step: AdaptiveMean) -> None:
    check_step(step)


def test_a_recipe_gets_the_step_that_it_asks_for() -> None:
    given = privacy_settings(
        {"kind": "client", "noise_multiplier": 2, "clipping_norm": 3, "clipping": "adaptive", "count_noise": 4}
    )
    assert list(make_chain(StepSettings(privacy=given)).steps) == [AdaptiveMean(3.0, 2.0, 0.5, 0.2, 4.0), Cast("fp32")]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"clipping": "adaptive", "noise_at": "client"}, "each client would hide its own bit"),
        ({"clipping": "adaptive", "count_noise": 1.0}, "not more than half of noise_multiplier = 2"),
        ({"target_quantile": 0.6, "count_noise": 9.0}, "target_quantile and count_noise: only with clipping"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        privacy_settings({"kind": "client", "noise_multiplier": 2, "clipping_norm": 1, **settings})


def rounds(
    step: AdaptiveMean, sizes: list[float], count: int, *, slots: Slots | None = None, first: int = 1, **how: Any
) -> tuple[Slots, torch.Tensor]:
    """Play rounds in which each client comes with a change of a norm of its own; return the slots and the value."""
    chain, state = Chain((step,)), ServerState({A: torch.zeros(4)}, {A: 0}, slots=slots or {})
    for round in range(first, first + count):
        before = {**state.tensors, **chain.notes_to_client(state.slots)}
        updates = []
        for number, size in enumerate(sizes):
            after = {A: state.tensors[A] + torch.tensor([size, 0.0, 0.0, 0.0])}
            sent, _ = chain.on_client(after, {}, client=f"c{number}", round=round, before=before, seed=0)
            updates.append(chain.on_server(Update(f"c{number}", round, 1, sent), 1, state.tensors))
        mean, kept = chain.mean(iter(updates), state, round, 0, how.get("asked"))
        assert set(mean) == {A}, "the note is no tensor of the model"
        state = replace(state, tensors={A: mean[A].float()}, slots=kept)
    return state.slots, state.tensors[A]


@pytest.mark.run
@pytest.mark.parametrize(("first", "quantile", "low", "high"), [(0.01, 0.5, 5.0, 6.0), (90.0, 0.75, 7.0, 9.0)])
def test_the_norm_comes_to_the_quantile_of_known_norms(first: float, quantile: float, low: float, high: float) -> None:
    sizes = [float(size) for size in range(1, 11)]
    slots, _ = rounds(AdaptiveMean(first, 0.0, quantile, 0.5, 0.0), sizes, 50)
    last = norms_in(slots, 51)[-15:]
    assert low * 0.9 < min(last) <= max(last) < high * 1.1
    noisy, _ = rounds(AdaptiveMean(first, 1.0, quantile, 0.5, 0.6), sizes, 70)
    assert np.exp(np.log(norms_in(noisy, 71)[-40:]).mean()) == pytest.approx((low + high) / 2, rel=0.2)


def test_a_round_moves_the_norm_as_the_formula_says() -> None:
    """Of four that were asked three came, two of them within: 1/2 + (2 · 1/2 - 1/2) / 4 = 0.625."""
    slots, _ = rounds(AdaptiveMean(2.0, 0.0, 0.4, 0.3, 0.0), [1.0, 2.0, 5.0], 1, asked=4)
    assert norms_in(slots, 2) == pytest.approx([2.0, 2.0 * np.exp(-0.3 * (0.625 - 0.4))], rel=1e-5)


def test_a_round_to_which_nobody_came_leaves_the_norm() -> None:
    step = AdaptiveMean(2.0, 0.0, 0.5, 0.3, 0.0)
    slots, _ = rounds(step, [1.0], 1)
    skipped, _ = rounds(step, [1.0], 1, slots=slots, first=4)
    norms = norms_in(skipped, 5)
    assert norms[1] == norms[2] == norms[3] < norms[0]
    assert norms[4] < norms[3]


def test_noise_on_updates_is_of_the_rounds_own_norm_and_larger_by_the_share_of_the_count() -> None:
    step = AdaptiveMean(0.5, 2.0, 0.5, 0.2, 1.25)
    assert noise_of_updates(2.0, 1.25) == pytest.approx(1 / (1 / 4 - 1 / 6.25) ** 0.5)
    size, norm = 40_000, 3.0
    slots = {next(iter(rounds(step, [1.0], 1)[0])): torch.tensor([0.5, norm])}
    state = ServerState({A: torch.zeros(size)}, {A: 0}, slots=slots)
    sent = {A: torch.zeros(size), WITHIN: torch.tensor(1.0)}
    mean, _ = Chain((step,)).mean(iter([(Update("c", 2, 1, sent), 1)] * 4), state, 2, 0)
    assert float(mean[A].std()) == pytest.approx(norm * noise_of_updates(2.0, 1.25) / 4, rel=0.02)


def test_noise_on_the_count_has_the_size_that_is_accounted_for() -> None:
    step = AdaptiveMean(1.0, 1.0, 0.5, 1.0, 3.0)
    drawn = []
    for seed in range(500):
        sent = {A: torch.zeros(1), WITHIN: torch.tensor(1.0)}
        state = ServerState({A: torch.zeros(1)}, {A: 0})
        _, slots = Chain((step,)).mean(iter([(Update("c", 1, 1, sent), 1)] * 2), state, 1, seed)
        drawn.append(-np.log(float(*[norms[1] for norms in slots.values()])) + 0.5)
    assert np.mean(drawn) == pytest.approx(1.0, abs=0.25)
    assert np.std(drawn) == pytest.approx(3.0 / 2, rel=0.12)


@NEEDS_PRIVACY
@pytest.mark.parametrize(("noise", "count_noise"), [(1.0, 5.0), (4.0, 4.0), (2.0, 1.1)])
def test_both_noises_together_cost_what_is_told(noise: float, count_noise: float) -> None:
    """By the accountant, of the two mechanisms one after the other: sensitivities C and 1/2."""
    from dp_accounting import ComposedDpEvent, GaussianDpEvent, SelfComposedDpEvent, pld

    each = [GaussianDpEvent(noise_of_updates(noise, count_noise)), GaussianDpEvent(count_noise / 0.5)]
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(SelfComposedDpEvent(ComposedDpEvent(each), 10))
    assert epsilon_of(noise, 10, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)
    assert noise_of_updates(noise, count_noise) > noise


def test_noise_on_the_count_that_is_left_open_is_the_papers_and_never_much(tiny_recipe: Callable[..., Any]) -> None:
    def written(asked: int, noise: float, **more: float) -> Any:
        settings = "".join(f", {name}={value}" for name, value in more.items())
        given = f"privacy={{kind='client', noise_multiplier={noise}, clipping_norm=1, clipping='adaptive'{settings}}}"
        return with_count_noise(tiny_recipe(given, "weighting=uniform"), asked).privacy.count_noise

    assert written(100, 1.0) == 5.0
    assert written(8, 1.0) == 1.0
    assert noise_of_updates(1.0, written(8, 1.0)) == pytest.approx(1.1547, rel=1e-4)
    assert written(100, 0.0) == 0.0
    assert written(8, 1.0, count_noise=0.75) == 0.75
    resolved = tiny_recipe(ADAPTIVE.replace("0.1,", "0.1, count_noise=0.7,"), "weighting=uniform")
    resolved = resolved.model_copy(update={"privacy": resolved.privacy.model_copy(update={"noise_multiplier": 1.5})})
    with pytest.raises(ConfigError, match=r"not more than half of the noise_multiplier 1\.5"):
        with_count_noise(resolved, 8)


def test_a_client_says_whether_its_change_was_within_the_norm_that_the_server_sent() -> None:
    step, start = AdaptiveMean(1.0, 1.0, 0.5, 0.2, 1.0), {A: torch.zeros(2)}

    def sent(norm: float) -> State:
        after = {A: torch.tensor([3.0, 4.0])}
        before = {**start, NORM: torch.tensor(norm)}
        return Chain((step,)).on_client(after, {}, client="c", round=1, before=before, seed=0)[0]

    assert {norm: float(sent(norm)[WITHIN]) for norm in (4.9, 5.0, 5.1)} == {4.9: 0.0, 5.0: 1.0, 5.1: 1.0}
    assert norm_of({A: sent(2.0)[A]}) == pytest.approx(2.0, rel=1e-5)
    assert norm_of({A: sent(0.0)[A]}) == 0.0
    for norm in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ProtocolError, match="the server sends a clipping norm of"):
            sent(norm)


def test_another_norm_has_another_noise() -> None:
    """The same noise, made larger and smaller on one sum, would tell both the noise and the sum."""
    step, start = AdaptiveMean(1.0, 1.0, 0.5, 0.2, 1.0), {A: torch.zeros(64)}

    def noise(norm: float) -> torch.Tensor:
        state = ServerState(start, {A: 0}, slots={f"by round|{NORM}": torch.tensor([norm])})
        updates = [(Update("c", 1, 1, {A: torch.ones(64), WITHIN: torch.tensor(1.0)}), 1)]
        mean, _ = Chain((step,), b"s" * 32).mean(iter(updates), state, 1, 0)
        return (mean[A] - 1.0) / norm

    assert torch.allclose(noise(1.0), noise(1.0))
    assert not torch.allclose(noise(1.0), noise(2.0), atol=0.5)


def test_a_client_that_lies_about_its_bit_counts_as_one_client() -> None:
    chain = Chain((NormBound(0.1), AdaptiveMean(1.0, 0.0, 0.5, 0.2, 0.0)))
    for said, taken in ((1e30, 1.0), (-7.0, 0.0)):
        update = Update("c", 1, 1, {A: torch.ones(2), WITHIN: torch.tensor(said)})
        made, _ = chain.on_server(update, 1, {A: torch.zeros(2)})
        assert float(made.tensors[WITHIN]) == taken
        assert norm_of({A: made.tensors[A]}) == pytest.approx(0.1), "a norm bound is of the tensors alone"
    b = Key("layer", Factor.B)  # no A is sent in this round: all that is sent is compared, but no note
    updates = [Update(name, 1, 1, {b: torch.ones(2), WITHIN: torch.tensor(1.0)}) for name in ("c", "d", "e")]
    assert len(PoisonScore(1.0, leave_out=False).screen(updates, {b: torch.zeros(2)})) == 3


def test_the_server_sends_the_norm_for_training_and_refuses_updates_without_the_bit() -> None:
    algorithm, step = make_algorithm("fedit", {}), AdaptiveMean(1.0, 0.0, 0.5, 0.2, 0.0)
    server = Server(
        algorithm, algorithm.init({A: torch.zeros(1)}), ["a"], seed=0, weighting="uniform", steps=Chain((step,))
    )
    assert float(server.payload("a", 1).tensors[NORM]) == 1.0
    assert NORM not in server.payloads(["a"], 1)["a"].tensors, "nobody is measured with it"
    server.begin_round(1)
    with pytest.raises(ProtocolError, match=r"privacy\.within_norm"):
        server.end_round(1, [Update("a", 1, 1, {A: torch.ones(1)})])
    server.end_round(1, [Update("a", 1, 1, {A: torch.ones(1), WITHIN: torch.tensor(1.0)})])
    assert float(server.payload("a", 2).tensors[NORM]) == pytest.approx(np.exp(-0.1))


def test_the_sentence_says_from_where_to_where() -> None:
    spent: Mapping[str, Any] = {
        "kind": "client", "epsilon": 7.9, "delta": 1e-5, "noise_multiplier": 1.2, "clipping_norm": 0.1,
        "adaptive_clipping": {"norms": [0.1, 0.2, 0.31234]},
    }  # fmt: skip
    assert "clipping norm from 0.1 to 0.312)" in privacy_in_words(spent)


# -- a run -------------------------------------------------------------------------------------------------------------


@NEEDS_PRIVACY
@pytest.mark.run
def test_a_run_that_was_stopped_goes_on_with_the_same_norms_to_the_same_bytes(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    settings = (ADAPTIVE, "weighting=uniform", "rounds=3")
    whole = tiny_run(*settings)
    told = whole.summary["privacy"]
    assert 7.9 < told["epsilon"] <= 8.0
    norms = told["adaptive_clipping"]["norms"]
    assert norms[0] == pytest.approx(0.1)
    assert len(set(norms)) == 3
    assert told["adaptive_clipping"]["count_noise"] == told["noise_multiplier"]

    class Stop(Callback):
        def on_round_end(self, round: int, *_: Any) -> None:
            if round == 2:
                raise KeyboardInterrupt

    federation = Federation.from_recipe(whole.federation.recipe)
    recipe = dump_recipe(federation.recipe)
    with RunFolder.create(tmp_path / "run", recipe).locked() as folder, pytest.raises(KeyboardInterrupt):
        simulate(federation, folder, callbacks=[Stop()])
    with RunFolder.open(tmp_path / "run", write=True).locked() as folder:
        again = simulate(federation, folder)
    assert again["privacy"] == told
    one, two = (run.server_states.load_server(3) for run in (whole.folder, folder))
    for kind in (0, 2):
        assert one[kind].keys() == two[kind].keys()
        assert all(one[kind][key].numpy().tobytes() == value.numpy().tobytes() for key, value in two[kind].items())
    page = report_html(tmp_path / "run")
    assert "It followed the norm that 50.0 % of" in page.replace("\u00a0", " ")
    assert all(f'<td data-label="Clipping norm">{norm:.4g}</td>' in page for norm in norms)
    for name in ("total_upload_bytes", "total_download_bytes", "upload_bytes", "download_bytes"):
        assert again[name] == whole.summary[name]
