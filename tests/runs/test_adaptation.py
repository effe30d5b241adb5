"""Clients that are held out of the federation, and one model for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.client.evaluation import evaluate
from fedsa.client.state import personal_tensors
from fedsa.client.training import sequential
from fedsa.client.training.job import Job
from fedsa.federation import Federation
from fedsa.recipe import Recipe
from fedsa.runs.export import export
from fedsa.runs.global_model import fit_global
from fedsa.runs.onboarding import Onboarding, cluster_means
from fedsa.runs.personal import PersonalStates, mean_personal
from fedsa.seeds import derive_seed
from fedsa.server import held_out, load_state, received_by
from fedsa.types import Factor, Key, Side, State

SIX = (
    "data.partition={kind='iid', clients=6}",
    "training.learning_rate=0.05",
    "rounds=3",
    "training.trainer=sequential",
)
HELD = (*SIX, "holdout_clients=0.34", "adaptation.steps=4")


def begun(run: Any, client: str) -> State:
    """Return what the server would send a client that has nothing of its own, over the initial values."""
    federation, round = run.federation, run.summary["chosen_round"]
    server = load_state(run.folder.server_states, round) if round else federation.initial_state()
    received = received_by(federation.algorithm, server, client, round + 1)
    return personal_tensors(federation.algorithm, federation.model.initial, None, received)


def measured(federation: Federation, client: str, tensors: State) -> dict[str, float]:
    rows = federation.rows.partition.clients[client].test
    ((_, metrics),) = evaluate(
        federation.model, federation.task, federation.encoded, [(client, tensors, rows)], batch_size=64
    )
    return metrics


@pytest.mark.parametrize(
    ("algorithm", "start", "warmed"),
    [("fedsa", "initial", True), ("fedsa", "mean", False), ("fedit", "initial", False)],
)
def test_a_head_that_begins_anew_is_warmed_up(
    tiny_run: Callable[..., Any], algorithm: str, start: str, warmed: bool
) -> None:
    """With a training that changes nothing: a head of the client's own is fitted, that of the federation is not."""
    more = [f"algorithm={algorithm}", "training.head_warmup_epochs=3", "rounds=1", "adaptation.share_personal=true"]
    run = tiny_run(*HELD, *more)
    federation = run.federation
    states, client = PersonalStates(run.folder, federation.algorithm, 1), federation.held_out[0]

    def taken_in(**changes: Any) -> State:
        settings = federation.recipe.training.model_copy(update={"learning_rate": 1e-12, **changes})
        still = replace(federation, recipe=federation.recipe.model_copy(update={"training": settings}))
        onboarding = Onboarding(still, states, federation.recipe.adaptation)
        (adapted,) = onboarding.take_in([client], start, freeze_shared=False)
        return adapted.tensors

    adapted, before = taken_in(), taken_in(head_warmup_epochs=0)
    head = [key for key in before if key.factor.side is Side.HEAD]
    moved = max(float((adapted[key] - before[key]).abs().max()) for key in head)
    assert (moved > 1e-3) is warmed
    assert all(torch.allclose(adapted[key], before[key], atol=1e-9) for key in before if key not in head)


# -- held out --------------------------------------------------------------------------------------------------------


def test_who_is_held_out_hangs_on_the_seed_alone() -> None:
    clients = [f"c{number}" for number in range(20)]
    drawn = held_out(clients, 0.2, 3)
    assert len(drawn) == 4
    assert drawn == held_out(clients[::-1], 0.2, 3) == tuple(sorted(drawn))
    assert len({held_out(clients, 0.2, seed) for seed in range(5)}) > 1
    assert held_out(clients, 0.0, 3) == ()
    assert len(held_out(clients, 0.001, 3)) == 1


def test_the_data_command_names_who_is_held_out(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tiny_run: Callable[..., Any]
) -> None:
    out = fedsa_command("data", recipe_file(*HELD)).out
    assert f"held out of the federation: {', '.join(tiny_run(*HELD).federation.held_out)}" in out
    assert "held out" not in fedsa_command("data", recipe_file(*SIX)).out


