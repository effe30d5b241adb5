"""What the server does against a client that sends anything at all, against numbers worked out by hand or by numpy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa.algorithms import check_algorithm, make_algorithm
from fedsa.algorithms.base import ServerState
from fedsa.cost.plan import plan_run
from fedsa.errors import ConfigError, ProtocolError
from fedsa.recipe import (
    FedAdamSettings,
    FedAvgMSettings,
    MedianSettings,
    StepSettings,
    dump_recipe,
    parse_recipe,
    robust_settings,
    server_settings,
)
from fedsa.server import Server
from fedsa.steps import check_steps, make_chain
from fedsa.steps.base import Step
from fedsa.steps.cast import Cast
from fedsa.steps.chain import Chain
from fedsa.steps.median import Median
from fedsa.steps.norm_bound import NormBound
from fedsa.steps.server_optimizer import ServerOptimizer
from fedsa.steps.trimmed_mean import TrimmedMean
from fedsa.testing import check_step
from fedsa.types import Factor, Key, State, Update
from support.methods import Halving

A, B = Key("layer", Factor.A), Key("layer", Factor.B)
VALUES = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=9)


@pytest.mark.parametrize(
    "step",
    [
        *(Cast("fp32"), Cast("bf16"), Median(), TrimmedMean(0.25), NormBound(1.0)),
        *(ServerOptimizer(server_settings({"optimizer": name})) for name in ("fedavgm", "fedadam", "fedyogi")),
    ],
    ids=lambda step: step.name,
)
def test_every_step_obeys_the_laws(step: Step) -> None:
    check_step(step)


@pytest.mark.parametrize("kind", ["none", "median", "trimmed_mean", "norm_bound"])
def test_a_recipe_gets_the_step_that_it_asks_for(kind: str) -> None:
    given = robust_settings({"kind": kind, **({"clipping_norm": 2} if kind == "norm_bound" else {})})
    expected = {"median": [Median()], "trimmed_mean": [TrimmedMean(0.2)], "norm_bound": [NormBound(2.0)]}.get(kind, [])
    assert list(make_chain(StepSettings(robust=given)).steps) == [*expected, Cast("fp32")]


def test_a_client_takes_the_cast_last_and_the_server_its_optimiser_last() -> None:
    asked = make_chain(StepSettings("bf16", FedAdamSettings(), MedianSettings()))
    assert [step.name for step in asked.steps] == ["fedadam", "median", "cast"]


def aggregated(step: Step, values: list[list[float]], before: float = 0.0, **options: Any) -> list[float]:
    """Return the server's value after a round in which clients of 1, 2, 3, ... rows sent the given values."""
    algorithm = make_algorithm("fedit", {})
    state = algorithm.init({A: torch.full((len(values[0]),), before)})
    clients = [f"c{number}" for number in range(len(values))]
    server = Server(algorithm, state, clients, seed=0, steps=Chain((step,)), **options)
    server.begin_round(1)
    updates = [
        Update(c, 1, 1 + n, {A: torch.tensor(value)}) for n, (c, value) in enumerate(zip(clients, values, strict=True))
    ]
    server.end_round(1, updates)
    return server.state.tensors[A].tolist()


@given(values=VALUES)
@settings(deadline=None)
def test_the_median_is_that_of_each_number(values: list[list[float]]) -> None:
    expected = [statistics.median(column) for column in zip(*values, strict=True)]
    assert aggregated(Median(), values) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(values=VALUES, fraction=st.floats(0.01, 0.49))
@settings(deadline=None)
def test_the_trimmed_mean_is_that_of_each_number(values: list[list[float]], fraction: float) -> None:
    cut = int(fraction * len(values))
    expected = [np.mean(sorted(column)[cut : len(column) - cut]) for column in zip(*values, strict=True)]
    assert aggregated(TrimmedMean(fraction), values) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_clients_of_few_rows_count_as_much_as_others_in_a_median() -> None:
    assert aggregated(Median(), [[1.0], [5.0], [9.0], [9.0]]) == [7.0]


@given(values=VALUES, norm=st.floats(0.1, 50), before=st.floats(-5, 5, width=32))
@settings(deadline=None)
def test_no_client_pulls_further_than_the_bound(values: list[list[float]], norm: float, before: float) -> None:
    weights = np.arange(1, len(values) + 1)
    changes = np.array(values) - before
    lengths = np.linalg.norm(changes, axis=1)
    factors = np.array([1.0 if length <= norm else norm / length for length in lengths])
    expected = before + (weights * factors) @ changes / weights.sum()
    found = aggregated(NormBound(norm), values, before)
    assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5)
    assert np.linalg.norm(np.array(found) - before) <= norm * (1 + 1e-5)


