"""Whole runs whose clients add to their heads how frequent each class is among their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.algorithms import make_algorithm
from fedsa.client.class_prior import ClassPriors
from fedsa.client.evaluation import evaluate
from fedsa.deploy.finishing import _received
from fedsa.engines.beginning import check_unchanged
from fedsa.errors import ConfigError, RunFolderError
from fedsa.federation import Federation
from fedsa.federation.checks import check_personal
from fedsa.recipe import ExamplePrivacySettings, Recipe
from fedsa.recipe.task_kinds import RegressionSettings
from fedsa.runs.export import export
from fedsa.runs.onboarding import Onboarding
from fedsa.runs.personal import PersonalStates
from fedsa.runs.report.words import in_words
from fedsa.store import RunFolder
from fedsa.types import State

pytestmark = pytest.mark.run

SKEWED = (
    "data.partition={kind='dirichlet', clients=6, dirichlet_alpha=0.5, min_examples=4}",
    "fraction_train=0.34",
    "rounds=3",
    "seed=1",
    "training.trainer=sequential",
)
STILL = "training.learning_rate=1e-9"
AVERAGED = ("evaluation.global_model=average", "adaptation.share_personal=true")
METHODS = {
    "fedsa": (),
    "fedit": (),
    "local": (),
    "fedalt": (),
    "potara": (),
    "fedtreelora": (),
    "partial_pooling": (),
    "ravan": ("adapter.variant=lora_xs",),
}
LAYOUTS = {
    "plain": (),
    "heads are warmed up": ("training.head_warmup_epochs=2",),
    "heads are fitted": ("evaluation.fit_head_epochs=2",),
    "nothing is kept": ("personal_state=reconstruct", "reconstruction.steps=2"),
    "many clients at a time": ("training.trainer=cohort", "training.cohort_size=3"),
    "halves": ("algorithm=partial_pooling", "algorithm_options={own_share='difference', class_prior=true}"),
}


def run_with(tiny_run: Callable[..., Any], *settings: str) -> Any:
    return tiny_run(*SKEWED, "algorithm_options.class_prior=true", *settings)


def priors_of(run: Any) -> ClassPriors:
    priors: ClassPriors | None = run.federation.class_priors
    assert priors is not None
    return priors


def own_prior(run: Any, client: str) -> torch.Tensor:
    priors = priors_of(run)
    zeros = {priors.bias: torch.zeros(len(priors.counts[client]))}
    return priors.added(client, zeros)[priors.bias]


def metrics_with(federation: Federation, client: str, tensors: State) -> dict[str, float]:
    rows = federation.rows.partition.clients[client].test
    ((_, metrics),) = evaluate(
        federation.model, federation.task, federation.encoded, [(client, tensors, rows)], batch_size=64
    )
    return metrics


def check_files(run: Any) -> None:
    """What the files of a run say that a client uses is what it was tested with."""
    states = PersonalStates(run.folder, run.federation.algorithm, run.federation.recipe.rounds)
    for client in run.federation.clients:
        metrics = metrics_with(run.federation, client, states.of(client))
        assert run.summary["per_client"][client]["test_final"] == metrics, client


@pytest.mark.parametrize("method", METHODS)
def test_a_client_is_tested_with_what_its_files_say(tiny_run: Callable[..., Any], method: str):
    run = run_with(tiny_run, f"algorithm={method}", *METHODS[method])
    states = run.folder.client_states
    trained = [client for client in run.federation.clients if states.load_client(client, 3) is not None]
    assert 0 < len(trained) < len(run.federation.clients)
    check_files(run)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_else_heads_go_through(tiny_run: Callable[..., Any], layout: str):
    check_files(run_with(tiny_run, *LAYOUTS[layout]))


@pytest.mark.parametrize("method", ["fedsa", "fedit", "partial_pooling"])
def test_what_is_known_stays_at_the_client(tiny_run: Callable[..., Any], method: str):
    """Hardly anything is learned, so that all there is in a head is what was known: clients have it, no one else."""
    run = run_with(tiny_run, f"algorithm={method}", STILL, *AVERAGED)
    bias, initial = priors_of(run).bias, run.federation.model.initial
    states = PersonalStates(run.folder, run.federation.algorithm, 3)
    for client in run.federation.clients:
        own = states.of(client)[bias] - initial[bias]
        torch.testing.assert_close(own, own_prior(run, client), rtol=0, atol=1e-5)
        assert float(own_prior(run, client).abs().max()) > 0.1
    server = [
        value for key, value in states.server.tensors.items() if key.module == bias.module and key.adapter != "own"
    ]
    means = [tensors[bias] for tensors, _ in (*states.trained(), *states.own())]
    assert server
    assert means
    for value in (*server, *means):
        assert any(torch.allclose(value, each, rtol=0, atol=1e-5) for each in (initial[bias], 0 * initial[bias]))


def test_a_newcomer_has_its_own(tiny_run: Callable[..., Any]):
    run = run_with(tiny_run, "algorithm=fedit", STILL, "holdout_clients=0.2", "adaptation.steps=1")
    federation, (outside,) = run.federation, run.federation.held_out
    states = PersonalStates(run.folder, federation.algorithm, run.summary["chosen_round"])
    bias = priors_of(run).bias
    (adapted,) = Onboarding(federation, states, federation.recipe.adaptation).take_in(
        [outside], "initial", freeze_shared=False
    )
    for tensors in (adapted.tensors, states.of(outside)):
        own = tensors[bias] - states.server.tensors[bias]
        torch.testing.assert_close(own, own_prior(run, outside), rtol=0, atol=1e-5)


def test_a_run_of_before_has_none(tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """What is added is read of the run's own table of clients: a run without it was made without any.

    A newcomer gets none then either, and such a run is not gone on with.
    """
    run = run_with(tiny_run, "algorithm=fedit", STILL, "holdout_clients=0.2", "adaptation.steps=1")
    federation, read = run.federation, RunFolder.read_json
    clients = run.folder.read_json("clients.json")
    assert all(sum(each["train_labels"]) == each["train_examples"] for each in clients.values())
    assert not any("train_labels" in each for each in run.summary["per_client"].values())
    without = {client: {**each} for client, each in clients.items()}
    for each in without.values():
        del each["train_labels"]
    monkeypatch.setattr(
        RunFolder, "read_json", lambda self, name: without if name == "clients.json" else read(self, name)
    )
    states = PersonalStates(run.folder, federation.algorithm, run.summary["chosen_round"])
    bias = priors_of(run).bias
    assert torch.equal(states.of(federation.clients[0])[bias], states.server.tensors[bias])
    (adapted,) = Onboarding(federation, states, federation.recipe.adaptation).take_in(
        federation.held_out, "initial", freeze_shared=False
    )
    torch.testing.assert_close(adapted.tensors[bias], states.server.tensors[bias], rtol=0, atol=1e-5)
    with pytest.raises(RunFolderError, match="begun by a version of fedsa without class priors"):
        check_unchanged(federation, run.folder, run.folder.progress())


def test_a_site_tells_what_its_clients_received_alike(tiny_recipe: Callable[..., Recipe]):
    """A new client of the site starts from the head that came, without what other clients know of their rows."""
    settings = (*SKEWED, "algorithm=fedit", "algorithm_options.class_prior=true")
    federation = Federation.from_recipe(tiny_recipe(*settings))
    priors = federation.class_priors
    assert priors is not None
    common = {key: value + 0.123 for key, value in federation.model.initial.items()}
    tested = {client: priors.added(client, common) for client in federation.clients}
    found = _received(federation, tested, 2).tensors
    assert found.keys() == common.keys()
    torch.testing.assert_close(found[priors.bias], common[priors.bias], rtol=0, atol=1e-5)
    one = federation.clients[0]
    tested[one] = {**tested[one], priors.bias: tested[one][priors.bias] + 0.01}
    assert found.keys() - _received(federation, tested, 2).tensors.keys() == {priors.bias}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            ("privacy={kind='example', noise_multiplier=1.0}",),
            "class_prior.*would depend on all of its rows at once.*set it to false",
        ),
        (("algorithm=pooled",), "pooled trains one head for all: class_prior = true"),
        (("training.weight_decay=0.01",), "class_prior.*a decay of the head's bias would leave a part"),
    ],
    ids=["privacy", "pooled", "decay"],
)
def test_where_it_makes_no_sense_it_is_refused(tiny_recipe: Callable[..., Recipe], settings: tuple[str, ...], why: str):
    with pytest.raises(ConfigError, match=f"(?s){why}"):
        Federation.from_recipe(tiny_recipe("algorithm_options.class_prior=true", *settings))


def test_a_task_without_classes_has_none(tiny_recipe: Callable[..., Recipe]):
    federation = Federation.from_recipe(tiny_recipe())
    recipe = federation.recipe.model_copy(
        update={
            "task": RegressionSettings(kind="regression", text_columns=["text"], answer="score"),
            "algorithm_options": {"class_prior": True},
        }
    )
    using = make_algorithm("fedsa", recipe.algorithm_options)
    with pytest.raises(ConfigError, match=r"class_prior: task\.kind = 'regression' has no classes: leave it out"):
        check_personal(recipe, using, federation.model.keys, "lora")
    assert replace(federation, recipe=recipe, algorithm=using).class_priors is None
    privacy = ExamplePrivacySettings(kind="example", noise_multiplier=1.0)
    unasked = recipe.model_copy(update={"algorithm_options": {}, "privacy": privacy})
    check_personal(unasked, using, federation.model.keys, "lora")


def test_a_head_without_a_bias_is_told_of(tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    told = "class_prior is not used: the model's head has no bias of 2 numbers, one for each class"
    assert told not in run_with(tiny_run, "algorithm=fedit").federation.notes
    monkeypatch.setattr("fedsa.federation.building.bias_of_classes", lambda tensors, classes: None)
    assert told in run_with(tiny_run, "algorithm=fedit", "seed=2").federation.notes


@pytest.mark.parametrize("chosen", [True, False])
def test_report_and_card_say_where_it_is(tiny_run: Callable[..., Any], tmp_path: Path, chosen: bool):
    run = tiny_run(*SKEWED, "algorithm=fedit", f"algorithm_options.class_prior={str(chosen).lower()}")
    assert run.summary["class_prior"] is chosen
    export(run.folder.path, tmp_path)
    card = next(tmp_path.rglob("README.md")).read_text("utf-8")
    assert ("contains how frequent each class is among this client's training rows" in card) is chosen
    told = " ".join(in_words(run.summary, run.summary["metric"]))
    assert ("How frequent each class is at a client is in its own head, and was not sent." in told) is chosen
