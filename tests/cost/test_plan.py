"""The plan: what it counts without weights and data is what a run measures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import algorithm_names, make_algorithm
from fedsa.cost.hours import time_like
from fedsa.cost.plan import plan_run
from fedsa.errors import ModelError, UserError
from fedsa.federation import Federation
from fedsa.models import empty_model
from fedsa.recipe import ModelSettings, Recipe, apply_overrides, parse_recipe, read_recipe
from fedsa.server import first_round
from fedsa.steps import PLAIN
from fedsa.tasks import make_task
from support.tiers import factors_of, one_of_each
from support.tiny_runs import MEASURED

pytestmark = pytest.mark.run

GLUE = [f"glue-{name}" for name in ("mnli", "qnli", "qqp", "rte", "sst2")]
SHORT = ("training.local_steps=1", "evaluation.evaluate_every=9")
TINY = {
    "model_type": "bert",
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def recipe_of(name: str, *overrides: str) -> Recipe:
    return parse_recipe(apply_overrides(read_recipe(name)[0], overrides))


def parameters_of(plan: dict[str, Any]) -> dict[str, int]:
    return {entry["factor"]: entry["parameters"] for entry in plan["sharing_plan"]}


def counted(recipe: Recipe) -> dict[str, int]:
    """Return the parameters of each factor, without the FLOPs and the memory, which take longest."""
    task = make_task(recipe.task, recipe.task.class_names or ["0", "1"])
    model = empty_model(
        recipe.model,
        recipe.adapter,
        auto_model=task.auto_model,
        options=task.model_options(),
        task_type=task.peft_task_type,
    )
    assert {tensor.device.type for tensor in [*model.model.parameters(), *model.model.buffers()]} == {"meta"}
    return parameters_of(first_round(make_algorithm("fedsa", {}), model.parameters, PLAIN))


# -- what is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "share_head", "variant"),
    one_of_each(
        (
            (name, share, variant)
            for name in algorithm_names()
            for variant in VARIANTS
            for share in ("true", "false")
            if (name, share) not in (("local", "true"), ("pooled", "false"))
            and make_algorithm(name, {}).refusal(variant) is None
        ),
        lambda name, share, variant: (name, share if variant == "lora" else None, factors_of(variant)),
    ),
)
def test_what_is_predicted_is_what_is_measured(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], algorithm: str, variant: str, share_head: str
) -> None:
    settings = [f"algorithm={algorithm}", f"adapter.variant={variant}", f"share_head={share_head}", *SHORT]
    plan, summary = plan_run(tiny_recipe(*settings), clients=3), tiny_run(*settings).summary
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}
    assert json.loads(json.dumps(plan)) == plan
    assert plan["total_flops"] > 0
    assert plan["memory_bytes"] > 0


def test_clients_that_skip_rounds_are_counted_exactly(tiny_run: Callable[..., Any]) -> None:
    for seed in (0, 1):
        run = tiny_run(
            "data.partition={kind='iid', clients=5}", "fraction_train=0.4", "rounds=5", f"seed={seed}", *SHORT
        )
        plan = plan_run(run.federation.recipe)
        assert (plan["clients"], plan["clients_per_round"]) == (5, 2)
        assert plan["total_upload_bytes"] == run.summary["total_upload_bytes"] == 5 * 2 * plan["upload_bytes"]
        assert plan["total_download_bytes"] == run.summary["total_download_bytes"] < 5 * 2 * plan["download_bytes"]


def test_a_plan_that_changes_from_round_to_round_is_counted_exactly(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe]
) -> None:
    settings = ["algorithm=support.methods:Alternating", "rounds=6", *SHORT]
    settings += ["data.partition={kind='iid', clients=5}", "fraction_train=0.4", "adapter.target_modules=['value']"]
    plan, summary = plan_run(tiny_recipe(*settings)), tiny_run(*settings).summary
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}


@pytest.mark.parametrize("base", ["deberta-v2", "bert"])
@pytest.mark.parametrize("known_by", ["weights", "config.json", "model.config"])
def test_layers_that_the_checkpoint_lacks_are_trained(
    tiny_model: Path, tiny_recipe: Callable[..., Recipe], tmp_path: Path, base: str, known_by: str
) -> None:
    """DeBERTa's pooler is in no checkpoint of the base. BERT's is in some: only the header tells."""
    folder, is_bert = tmp_path / "model", base == "bert"
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    table = {**TINY, "model_type": base}
    config = transformers.AutoConfig.for_model(**table)
    if is_bert:
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    else:
        transformers.DebertaV2Model(config).save_pretrained(folder)
    targets = "['query', 'value']" if is_bert else "['query_proj', 'value_proj']"
    recipe = tiny_recipe(f"model.path={folder}", f"adapter.target_modules={targets}", "share_head=true")
    initial = Federation.from_recipe(recipe).model.initial
    assert any("pooler." in key.module for key in initial)
    if known_by == "config.json":
        (folder / "model.safetensors").unlink()
    if known_by == "model.config":
        recipe = recipe.model_copy(update={"model": ModelSettings(path="no/where", config=table)})
    sent = sum(tensor.numel() for key, tensor in initial.items() if key.factor in ("A", "head"))
    assert (plan_run(recipe)["upload_parameters"] == sent) == (known_by == "weights" or not is_bert)


def test_no_weights_and_no_data_are_read(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe("data={path='no/where', partition={kind='files'}}", "task.labels=['bad', 'good']")
    assert counted(recipe) == {"A": 128, "B": 128, "head": 34}
    assert plan_run(recipe)["clients"] is None


# -- paper scale -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnli() -> dict[str, Any]:
    return plan_run(recipe_of("glue-mnli"))


def test_mnli_at_paper_scale(mnli: dict[str, Any]) -> None:
    assert parameters_of(mnli) == {"A": 393_216, "B": 393_216, "head": 1_052_675}
    assert mnli["trained_parameters"] == 1_839_107
    assert mnli["upload_parameters"] == 393_216
    assert mnli["upload_bytes"] == mnli["download_bytes"] == 4 * 393_216
    assert mnli["total_upload_bytes"] == 1000 * 3 * mnli["upload_bytes"]
    assert mnli["total_download_bytes"] == 999 * 3 * mnli["download_bytes"]
    assert mnli["frozen_parameters"] == 354_310_144
    assert (mnli["clients"], mnli["classes"], mnli["rounds"]) == (3, 3, 1000)


def test_flops_are_two_passes_over_the_matrices(mnli: dict[str, Any]) -> None:
    """The frozen weights need no gradient: backward costs what forward does, the adapters are small."""
    tokens, width, layers = 128 * 128, 1024, 24
    linear = 2 * layers * (4 * width**2 + 2 * width * 4096)
    attention = 2 * layers * 2 * 128 * width
    assert mnli["flops_per_client"] == pytest.approx(10 * 2 * tokens * (linear + attention), rel=0.03)
    assert mnli["flops_per_round"] == 3 * mnli["flops_per_client"] == mnli["total_flops"] // 1000


def test_methods_and_variants_at_paper_scale() -> None:
    assert plan_run(recipe_of("glue-mnli", "algorithm=ffa", "rounds=1"))["trained_parameters"] == 1_445_891
    vera = plan_run(recipe_of("glue-mnli", "adapter.variant=vera", "rounds=1"))
    assert parameters_of(vera) == {"lambda_d": 12_288, "lambda_b": 49_152, "head": 1_052_675}
    assert vera["upload_parameters"] == 12_288


def test_glue_recipes_differ_in_their_rows_only() -> None:
    recipes = {name: recipe_of(name) for name in GLUE}
    for recipe in recipes.values():
        same = {"description": "", "task": recipes["glue-mnli"].task, "data": recipes["glue-mnli"].data}
        assert recipe.model_copy(update=same) == recipes["glue-mnli"].model_copy(update=same)
        assert recipe.data.partition.kind == "dirichlet"
        assert (recipe.data.partition.clients, recipe.data.partition.dirichlet_alpha) == (3, 0.5)
        assert recipe.task.max_length == 128
    assert {recipe.data.name for recipe in recipes.values()} == {"mnli", "qnli", "qqp", "rte", "sst2"}
    assert counted(recipes["glue-rte"]) == {"A": 393_216, "B": 393_216, "head": 1_051_650}


def test_llama_3_8b() -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "max_position_embeddings": 8192,
    }
    data = {
        "rounds": 1,
        "model": {"path": "meta-llama/Meta-Llama-3-8B", "config": config},
        "adapter": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
        "data": {"path": "-", "partition": {"kind": "iid", "clients": 3}},
    }
    assert counted(parse_recipe(data)) == {"A": 2_097_152, "B": 1_310_720, "head": 8192}


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        ("{model_type='llama', hidden_size=16, num_attention_heads=4, num_key_value_heads=2}", "q_proj"),
        ("{model_type='deberta-v2', hidden_size=16, num_attention_heads=4}", "query_proj"),
        ("{model_type='distilbert', dim=16, hidden_dim=16, n_heads=4}", "q_lin"),
        ("{model_type='modernbert', hidden_size=16, intermediate_size=16, num_attention_heads=4}", "Wqkv"),
    ],
)
def test_other_architectures_are_counted(tiny_recipe: Callable[..., Recipe], config: str, targets: str) -> None:
    layers = "n_layers" if "distilbert" in config else "num_hidden_layers"
    settings = [f"model={{path='-', config={config[:-1]}, {layers}=1}}}}", f"adapter.target_modules=['{targets}']"]
    plan = plan_run(tiny_recipe(*settings))
    assert plan["upload_parameters"] == 2 * 16
    assert plan["flops_per_round"] > 0
    assert plan["memory_bytes"] > 0


# -- FLOPs and memory --------------------------------------------------------------------------------------------------


def test_flops_follow_the_settings(tiny_recipe: Callable[..., Recipe]) -> None:
    def flops(*settings: str) -> int:
        count: int = plan_run(tiny_recipe(*settings), clients=3)["flops_per_round"]
        return count

    three_steps = flops()
    assert flops("training.local_steps=6") == flops("training.gradient_accumulation_steps=2") == 2 * three_steps
    assert flops("training.batch_size=8") == 2 * three_steps
    assert flops("fraction_train=0.34") == three_steps // 3
    assert flops("model.attn_implementation=eager") == flops("model.attn_implementation=sdpa") == three_steps
    assert flops("compute.precision=bf16") == three_steps
    assert flops("algorithm=ffa") < three_steps  # A needs no gradient
    assert flops("task.max_length=16") < three_steps / 2  # attention is quadratic


def estimating(every: int) -> str:
    return f"algorithm_options={{own_share='difference', estimate_every={every}}}"


@pytest.mark.parametrize("every", [1, 3])
def test_training_on_halves_of_rows_is_counted(tiny_recipe: Callable[..., Recipe], every: int) -> None:
    settings = "rounds=5", "algorithm=partial_pooling", "personal_state=reconstruct"

    def planned(*more: str) -> dict[str, Any]:
        return plan_run(tiny_recipe(*settings, "reconstruction.steps=3", *more), clients=3)

    whole, halves = planned("algorithm_options.own_share=0.5"), planned(estimating(every))
    assert whole["total_flops"] == 5 * whole["flops_per_round"]
    assert halves["flops_per_round"] == whole["flops_per_round"] * 9 // 6  # three steps twice, and three to begin with
    rounds = {1: 5, 3: 2}[every]
    assert halves["total_flops"] == (rounds * 9 + (5 - rounds) * 6) * whole["flops_per_round"] // 6
    assert any(f"in {rounds} rounds, clients train on two halves" in note for note in halves["notes"])
    assert not any("halves" in note for note in whole["notes"])


def test_the_attention_kernel_of_cpus_is_counted(tiny_model_without_dropout: Path, tiny_recipe: Any) -> None:
    counts = [
        plan_run(tiny_recipe(f"model={{path='{tiny_model_without_dropout}', attn_implementation='{kernel}'}}"))
        for kernel in ("eager", "sdpa")
    ]
    eager, sdpa = (plan["flops_per_round"] for plan in counts)
    assert eager <= sdpa < 1.2 * eager  # the kernel computes scores again in the backward pass


def test_memory_has_parts(tiny_recipe: Callable[..., Recipe]) -> None:
    adamw, larger, sgd, momentum = (
        plan_run(tiny_recipe(*settings), clients=3)
        for settings in (
            [],
            ["training.batch_size=128", "evaluation.batch_size=1"],
            ["training={optimizer='sgd'}"],
            ["training={optimizer='sgd', momentum=0.9}"],
        )
    )
    memory = adamw["memory"]
    assert adamw["memory_bytes"] == sum(memory.values())
    trained = 4 * adamw["trained_parameters"]
    # Of three clients at once: as kept; values, gradients, two of AdamW; values and gradients as the layers have them.
    assert adamw["cohort_size"] == 3
    assert memory["clients"] == 3 * (1 + 4 + 2) * trained
    assert sgd["memory"]["clients"] == sgd["cohort_size"] * (1 + 2 + 2) * trained
    assert momentum["memory"]["clients"] == momentum["cohort_size"] * (1 + 3 + 2) * trained
    assert memory["server"] == 2 * trained + 2 * adamw["upload_bytes"]  # initial, server's, sums in float64
    assert memory["weights"] == pytest.approx(4 * adamw["frozen_parameters"], rel=0.1)
    assert larger["memory"]["activations"] > 3 * memory["activations"]
    deep = [
        plan_run(with_config(tiny_recipe("evaluation.batch_size=512"), num_hidden_layers=layers))["memory"]
        for layers in (2, 6)
    ]
    assert deep[1]["activations"] == deep[0]["activations"]  # without gradients a layer's are freed by the next
    on_gpu = plan_run(tiny_recipe("compute.device=cuda"), clients=3)
    assert set(on_gpu["memory"]) == {"weights", "clients", "activations"}


def test_memory_counts_tensors_beside_the_models_and_halves(tiny_recipe: Callable[..., Recipe]) -> None:
    fedit, pooling, potara, given = (
        plan_run(tiny_recipe("training.trainer=sequential", *settings), clients=3)
        for settings in (
            ["algorithm=fedit"],
            ["algorithm=partial_pooling", "algorithm_options={own_share='difference', pool_columns=1.0}"],
            ["algorithm=potara"],
            ["algorithm=potara", "algorithm_options.federated_weight=0.5"],
        )
    )
    own, trained = 7 * 4 * fedit["trained_parameters"], 4 * fedit["trained_parameters"]
    each = 4 * (parameters_of(fedit)["B"] + parameters_of(fedit)["head"])
    notes = sum(4 * entry["parameters"] for entry in pooling["sharing_plan"] if entry["factor"] == "note")
    assert fedit["memory"]["clients"] == own
    # three tensors beside each B and the head; four vectors of numbers; both halves of all that is trained
    assert pooling["memory"]["clients"] == own + 3 * each + notes + 2 * trained
    assert given["memory"]["clients"] == own + trained + 4  # the federated value of each, and one number
    assert potara["memory"]["clients"] == own + trained + 4 + 2 * trained
    assert pooling["memory"]["server"] == 2 * (trained + 3 * each + notes) + 2 * pooling["upload_bytes"]
    on_gpu = [
        plan_run(tiny_recipe("compute.device=cuda", f"algorithm={name}"), clients=3)["memory"]["clients"]
        for name in ("fedit", "potara")
    ]
    assert on_gpu[0] == on_gpu[1], "they are not on the device"


def test_activations_of_training_are_those_that_autograd_keeps(tiny_model: Path, tiny_recipe: Any) -> None:
    """Counted once more with real tensors: what the forward pass saves is most of the peak."""
    base = transformers.BertForSequenceClassification.from_pretrained(tiny_model).train()
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    base.bert.encoder.layer[0].attention.self.query.weight.requires_grad_(True)
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.ones(16, 32, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = base(input_ids=ids, attention_mask=ids)
    own = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    kept = sum(storage.nbytes() for address, storage in saved.items() if address not in own)
    assert outputs.logits.requires_grad
    settings = ["training.batch_size=16", "evaluation.batch_size=1", "compute.device=cuda", "compute.precision=fp32"]
    settings.append("training.trainer=sequential")  # one client in a pass, however many there are
    activations = plan_run(tiny_recipe(*settings))["memory"]["activations"]
    assert kept < activations < 2 * kept


@pytest.mark.slow
def test_memory_of_the_quickstart_is_as_predicted(tmp_path: Path) -> None:
    if not os.environ.get("FEDSA_CACHE"):
        pytest.skip("FEDSA_CACHE names no folder with the packaged parts")
    settings = ["rounds=1", "compute.threads=1"]
    command = [sys.executable, "-m", "fedsa", "run", "quickstart", "--json", "--out", str(tmp_path / "run")]
    options = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    plan = plan_run(recipe_of("quickstart", *settings), clients=8)
    summary = json.loads(done.stdout)
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}
    assert plan["memory_bytes"] == pytest.approx(summary["peak_rss_bytes"], rel=0.2)


# -- what a recipe leaves open -----------------------------------------------------------------------------------------


def test_what_only_the_data_tells_is_said(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe("training={local_epochs=1, batch_size=4}", "data.path=someone/rows-on-the-hub")
    plan = plan_run(recipe)
    notes = "\n".join(plan["notes"])
    assert plan["clients"] is plan["clients_per_round"] is plan["flops_per_round"] is None
    assert "--clients N" in notes
    assert "task.labels is not set: the head is counted with 2 classes" in notes
    assert "training.local_epochs" in notes
    assert plan["total_upload_bytes"] == 2 * plan["upload_bytes"]
    assert plan_run(recipe, clients=3)["total_upload_bytes"] == 3 * plan["total_upload_bytes"]


@pytest.mark.parametrize(
    ("partition", "clients"),
    [
        ("{kind='shards', clients=7}", 7),
        ("{kind='iid', within='site', clients={a=2, b=3}}", 5),
        ("{kind='iid', within='site', clients=2}", 6),
        ("{kind='column', column='site'}", 3),
        ("{kind='saved', file='x.json'}", None),
    ],
)
def test_clients_that_the_recipe_tells(tiny_recipe: Callable[..., Recipe], partition: str, clients: int | None) -> None:
    recipe = tiny_recipe(f"data.partition={partition}")
    assert plan_run(recipe)["clients"] == clients
    if clients is None or ("site" in partition and "a=2" not in partition):
        assert plan_run(recipe, clients=4)["clients"] == 4
    else:
        with pytest.raises(UserError, match=rf"--clients 4 \(in Python `clients=4`\): the recipe has {clients}"):
            plan_run(recipe, clients=4)


def test_clients_and_classes_are_counted_where_the_rows_are_here(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], tmp_path: Path, tiny_rows: Path
) -> None:
    plan = plan_run(tiny_recipe())
    assert {name: plan[name] for name in MEASURED} == {name: tiny_run().summary[name] for name in MEASURED}
    assert (plan["clients"], plan["classes"]) == (3, 2)
    assert any("3 clients and the classes are counted in the rows" in note for note in plan["notes"])
    sites = tmp_path / "sites"
    sites.mkdir()
    for name in ("north", "south [1]", "007", "7"):
        (sites / f"{name}.csv").write_text(tiny_rows.read_text())
    assert plan_run(tiny_recipe(f"data={{path='{sites}', partition={{kind='files'}}}}"))["clients"] == 4
    (sites / "7.csv").write_text("text,label\n")
    broken = plan_run(tiny_recipe(f"data={{path='{sites}', partition={{kind='files'}}}}"))
    assert broken["clients"] is None
    assert any(note.startswith("the rows cannot be dealt to clients: ") and "7.csv" in note for note in broken["notes"])


def test_ranks_of_clients_that_are_here_are_their_own(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe]
) -> None:
    settings = ["adapter.ranks={'site 1'=1}", "fraction_train=0.4", "rounds=5", *SHORT]
    plan, summary = plan_run(tiny_recipe(*settings)), tiny_run(*settings).summary
    assert {name: plan[name] for name in MEASURED} == {name: summary[name] for name in MEASURED}


def test_a_gpu_that_is_elsewhere(tiny_recipe: Callable[..., Recipe]) -> None:
    plan = plan_run(tiny_recipe("compute={device='cuda:7'}"))
    assert (plan["device"], plan["precision"]) == ("cuda:7", "bf16")
    assert any("cuda:7 is not on this machine" in note for note in plan["notes"])
    with pytest.raises(ModelError, match=r"compute.device = 'gpu' cannot be used here"):
        plan_run(tiny_recipe("compute={device='gpu'}"))


def test_a_model_that_cannot_be_run_without_values(tiny_recipe: Callable[..., Recipe]) -> None:
    """BART looks for the end of each row in the values."""
    config = "{model_type='bart', d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50, encoder_ffn_dim=16}"
    plan = plan_run(tiny_recipe(f"model={{path='-', config={config}}}", "adapter.target_modules=['q_proj']"))
    assert plan["upload_bytes"] > 0
    assert plan["flops_per_round"] is plan["memory_bytes"] is plan["memory"] is None
    assert any("needs values" in note for note in plan["notes"])


# -- model.config ------------------------------------------------------------------------------------------------------


def with_config(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"config": {**TINY, **changes}})})


def test_a_config_counts_what_the_weights_do(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe()
    assert plan_run(with_config(recipe)) == plan_run(recipe)


def test_weights_of_other_sizes_are_refused(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe()
    assert Federation.from_recipe(with_config(recipe)).recipe.model.config == TINY
    for changes, text in (
        ({"hidden_size": 32}, "hidden_size = 32 (the weights have 16)"),
        ({"num_hidden_layers": 3, "vocab_size": 24}, "vocab_size = 24 (the weights have 23), num_hidden_layers = 3"),
        ({"model_type": "electra"}, "model_type = 'electra' (the weights have 'bert')"),
    ):
        with pytest.raises(ModelError) as caught:
            Federation.from_recipe(with_config(recipe, **changes))
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "bertt"}, "no model_type 'bertt'; did you mean 'bert'?"),
        ({"model_type": "zzz"}, "no model_type 'zzz'; take it from the config.json"),
        ({"hidden_sise": 4}, "model.config.hidden_sise: a bert has no such setting; did you mean 'hidden_size'?"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 17}, "not a multiple of the number of attention heads"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"model_type": "vit"}, "cannot make a model of it"),
        ({"num_hidden_layers": 0}, "the model has no layer 'query'"),
    ],
)
def test_a_config_that_is_wrong(tiny_recipe: Callable[..., Recipe], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan_run(with_config(tiny_recipe(), **changes))
    assert text in str(caught.value)
    assert len(str(caught.value)) < 400


# -- the command -------------------------------------------------------------------------------------------------------


def test_plan_prints_tables(fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path]) -> None:
    outcome = fedsa_command("plan", recipe_file("data.path=someone/rows"), "--clients", 3)
    assert outcome.code == 0, outcome
    words = [line.split() for line in outcome.out.splitlines()]
    assert ["factor", "parameters", "trained", "sent", "received"] in words
    assert ["A", "128", "128", "128", "128"] in words
    assert ["B", "128", "128", "-", "-"] in words
    assert ["sent,", "bytes", "512", "3,072"] in words
    assert "2 rounds, 3 of 3 clients in each" in outcome.out
    assert "peak memory, cpu, fp32: " in outcome.out
    assert "- task.labels is not set" in outcome.out


def test_plan_prints_json_and_nothing_else(fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path]) -> None:
    outcome = fedsa_command("plan", recipe_file(), "--json", "--set", "algorithm=fedit", "--set", "rounds=3")
    plan = json.loads(outcome.out)
    assert plan.keys() >= {
        *MEASURED,
        "flops_per_round",
        "memory_bytes",
        "memory",
        "frozen_parameters",
        "notes",
    }
    assert (plan["algorithm"], plan["rounds"]) == ("fedit", 3)


def test_plan_shows_what_cannot_be_counted(fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path]) -> None:
    config = "{model_type='bart', d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50, encoder_ffn_dim=16}"
    settings = [f"model={{path='-', config={config}}}", "adapter.target_modules=['q_proj']"]
    outcome = fedsa_command("plan", recipe_file(*settings))
    assert outcome.code == 0, outcome
    assert ["training,", "FLOPs", "-", "-"] in [line.split() for line in outcome.out.splitlines()]
    assert "peak memory" not in outcome.out


def test_hours_are_told_by_a_finished_run(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], finished_run: Path, tmp_path: Path
) -> None:
    """What took that long takes as long again; twice the rounds take twice the training; another kind is refused."""
    summary = json.loads((finished_run / "summary.json").read_text())

    def time(*settings: str) -> Any:
        outcome = fedsa_command("plan", recipe_file(*settings), "--json", "--like", finished_run)
        assert outcome.code == 0, outcome
        return json.loads(outcome.out)["time"]

    same, longer, fewer = time(), time("rounds=40"), time("rounds=40", "fraction_train=0.34")
    assert same["training"] == pytest.approx(summary["train_seconds"])
    assert longer["training"] == pytest.approx(20 * same["training"])
    assert longer["training"] == pytest.approx(3 * fewer["training"])
    halves = time("algorithm=partial_pooling", estimating(1))
    assert halves["training"] == pytest.approx(2 * same["training"])
    measured = {summary["chosen_round"], summary["rounds"]}  # of the tests a plan counts two after the first
    evaluations, planned = 3 * (3 + 1 + len(measured)), 3 * (3 + 3)
    assert same["evaluation"] == pytest.approx(summary["evaluation_seconds"] * planned / evaluations)
    assert same["seconds"] == pytest.approx(sum(same[name] for name in ("training", "evaluation", "other")))
    shown = fedsa_command("plan", recipe_file("rounds=4000"), "--like", finished_run).out
    assert re.search(r"^time: [\d.]+ (s|min|h) \(training ", shown, re.MULTILINE)
    for setting, text in {
        "training.batch_size=5": "training.batch_size is 4 there and 5 here",
        "adapter.r=3": "adapter.rank is 2 there and 3 here",
        "task.max_length=8": "task.max_length is 32 there and 8 here",
    }.items():
        outcome = fedsa_command("plan", recipe_file(setting), "--like", finished_run)
        assert outcome.code == 2
        assert text in outcome.error
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished_run, unfinished)
    (unfinished / "summary.json").unlink()
    assert "fedsa resume" in fedsa_command("plan", recipe_file(), "--like", unfinished).error


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["rounds=x", "model.config={hidden_size=4}"], ["2 mistakes", "\n  rounds:", "\n  model.config: needs model_"]),
        (["model.path=someone/no-such-model"], ["model.path = 'someone/no-such-model'", "no such local"]),
        (["model.path=part:minilm"], ["no packaged part 'minilm'"]),
        (["adapter.target_modules=['querry']"], ["no layer 'querry'; did you mean 'query'?"]),
        (["model.path='objects:'"], ["was started from Python objects"]),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], settings: list[str], parts: list[str]
) -> None:
    outcome = fedsa_command("plan", recipe_file(), *(word for setting in settings for word in ("--set", setting)))
    assert outcome.code == 2
    assert outcome.error.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert all(part in outcome.error for part in parts), outcome.error


def test_folders_without_a_model(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no model" in fedsa_command("plan", recipe_file(f"model.path={folder}")).error
    (folder / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    assert fedsa_command("plan", recipe_file(f"model.path={folder}")).code == 0
    (folder / "model.safetensors").write_bytes(b"half")
    assert "holds no model" in fedsa_command("plan", recipe_file(f"model.path={folder}")).error


@pytest.mark.run
@pytest.mark.parametrize(
    "settings",
    [
        ["personal_state=reconstruct", "reconstruction.steps=7"],
        ["algorithm=partial_pooling", "algorithm_options.estimate_every=2"],
    ],
    ids=str,
)
def test_a_run_takes_as_long_again(
    tiny_run: Callable[..., Any], tiny_recipe: Callable[..., Recipe], settings: list[str]
) -> None:
    run = tiny_run("rounds=3", *settings)
    recipe = tiny_recipe("rounds=3", *settings)
    time = time_like(recipe, 3, run.folder.path)
    assert time["training"] == pytest.approx(run.summary["train_seconds"])