def test_who_is_held_out_has_no_part_in_the_rounds(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*HELD)
    outside, inside = run.federation.held_out, run.federation.clients
    assert len(outside) == 2
    assert len(inside) == 4
    assert not set(outside) & set(inside)
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["client"] for line in lines} == set(inside) == set(run.summary["per_client"])
    assert set(run.summary["unseen"]["per_client"]) == set(outside)
    assert run.summary["clients"] == 4
    about = run.folder.read_json("clients.json")
    assert {client for client, entry in about.items() if entry.get("held_out")} == set(outside)
    for client in outside:
        assert not list((run.folder.path / "clients" / about[client]["folder"]).glob("round-*"))


@pytest.mark.parametrize("freeze", [False, True])
def test_a_held_out_client_trains_from_the_federations_result(tiny_run: Callable[..., Any], freeze: bool) -> None:
    run = tiny_run(*HELD, f"adaptation.freeze_shared={str(freeze).lower()}")
    federation, unseen = run.federation, run.summary["unseen"]
    assert unseen["steps"] == 4
    for client in federation.held_out:
        start = begun(run, client)
        assert any(
            not torch.equal(value, federation.model.initial[key])
            for key, value in start.items()
            if key.factor is Factor.A
        )
        assert not any(bool(value.any()) for key, value in start.items() if key.factor is Factor.B)
        job = Job(
            client=client,
            round=1,
            rounds=1,
            seed=derive_seed(0, "adaptation"),
            tensors=start,
            keys=tuple(key for key in start if not freeze or key.factor.side is not Side.A),
            received=(),
            optimizer_state={},
            rows=federation.rows.partition.clients[client].train,
        )
        settings = federation.recipe.training.model_copy(update={"local_steps": 4})
        after = sequential.train(
            job, model=federation.model, task=federation.task, encoded=federation.encoded, settings=settings
        ).tensors
        kept = run.folder.client_states.load_personal(client, unseen["round"])
        assert kept is not None
        assert all(torch.equal(kept[key], value) for key, value in after.items())
        entry = unseen["per_client"][client]
        assert entry["before"] == measured(federation, client, start)
        assert entry["after"] == measured(federation, client, after)
        assert entry["before"] != entry["after"]


def test_epochs_are_five_unless_the_recipe_says_otherwise(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*SIX, "rounds=1", "holdout_clients=0.2")
    assert run.summary["unseen"]["epochs"] == 5
    assert run.summary["unseen"]["clients"] == 1
    assert "steps" not in run.summary["unseen"]