def test_the_norm_is_of_all_tensors_together_and_what_is_within_is_untouched() -> None:
    before: State = {A: torch.ones(2), B: torch.zeros(1, 1)}
    near = Update("a", 1, 1, {A: torch.ones(2) + torch.tensor([3.0, 0.0]), B: torch.tensor([[4.0]])})
    assert NormBound(5.0).on_server(near, 1, before) == (near, 1)
    bounded, _ = NormBound(2.5).on_server(near, 1, before)
    assert bounded.tensors[A].tolist() == [2.5, 1.0]
    assert bounded.tensors[B].tolist() == [[2.0]]


def test_the_order_of_an_updates_tensors_does_not_matter() -> None:
    """Beside 10¹⁶ each 1 is lost by itself, but not their sum: the order of adding up would change the norm."""
    sent = {Key(f"layer.{number:02d}", Factor.A): torch.ones(1, dtype=torch.float64) for number in range(64)}
    sent[Key("layer.64", Factor.A)] = torch.full((1,), 1e8, dtype=torch.float64)
    before = {key: torch.zeros(1) for key in sent}
    one, _ = NormBound(1.0).on_server(Update("a", 1, 1, sent), 1, before)
    two, _ = NormBound(1.0).on_server(Update("a", 1, 1, dict(reversed(sent.items()))), 1, before)
    assert one.tensors == two.tensors


def test_a_bound_measures_a_client_of_a_lower_rank_by_the_part_it_has() -> None:
    before: State = {A: torch.tensor([[1.0], [100.0]])}
    bounded, _ = NormBound(1.0).on_server(Update("a", 1, 1, {A: torch.tensor([[3.0]])}), 1, before)
    assert bounded.tensors[A].tolist() == [[2.0]]


def test_what_came_in_bf16_is_not_rounded_to_it_again() -> None:
    sent = {A: torch.tensor([3.0, 1.0], dtype=torch.bfloat16)}
    bounded, _ = NormBound(1.0).on_server(Update("a", 1, 1, sent), 1, {A: torch.zeros(2)})
    assert bounded.tensors[A].dtype == torch.float32
    assert float(bounded.tensors[A].norm()) == pytest.approx(1.0)


