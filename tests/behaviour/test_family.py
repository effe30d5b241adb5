"""Whole runs of methods that fold, have two adapters, a penalty, a scale, clients of different ranks; their exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification

import fedsa
from fedsa.adapters.algebra import pairs, rank_of
from fedsa.cost.plan import plan_run
from fedsa.engines.simulator import simulate
from fedsa.errors import ConfigError, UserError
from fedsa.federation import Federation
from fedsa.recipe import Recipe, apply_overrides, dump_recipe, parse_recipe, read_recipe
from fedsa.runs.export import export
from fedsa.server import load_state
from fedsa.store import RunFolder
from fedsa.types import Factor
from support.exports import CLIENTS, inside, outside, plain_base
from support.methods import Folding
from support.tiny_rows import WORDS
from support.tiny_runs import MEASURED, SETTINGS, states_of

pytestmark = pytest.mark.run

METHODS = ["Folding", "Two", "FoldingTwo", "Pulled", "Halving"]
TRAINERS = ["sequential", "cohort"]
RANKS = "adapter={r=4, ranks=[2, 1, 4], lora_alpha=8, target_modules=['query', 'value']}"
RSLORA = "adapter={variant='rslora', r=4, ranks=[2, 1, 4], lora_alpha=8, target_modules=['query', 'value']}"


def settings_of(method: str, *more: str) -> list[str]:
    return [f"algorithm=support.methods:{method}", *SETTINGS, *more]


@pytest.mark.parametrize("adapter", [[], [RANKS]], ids=["one rank", "ranks"])
@pytest.mark.parametrize("method", METHODS)
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(
    tiny_run: Callable[..., Any], tiny_model_without_dropout: Path, method: str, adapter: list[str]
) -> None:
    more = [*adapter, f"model.path={tiny_model_without_dropout}", "fraction_train=0.6"]
    one, other = (tiny_run(*settings_of(method, *more, f"training.trainer={name}")) for name in TRAINERS)
    assert other.federation.recipe.training.cohort_size > 1
    expected, given = states_of(one), states_of(other)
    assert expected.keys() == given.keys()
    for name, tensor in expected.items():
        # AdamW steps by about its rate, 0.05, whatever the gradient: one near zero shows the rounding of its sum.
        torch.testing.assert_close(given[name], tensor, atol=5e-4, rtol=1e-3)
    for name in ("total_upload_bytes", "total_download_bytes"):
        assert one.summary[name] == other.summary[name]


@pytest.mark.parametrize("adapter", [[], [RANKS]], ids=["one rank", "ranks"])
@pytest.mark.parametrize("method", METHODS[:4])  # what `Halving` cuts off, nobody can plan
def test_what_is_sent_is_what_was_planned(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], method: str, adapter: list[str]
) -> None:
    more = [*adapter, "data.partition={kind='iid', clients=5}", "fraction_train=0.4"]
    settings = settings_of(method, *more, "training.local_steps=1", "rounds=6")
    plan, summary = plan_run(tiny_recipe(*settings)), tiny_run(*settings).summary
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}
    assert plan["memory_bytes"] > 0


@pytest.mark.parametrize("ranks", ["{'client-2' = 1, 'client-5' = 2}", "[1, 4]"])
def test_ranks_by_name_are_planned_too(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], ranks: str
) -> None:
    adapter = f"adapter={{r=4, ranks={ranks}, target_modules=['value']}}"
    settings = settings_of("Two", adapter, "data.partition={kind='iid', clients=5}", "training.local_steps=1")
    settings += ["fraction_train=0.4", "rounds=5"]
    plan, summary = plan_run(tiny_recipe(*settings)), tiny_run(*settings).summary
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}
    by_site = settings_of("Two", "adapter={r=4, ranks={'site 1' = 1}, target_modules=['value']}")
    summary = tiny_run(*by_site).summary
    for clients in (3, None):  # told, and counted in the rows, which are here
        plan = plan_run(tiny_recipe(*by_site), clients=clients)
        assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}
    unknown = plan_run(tiny_recipe(*by_site, "data.path=someone/rows-on-the-hub"))
    assert any(note.startswith("adapter.ranks: which rank") for note in unknown["notes"])
    with pytest.raises(UserError, match="names 3 clients, and there are 2"):
        plan_run(tiny_recipe(*settings_of("Two", "adapter={r=4, ranks={a=1, b=2, c=3}}")), clients=2)


class _Killed(Exception):  # noqa: N818
    pass


class _Kill(fedsa.Callback):
    def on_round_end(self, round: int, *what: Any) -> None:
        if round == 2:
            raise _Killed


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_end(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], tmp_path: Path, method: str, trainer: str
) -> None:
    settings = settings_of(method, RANKS, f"training.trainer={trainer}", "training.optimizer_state=keep")
    if trainer == "cohort":
        settings.append("training.cohort_size=2")
    whole = tiny_run(*settings)
    federation = Federation.from_recipe(tiny_recipe(*settings))
    with (
        RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder,
        pytest.raises(_Killed),
    ):
        simulate(federation, folder, [_Kill()])
    with RunFolder.open(tmp_path / "run").locked() as folder:
        simulate(Federation.from_recipe(federation.recipe), folder)
    again = type(whole)(federation, RunFolder.open(tmp_path / "run"), {})
    expected, given = states_of(whole), states_of(again)
    assert all(torch.equal(tensor, given[name]) for name, tensor in expected.items())


def test_what_is_folded_is_the_mean_update(tiny_run: Callable[..., Any]) -> None:
    """The server's Δ after a round is the weighted mean of s·B·A of what the clients sent."""
    run = tiny_run(*settings_of("Folding", RANKS, "rounds=1"))
    server, federation = load_state(run.folder.server_states, 1), run.federation
    rows = {client: len(federation.rows.partition.clients[client].train) for client in CLIENTS}
    trained = {client: run.folder.client_states.load_client(client, 1).tensors for client in CLIENTS}
    assert [rank_of(trained[client]) for client in CLIENTS] == [2, 1, 4]
    for key, delta in server.tensors.items():
        if key.factor is Factor.DELTA:
            expected = sum(
                rows[client] * 2.0 * torch.matmul(*(side.double() for side in pairs(trained[client])[key.module]))
                for client in CLIENTS
            ) / sum(rows.values())
            assert delta.dtype == torch.float32
            assert delta.abs().max() > 1e-4
            torch.testing.assert_close(delta.double(), expected, atol=1e-7, rtol=1e-6)
    for client in CLIENTS:  # and everyone has it next, with the adapter begun anew
        personal = run.personal(client)
        assert all(
            torch.equal(personal[key], tensor) for key, tensor in server.tensors.items() if key.factor is Factor.DELTA
        )
        assert not any(tensor.any() for key, tensor in personal.items() if key.factor is Factor.B)