def test_held_out_clients_go_through_the_model_together(
    tiny_run: Callable[..., Any], tiny_model_without_dropout: Path
) -> None:
    settings = (*HELD, f"model.path={tiny_model_without_dropout}", "adapter.dropout=0")
    one, many = (tiny_run(*settings, f"training.trainer={trainer}") for trainer in ("sequential", "cohort"))
    for client in one.federation.held_out:
        states = [run.folder.client_states.load_personal(client, run.summary["chosen_round"]) for run in (one, many)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("start", ["mean", "nearest"])
def test_a_start_from_other_clients_is_their_mean(tiny_run: Callable[..., Any], start: str) -> None:
    run = tiny_run(*HELD, f"adaptation={{steps=1, start='{start}', share_personal=true, clusters=2}}")
    federation, round = run.federation, run.summary["chosen_round"]
    states = PersonalStates(run.folder, federation.algorithm, round)
    personal = [key for key in states.initial if key.factor is not Factor.A]
    seen = [({key: tensors[key] for key in personal}, weight) for tensors, weight in states.trained()]
    assert [weight for _, weight in seen] == [
        len(federation.rows.partition.clients[client].train) for client in federation.clients
    ]
    assert len(seen) == 4
    candidates = [mean_personal(seen, personal, states.initial)]
    if start == "nearest":
        candidates = cluster_means(seen, states.initial, 2)
        assert len(candidates) == 2
    for client in federation.held_out:
        rows = federation.rows.partition.clients[client].train
        tensors = [{**begun(run, client), **candidate} for candidate in candidates]
        losses = [
            metrics["loss"]
            for _, metrics in evaluate(
                federation.model,
                federation.task,
                federation.encoded,
                [(client, each, rows) for each in tensors],
                batch_size=64,
            )
        ]
        best = tensors[losses.index(min(losses))]
        assert run.summary["unseen"]["per_client"][client]["before"] == measured(federation, client, best)


def test_the_rounds_are_the_same_whatever_comes_after_them(tiny_run: Callable[..., Any]) -> None:
    plain = tiny_run(*HELD)
    other = tiny_run(
        *HELD, "adaptation={steps=1, start='nearest', share_personal=true}", "evaluation.global_model=average"
    )
    for name in ("test", "test_final", "per_client", "chosen_round", "total_upload_bytes"):
        assert plain.summary[name] == other.summary[name]


def test_the_adapter_of_a_held_out_client_is_exported(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    run = tiny_run(*HELD)
    (client, _) = run.federation.held_out
    (folder,) = export(run.folder.path, tmp_path / "one", clients=[client])
    entry = run.summary["unseen"]["per_client"][client]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "held out of the federation" in card
    assert f"{entry['before']['accuracy']:.4f} before, {entry['after']['accuracy']:.4f} after" in card
    assert len(export(run.folder.path, tmp_path / "chosen")) == 6
    assert len(export(run.folder.path, tmp_path / "final", round="final")) == (
        6 if run.summary["chosen_round"] == 3 else 4
    )


# -- means and clusters ----------------------------------------------------------------------------------------------

B, HEAD = Key("layer", Factor.B), Key("head", Factor.HEAD)


def test_the_mean_is_weighted_and_in_the_tensors_dtype() -> None:
    states = [({B: torch.full((2, 1), 1.0)}, 3), ({B: torch.full((2, 1), 5.0)}, 1)]
    mean = mean_personal(states, [B], {B: torch.zeros(2, 1)})
    assert torch.equal(mean[B], torch.full((2, 1), 2.0))
    assert mean_personal([], [B], {B: torch.zeros(2, 1)}) == {}


def test_clients_whose_b_points_one_way_are_one_cluster() -> None:
    """Length does not matter, nor does the head."""
    values = [[1.0, 0.0], [0.0, 2.0], [9.0, 0.1], [0.0, 0.5]]
    heads = [0.0, 0.0, 90.0, -70.0]
    seen = [
        ({B: torch.tensor([value]), HEAD: torch.tensor([head])}, 1) for value, head in zip(values, heads, strict=True)
    ]
    initial = {B: torch.zeros(1, 2), HEAD: torch.zeros(1)}
    means = cluster_means(seen, initial, 2)
    assert [mean[B].tolist() for mean in means] == [[[5.0, pytest.approx(0.05)]], [[0.0, 1.25]]]
    assert [mean[HEAD].item() for mean in means] == [45.0, -35.0]
    assert len(cluster_means(seen, initial)) == 2  # the square root of four
    assert len(cluster_means(seen[:1], initial)) == 1
    assert cluster_means([], initial) == [{}]


def test_clusters_of_clients_of_different_ranks() -> None:
    seen = [({B: torch.tensor([[1.0]])}, 1), ({B: torch.tensor([[2.0, 0.0]])}, 1), ({B: torch.tensor([[0.0, 1.0]])}, 1)]
    means = cluster_means(seen, {B: torch.zeros(1, 2)}, 2)
    assert [mean[B].tolist() for mean in means] == [[[1.5, 0.0]], [[0.0, 1.0]]]


def test_clients_that_have_not_trained_are_in_no_mean(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*SIX, "rounds=1", "fraction_train=0.5")
    states = PersonalStates(run.folder, run.federation.algorithm, 1)
    assert len(list(states.trained())) == 3


# -- the global model ------------------------------------------------------------------------------------------------


def test_the_fitted_b_is_the_least_squares_one() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    a_key = Key("layer", Factor.A)
    average = {a_key: drawn(3, 8), B: drawn(5, 3)}
    own = [({a_key: drawn(3, 8), B: drawn(5, 3)}, weight) for weight in (1, 4)]
    fitted = fit_global(average, own, ("default",))[B]
    target = sum(weight * tensors[B].double() @ tensors[a_key].double() for tensors, weight in own) / 5
    expected = torch.linalg.lstsq(average[a_key].double().T, target.T).solution.T
    torch.testing.assert_close(fitted, expected.float(), atol=1e-4, rtol=1e-4)
    same = [({**tensors, a_key: average[a_key]}, weight) for tensors, weight in own]  # then it is the mean of the B's
    mean = sum(weight * tensors[B] for tensors, weight in own) / 5
    torch.testing.assert_close(fit_global(average, same, ("default",))[B], mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["average", "fit"])
def test_the_global_model_is_measured_beside_the_clients_own(tiny_run: Callable[..., Any], how: str) -> None:
    run = tiny_run(*HELD, "adaptation.share_personal=true", f"evaluation.global_model={how}")
    figures, federation = run.summary["global_model"], run.federation
    assert figures["how"] == how
    assert figures["left_the_clients"] == ["B", "head"]
    assert set(figures["per_client"]) == set(federation.clients)
    rows = sum(entry["examples"] for entry in figures["per_client"].values())
    assert figures["union"]["examples"] == rows
    assert figures["union"]["accuracy"] == pytest.approx(figures["weighted_mean"])
    states = PersonalStates(run.folder, federation.algorithm, run.summary["chosen_round"])
    personal = [key for key in states.initial if key.factor is not Factor.A]
    tensors = {**begun(run, "nobody"), **mean_personal(states.trained(), personal, states.initial)}
    if how == "fit":
        fitted = fit_global(tensors, states.own(), ("default",))
        assert any(not torch.allclose(tensors[key], value, rtol=1e-3) for key, value in fitted.items())
        tensors |= fitted
    for client in federation.clients:
        assert figures["per_client"][client] == measured(federation, client, tensors)


def test_without_it_nothing_is_said_of_it(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*SIX)
    assert "global_model" not in run.summary
    assert "unseen" not in run.summary


# -- choices and mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], {("initial", False), ("initial", True)}),
        (
            ["adaptation.share_personal=true"],
            {(start, freeze) for start in ("initial", "mean", "nearest") for freeze in (False, True)},
        ),
        (["algorithm=local"], {("initial", False)}),
        (["algorithm=fedit", "share_head=true", "adaptation.share_personal=true"], {("initial", False)}),
    ],
)
def test_choices_are_those_that_differ(
    tiny_run: Callable[..., Any], settings: list[str], expected: set[tuple[str, bool]]
) -> None:
    run = tiny_run(*SIX, "rounds=1", *settings)
    federation = run.federation
    states = PersonalStates(run.folder, federation.algorithm, 1)
    choices = Onboarding(federation, states, federation.recipe.adaptation).choices()
    assert set(choices) == expected
    assert len(choices) == len(expected)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["adaptation.start=mean"], "set share_personal = true if the clients agree"),
        (["adaptation.start=nearest"], "which then leave the client"),
        (["evaluation.global_model=average"], "set adaptation.share_personal = true"),
        (["adaptation={steps=1, epochs=1}"], "steps or epochs, not both"),
        (["holdout_clients=0.99"], "of 3 clients leaves none for the federation"),
        (["holdout_clients=1"], "less than 1"),
        (
            ["holdout_clients=0.3", "algorithm=fedit", "share_head=true", "adaptation.freeze_shared=true"],
            "adaptation.freeze_shared: fedit keeps nothing",
        ),
        (
            [
                "adapter={variant='vera', r=4, target_modules=['query']}",
                "adaptation.share_personal=true",
                "evaluation.global_model=fit",
            ],
            "'fit' needs ΔW = s·B·A, which vera is not",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tmp_path: Path, settings: list[str], part: str
) -> None:
    outcome = fedsa_command("run", recipe_file(*settings), "--out", tmp_path / "run")
    assert outcome.code == 2, outcome
    assert part in outcome.error
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_vera_has_a_mean_too(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(
        *HELD,
        "adapter={variant='vera', r=4, target_modules=['query']}",
        "adaptation={steps=1, start='nearest', share_personal=true}",
        "evaluation.global_model=average",
    )
    assert run.summary["global_model"]["left_the_clients"] == ["head", "lambda_b"]


def test_a_plan_counts_the_clients_that_are_in_the_federation(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any]
) -> None:
    from fedsa.cost.plan import plan_run

    run = tiny_run(*HELD)
    plan = plan_run(replace_labels(tiny_recipe(*HELD)))
    assert plan["clients"] == 4
    assert plan["total_upload_bytes"] == run.summary["total_upload_bytes"]
    assert plan["total_download_bytes"] == run.summary["total_download_bytes"]


def replace_labels(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": ["bad", "good"]})})