HONEST = [[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [1.05, 0.95]]


@pytest.mark.parametrize("attack", [[100.0, 100.0], [-100.0, -100.0], [3e38, -3e38]], ids=str)
@pytest.mark.parametrize(
    ("step", "most"), [(Median(), 0.11), (TrimmedMean(0.2), 0.11), (NormBound(2.0), 1.2)], ids=lambda x: str(x)
)
def test_one_bad_client_of_five_does_not_carry_the_mean_away(step: Step, most: float, attack: list[float]) -> None:
    found = torch.tensor(aggregated(step, [*HONEST, attack], weighting="uniform"))
    assert float((found - 1).abs().max()) <= most
    plain = torch.tensor(aggregated(Cast(), [*HONEST, attack], weighting="uniform"))
    assert float((plain - 1).abs().max()) > 10


@pytest.mark.parametrize("step", [Median(), TrimmedMean(0.4), NormBound(1.0)], ids=lambda step: step.name)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_still_refused_and_named(step: Step, value: float) -> None:
    with pytest.raises(ProtocolError, match=r"^update of client 'c1' for round 1: layer:A:default is not finite$"):
        aggregated(step, [[1.0], [value], [2.0]])
    assert aggregated(step, [[1.0], [value], [0.5]], quorum=2) == pytest.approx(
        [0.75 if step.name != "norm_bound" else (1.0 + 3 * 0.5) / 4]
    )


def test_a_median_without_updates_changes_nothing() -> None:
    algorithm = make_algorithm("fedit", {})
    state = algorithm.init({A: torch.ones(2)})
    server = Server(algorithm, state, ["a"], seed=0, steps=Chain((Median(),)))
    server.begin_round(1)
    server.end_round(1, [])
    assert server.state.tensors[A].tolist() == [1.0, 1.0]


def test_a_client_that_has_cut_its_rank_does_not_end_the_median() -> None:
    algorithm = Halving()
    state = ServerState({A: torch.full((2, 1), 7.0)}, {A: 0})
    server = Server(algorithm, state, ["a", "b", "c"], seed=0, steps=Chain((Median(),)))
    server.begin_round(1)
    server.end_round(
        1,
        [
            Update(c, 1, 1, {A: torch.tensor(v)})
            for c, v in (("a", [[1.0]]), ("b", [[2.0], [3.0]]), ("c", [[3.0], [9.0]]))
        ],
    )
    assert server.state.tensors[A].tolist() == [[2.0], [7.0]]


def test_two_steps_cannot_take_the_place_of_the_mean() -> None:
    with pytest.raises(ValueError, match=r"not both median and trimmed_mean: remove one$"):
        Chain((Median(), TrimmedMean(0.1)))


def test_a_median_and_a_server_optimiser_go_together() -> None:
    """FedAvgM without momentum makes half a step to the median: 0 → ½·2."""
    optimizer = ServerOptimizer(FedAvgMSettings(momentum=0.0, learning_rate=0.5))
    algorithm = make_algorithm("fedit", {})
    server = Server(
        algorithm, algorithm.init({A: torch.zeros(1)}), ["a", "b", "c"], seed=0, steps=Chain((optimizer, Median()))
    )
    server.begin_round(1)
    server.end_round(1, [Update(c, 1, 1, {A: torch.tensor([v])}) for c, v in (("a", 1.0), ("b", 2.0), ("c", 90.0))])
    assert server.state.tensors[A].tolist() == [1.0]


# -- the recipe -------------------------------------------------------------------------------------------------------

NO_MEAN = "its server needs each client's update, not their mean"
MEANS_BESIDE = "its server computes with numbers that must be means, as those of the tensors are"
NUMBERS_BESIDE = "its clients also send numbers about their change, which would not fit a smaller one"


@pytest.mark.parametrize(
    ("name", "robust", "reason"),
    [
        ("fedsa", {"kind": "median"}, None),
        ("fedsvd", {"kind": "trimmed_mean"}, None),
        ("frlora", {"kind": "median"}, None),
        ("fedex", {"kind": "median"}, NO_MEAN),
        ("flora", {"kind": "trimmed_mean"}, NO_MEAN),
        ("fedex", {"kind": "norm_bound", "clipping_norm": 1.0}, None),
        ("local", {"kind": "norm_bound", "clipping_norm": 1.0}, "it sends nothing"),
        ("local", {"kind": "median"}, "it sends nothing"),
        ("local", {"kind": "none"}, None),
        ("partial_pooling", {"kind": "median"}, None),
        ("potara", {"kind": "median"}, None),
    ],
)
def test_what_does_not_go_with_a_method_is_refused_with_the_reason(
    name: str, robust: dict[str, Any], reason: str | None
) -> None:
    mistakes = check_steps({"algorithm": name, "robust": robust})
    expected = [] if reason is None else [("robust.kind", f"{robust['kind']} does not go with {name}: {reason}")]
    assert [(mistake.where, mistake.what) for mistake in mistakes] == expected


@pytest.mark.parametrize(
    ("robust", "reason"),
    [
        ({"kind": "median"}, MEANS_BESIDE),
        ({"kind": "trimmed_mean"}, MEANS_BESIDE),
        ({"kind": "norm_bound", "clipping_norm": 1.0}, NUMBERS_BESIDE),
        ({"kind": "poison_score"}, None),
    ],
    ids=str,
)
def test_numbers_beside_the_tensors_must_stay_what_they_are(robust: dict[str, Any], reason: str | None) -> None:
    """Where a share is estimated, clients send numbers about their change; where it is given, there are none."""
    data = {"algorithm": "partial_pooling", "robust": robust}
    told = [mistake.what for mistake in check_steps({**data, "algorithm_options": {"own_share": "difference"}})]
    assert told == ([] if reason is None else [f"{robust['kind']} does not go with partial_pooling: {reason}"])
    assert check_steps({**data, "algorithm_options": {"own_share": 0.5}}) == []


def test_a_median_of_clients_with_different_ranks_is_refused() -> None:
    data = {"algorithm": "fedit", "adapter": {"ranks": [2, 4]}, "robust": {"kind": "median"}}
    (mistake,) = check_steps(data)
    assert mistake.what.endswith("leave adapter.ranks out")
    assert check_steps({**data, "robust": {"kind": "norm_bound", "clipping_norm": 1.0}}) == []


def test_a_server_does_not_begin_with_a_step_that_its_method_would_leave_out() -> None:
    algorithm = make_algorithm("fedex", {})
    with pytest.raises(ConfigError, match=f"robust.kind: median does not go with this method: {NO_MEAN}"):
        Server(algorithm, algorithm.init({A: torch.zeros(1)}), ["a"], seed=0, steps=Chain((Median(),)))


@pytest.mark.parametrize(
    "data",
    [{"robust": 3}, {"robust": {"kind": 3}}, {"algorithm": 3}, {"algorithm": "fedsaa"}, {"adapter": 3}, {"server": []}],
    ids=str,
)
def test_other_mistakes_are_left_to_whoever_finds_them(data: dict[str, Any]) -> None:
    assert check_steps(data) == []


@pytest.mark.parametrize(
    ("robust", "text"),
    [
        ({"kind": "mean"}, "robust: kind = 'mean': did you mean 'median'?"),
        ({"kind": "norm_bound"}, "robust: kind = 'norm_bound' needs `clipping_norm`"),
        ({"kind": "norm_bound", "clipping_norm": 0}, "robust.clipping_norm: input should be greater than 0"),
        (
            {"kind": "median", "clipping_norm": 1},
            "robust: `clipping_norm` does not go with kind = 'median'; it goes with norm_bound",
        ),
        (
            {"kind": "norm_bound", "clipping_norm": 1, "trim_fraction": 0.1},
            "`trim_fraction` does not go with kind = 'norm_bound'; it goes with trimmed_mean",
        ),
        ({"kind": "trimmed_mean", "trim_fraction": 0.5}, "robust.trim_fraction: input should be less than 0.5"),
        ({"trim_fraction": 0.1}, "`trim_fraction` does not go with kind = 'none'; it goes with trimmed_mean"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(tiny_data: dict[str, Any], robust: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({**tiny_data, "robust": robust}, checks=[check_algorithm, check_steps])
    assert text in str(caught.value)


def test_the_section_is_written_out_and_read_back(tiny_recipe: Callable[..., Any]) -> None:
    import tomllib

    recipe = tiny_recipe("robust.kind=trimmed_mean")
    assert tomllib.loads(dump_recipe(recipe))["robust"] == {"kind": "trimmed_mean", "trim_fraction": 0.2}
    assert parse_recipe(tomllib.loads(dump_recipe(recipe))) == recipe


# -- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.run
def test_a_plan_counts_the_updates_that_the_server_holds_at_once(tiny_recipe: Callable[..., Any]) -> None:
    plain, median, stacked, bf16 = (
        plan_run(tiny_recipe(*settings), clients=3)
        for settings in (
            ("algorithm=fedit",),
            ("algorithm=fedit", "robust.kind=median"),
            ("algorithm=lora_fair",),
            ("algorithm=fedit", "robust.kind=median", "wire_dtype=bf16"),
        )
    )
    held = [plan["memory"]["server"] - plain["memory"]["server"] for plan in (median, stacked, bf16)]
    upload = plain["upload_bytes"]
    assert held == [3 * upload, 3 * upload, 3 * upload // 2]


def test_a_run_sends_the_bytes_of_its_plan_and_stays_within_the_bound(tiny_run: Callable[..., Any]) -> None:
    settings = ("robust={kind='norm_bound', clipping_norm=0.001}", "wire_dtype=bf16", "rounds=2")
    run, free = tiny_run(*settings), tiny_run("wire_dtype=bf16", "rounds=2")
    planned = plan_run(run.federation.recipe)
    for name in ("upload_bytes", "download_bytes", "total_upload_bytes", "total_download_bytes"):
        assert planned[name] == run.summary[name] == free.summary[name], name
    assert run.summary["robust"] == "norm_bound"
    assert free.summary["robust"] == "none"
    initial, bounded, unbounded = (
        run.folder.load_initial(),
        run.folder.server_states.load_server(1)[0],
        free.folder.server_states.load_server(1)[0],
    )
    sent = [key for key in initial if key.factor is Factor.A]

    def distance(tensors: State) -> float:
        return float(torch.cat([(tensors[key] - initial[key]).flatten() for key in sent]).norm())

    assert distance(unbounded) > 0.01
    assert 0 < distance(bounded) <= 0.001 * (1 + 1e-5)
