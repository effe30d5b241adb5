"""Layers whose update is no product of two matrices: refused at the start where a product is computed, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import fedsa
from fedsa.algorithms import built_in_names, find_algorithm
from fedsa.errors import ModelError, UserError
from fedsa.models import unlike_products
from fedsa.runs.analysis import analyze
from support.judge import run
from support.zoo import KINDS, SETTINGS, clients_of, write_model

pytestmark = pytest.mark.run

NAMES = {
    "mixtral, experts": "model.layers.0.mlp.experts.down_proj (and 3 more) is a parameter of 4 experts",
    "resnet": "resnet.embedder.embedder.convolution (and ",
    "convnext, convolutions": "convnext.embeddings.patch_embeddings is a Conv2d layer",
}
COMPUTING = [
    name
    for name in built_in_names()
    if (find_algorithm(name).needs_product or find_algorithm(name).folds or len(find_algorithm(name).adapters) > 1)
    and find_algorithm(name)().refusal("lora") is None  # LoRA-XS refuses such layers by itself
]


def made(name: str, folder: Path, **settings: Any) -> fedsa.Federation:
    kind = KINDS[name]
    config = LoraConfig(
        r=2, lora_dropout=0.0, target_modules=kind.targets, target_parameters=kind.parameters, lora_alpha=8
    )
    return fedsa.Federation.from_objects(
        str(write_model(name, folder / "model")),
        config,
        clients_of(kind.task),
        rounds=1,
        task=SETTINGS[kind.task],
        training={"local_steps": 1, "batch_size": 4, "trainer": "sequential"},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
        **settings,
    )


def test_some_methods_compute_products() -> None:
    assert {"flexlora", "fedsvd", "flora_na", "lora_fair", "fedex", "hetlora", "flora", "frlora"} <= set(COMPUTING)
    assert {"fedsa", "fedit", "ffa", "rolora", "local"}.isdisjoint(COMPUTING)


@pytest.mark.parametrize("algorithm", COMPUTING)
@pytest.mark.parametrize("name", ["mixtral, experts", "convnext, convolutions"])
def test_a_method_that_computes_products_refuses_other_layers(name: str, algorithm: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        made(name, tmp_path, algorithm=algorithm)
    layer = NAMES[name].partition(" ")[0]
    assert layer.rpartition(".")[0].removesuffix(".experts") in str(caught.value)
    if KINDS[name].parameters:
        assert "target_modules" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        made(name, tmp_path, algorithm="flexlora")
    assert NAMES[name] in str(caught.value)
    assert "use a method that does not" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_one_model_for_all_by_fit_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"evaluation\.global_model = 'fit' computes B·A .* use 'average'"):
        made(name, tmp_path, evaluation={"global_model": "fit"}, adaptation={"share_personal": True})


@pytest.mark.parametrize("name", ["mixtral, experts", "convnext, convolutions"])
@pytest.mark.parametrize("algorithm", ["fedsa", "fedit", "ffa", "alora"])
def test_the_others_run_and_are_analysed(name: str, algorithm: str, tmp_path: Path) -> None:
    federation, result = run(name, tmp_path, algorithm=algorithm)
    odd = set(unlike_products(federation.model.model))
    assert odd
    found = analyze(result.path)
    spanned = {module for _, measure, _, module in found.matrices if measure in ("update", "span")}
    assert spanned <= set(federation.model.scaling)
    if algorithm != "ffa":
        assert any(measure == "moved" for _, measure, _, _ in found.matrices)


def test_a_plan_refuses_what_a_run_does(tmp_path: Path) -> None:
    from fedsa.cost.plan import plan_run
    from fedsa.recipe import parse_recipe

    kind = KINDS["convnext, convolutions"]
    recipe = {
        "rounds": 1,
        "algorithm": "flexlora",
        "model": {"path": str(write_model("convnext, convolutions", tmp_path / "model"))},
        "adapter": {"r": 2, "target_modules": kind.targets},
        "task": {"kind": "image_classification"},
        "data": {"path": "nowhere", "partition": {"kind": "iid", "clients": 2}},
    }
    with pytest.raises(ModelError, match="patch_embeddings is a Conv2d layer"):
        plan_run(parse_recipe(recipe))


# -- what PEFT's config may say --------------------------------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "megatron_config": {"a": 1},
    "layer_replication": [(0, 1)],
    "lora_bias": True,
    "use_qalora": True,
    "trainable_token_indices": [1],
    "ensure_weight_tying": True,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_peft_config_says_beyond_what_is_known_is_refused(name: str) -> None:
    from fedsa.models import variant_of

    with pytest.raises(ModelError, match=f"{name} is not supported"):
        variant_of(LoraConfig(**{name: OTHERS[name]}))


@pytest.mark.parametrize("rank", [10**9, 10**12])
def test_a_rank_that_no_memory_holds_is_refused_before_it_is_made(rank: int, tiny_recipe: Any) -> None:
    with pytest.raises(ModelError, match=rf"adapter\.r = {rank}: the adapter's tensors would take .* GiB"):
        fedsa.Federation.from_recipe(tiny_recipe(f"adapter.r={rank}"))