def test_the_local_adapter_never_leaves(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run(*settings_of("Two"))
    server, initial = load_state(run.folder.server_states, 3), run.federation.model.initial
    own = [run.personal(client) for client in CLIENTS]
    for key in initial:
        same = [torch.equal(own[0][key], other[key]) for other in own[1:]]
        if key.adapter == "local" or key.factor is Factor.HEAD:
            assert torch.equal(server.tensors[key], initial[key])
            assert not any(same)
        else:
            assert all(same)
            assert not torch.equal(own[0][key], initial[key])
    plan = {(entry["factor"], entry["sent"]): entry["parameters"] for entry in run.summary["sharing_plan"]}
    assert plan["A", True] == plan["A", False] == plan["B", True] == plan["B", False]
    assert set(run.federation.initial_state().scaling.values()) == {4 / 2 * 0.3 * 3**0.5}


@pytest.mark.slow
def test_glue_mnli_with_two_adapters_is_counted() -> None:
    data, _ = read_recipe("glue-mnli")
    recipe = parse_recipe(apply_overrides(data, ["algorithm=support.methods:Two"]))
    plan = plan_run(recipe)
    assert plan["trained_parameters"] == 2 * 786_432 + 1_052_675 == 2_625_539
    folding = plan_run(parse_recipe(apply_overrides(data, ["algorithm=support.methods:Folding"])))
    deltas = next(entry for entry in folding["sharing_plan"] if entry["factor"] == "delta")
    assert (deltas["tensors"], deltas["parameters"]) == (48, 48 * 1024 * 1024)
    assert (deltas["trained"], deltas["sent"], deltas["received"]) == (False, False, True)
    assert folding["frozen_parameters"] == plan["frozen_parameters"]
    plain = plan_run(parse_recipe(apply_overrides(data, ["algorithm=fedit"])))
    rows, tokens = data["training"]["batch_size"], folding["tokens_per_row"]
    steps = folding["batches_per_round"]
    product = 2 * 48 * 1024 * 1024 * rows * tokens * steps  # once forward, and once back but for the first layer
    assert product < folding["flops_per_client"] - plain["flops_per_client"] <= 2 * product


@pytest.mark.parametrize("variant", ["vera"])
def test_a_method_that_folds_goes_with_products_only(tiny_recipe: Callable[..., Recipe], variant: str) -> None:
    from fedsa.algorithms import check_algorithm

    assert "to the frozen weights" in str(type("F", (Folding,), {"needs_product": False})().refusal(variant))
    data = {"algorithm": "support.methods:Folding", "adapter": {"variant": variant}}
    assert [mistake.where for mistake in check_algorithm(data)] == ["algorithm"]
    assert isinstance(ConfigError(check_algorithm(data)), UserError)


# -- exports -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    made: dict[tuple[str, ...], tuple[Federation, Path]] = {}

    def run(*settings: str) -> tuple[Federation, Path]:
        if settings not in made:
            federation = Federation.from_recipe(tiny_recipe(*settings))
            path = tmp_path_factory.mktemp("family") / "run"
            fedsa.run(federation, path)
            made[settings] = federation, path
        return made[settings]

    return run


@pytest.mark.parametrize("adapter", [[], [RANKS], [RSLORA]], ids=["one rank", "ranks", "rslora ranks"])
@pytest.mark.parametrize("method", ["Two", "Pulled", "Halving"])
def test_peft_alone_gives_the_same_logits(
    finished: Callable[..., Any], tiny_model: Path, tmp_path: Path, method: str, adapter: list[str]
) -> None:
    federation, run = finished(*settings_of(method, *adapter))
    folders = export(run, tmp_path / "all", round="final")
    for client, folder, rank in zip(CLIENTS, folders, [2, 1, 4] if adapter else [2, 2, 2], strict=True):
        torch.manual_seed(12345)
        model = PeftModel.from_pretrained(plain_base(tiny_model), str(folder))
        expected = inside(federation, run, client, "final")
        torch.testing.assert_close(outside(model, folder), expected, atol=1e-5, rtol=0)
        config = json.loads((folder / "adapter_config.json").read_text())
        if method != "Halving":
            assert config["r"] == rank * len(federation.model.adapters)
        divisor = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
        (scale,) = set(federation.model.scaling.values())
        assert config["lora_alpha"] / divisor == pytest.approx(scale, rel=1e-12)
        assert not config["rank_pattern"]
        assert not [path for path in folder.iterdir() if path.is_dir()]
        changed = model.get_base_model().state_dict()
        assert any(bool(value.any()) for name, value in changed.items() if ".lora_B." in name)


@pytest.mark.parametrize("method", METHODS)
def test_transformers_alone_gives_the_same_logits_from_a_merged_model(
    finished: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    federation, run = finished(*settings_of(method, RANKS))
    for client, folder in zip(CLIENTS, export(run, tmp_path / "all", round="final", merge=True), strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        expected = inside(federation, run, client, "final")
        torch.testing.assert_close(outside(model, folder), expected, atol=1e-5, rtol=0)


def test_the_delta_is_in_the_merged_weights(finished: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    _, run = finished(*settings_of("Folding"))
    (folder,) = export(run, tmp_path / "one", clients=["site 0"], round="final", merge=True)
    merged = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    base = plain_base(tiny_model).state_dict()
    for key, delta in load_state(RunFolder.open(run).server_states, 3).tensors.items():
        if key.factor is Factor.DELTA:  # B is zero: the adapter has just begun anew
            weight = f"{key.module}.weight"
            torch.testing.assert_close(merged[weight] - base[weight], delta, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["Folding", "FoldingTwo"])
def test_a_method_that_folds_is_refused_without_merge(
    finished: Callable[..., Any], fedsa_command: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    _, run = finished(*settings_of(method))
    outcome = fedsa_command("export", run, "--all", "--to", tmp_path / "to")
    assert outcome.code != 0
    assert "adds to the base model's own weights, which no adapter holds" in outcome.error
    assert "--merge" in outcome.error
    assert not (tmp_path / "to").exists()
    assert fedsa_command("export", run, "--all", "--merge", "--to", tmp_path / "to").code == 0


@pytest.mark.parametrize("settings", [[], ["compute.precision=bf16"]], ids=str)
@pytest.mark.parametrize("method", ["Folding", "Two"])
def test_what_the_result_exports_is_what_the_folder_exports(
    tiny_recipe: Callable[..., Any], tmp_path: Path, method: str, settings: list[str]
) -> None:
    result = fedsa.run(Federation.from_recipe(tiny_recipe(*settings_of(method, RANKS, *settings))), tmp_path / "run")
    for merge in (True, False) if method == "Two" else (True,):
        pairs_ = zip(
            result.export(tmp_path / f"live-{merge}", merge=merge),
            export(result.path, tmp_path / f"disk-{merge}", merge=merge),
            strict=True,
        )
        for live, disk in pairs_:
            assert sorted(path.name for path in live.iterdir()) == sorted(path.name for path in disk.iterdir())
            for path in live.iterdir():
                assert path.read_bytes() == (disk / path.name).read_bytes(), path


def test_layers_of_several_ranks_keep_their_own_scale(tiny_model_without_dropout: Path, tmp_path: Path) -> None:
    """PEFT's rank_pattern: put together, each layer has twice its own rank, and its own s."""
    rows = [{"text": f"the film was {word}", "label": label} for label in WORDS for word in WORDS[label]] * 5
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["query", "value"], rank_pattern={"value": 5}, task_type="SEQ_CLS"
    )
    federation = Federation.from_objects(
        str(tiny_model_without_dropout),
        config,
        {name: Dataset.from_list(rows) for name in ("a", "b")},
        rounds=1,
        algorithm="feddpa",
        training={"local_steps": 5, "batch_size": 4, "learning_rate": 0.05},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
    )
    run = fedsa.run(federation, tmp_path / "run").path
    (folder,) = export(run, tmp_path / "to", clients=["a"], round="final")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {2 * 2, 2 * 5}
    model = PeftModel.from_pretrained(plain_base(tiny_model_without_dropout), str(folder))
    logits = outside(model, folder)
    torch.testing.assert_close(logits, inside(federation, run, "a", "final"), atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and ".value." in name:
            parameter.data.zero_()
    assert (outside(model, folder) - logits).abs().max() > 1e-3, "these layers matter"
