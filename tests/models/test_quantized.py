"""A frozen base of 4 or 8 bits: what it computes, and that training through it is what it is through a plain one."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import fedsa
from fedsa import Federation
from fedsa.client.training import cohort, sequential
from fedsa.client.training.job import Job
from fedsa.cost.plan import plan_run
from fedsa.errors import MissingExtraError, ModelError
from fedsa.models import AdaptedModel, bits_of_a_weight, load_base
from fedsa.models.quantized import quantized_layers
from fedsa.recipe import ComputeSettings, ModelSettings, TrainingSettings, parse_recipe
from support.tiny_decoder import write_decoder, write_sums
from support.tiny_models import TASK, WORDS, token_rows

bitsandbytes = pytest.importorskip("bitsandbytes")

KINDS = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}
SIZES = {"vocab_size": WORDS, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)


RECIPE = {
    "rounds": 2,
    "adapter": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "task": {"kind": "generation", "prompt": "{question}", "answer": "{answer}"},
    "data": {"path": "rows.jsonl", "partition": {"kind": "column", "column": "site"}},
}


def write(folder, kind=LlamaForSequenceClassification, *, width=64):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, hidden_size=width, intermediate_size=width, num_labels=3, pad_token_id=0)
    kind(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint"))


def base_of(checkpoint, kind, compute=CPU):
    settings = ModelSettings(path=str(checkpoint), quantization=kind)
    options = {"num_labels": 3, "pad_token_id": 0}
    return load_base(
        settings, auto_model="AutoModelForSequenceClassification", options=options, seed=0, compute=compute
    )[0]


def adapted(checkpoint, kind, **options):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", r=4, **options)
    return AdaptedModel(base_of(checkpoint, kind), config, seed=0)


@torch.no_grad()
def in_full(model):
    """The same model with the weights that the few bits stand for, as plain layers."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                state = layer.weight.quant_state
                plain.weight.copy_(bitsandbytes.functional.dequantize_4bit(layer.weight.data, state))
                setattr(parent, name, plain)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_but_the_head_is_of_few_bits(checkpoint, kind):
    model, plain = base_of(checkpoint, kind), base_of(checkpoint, None)
    few = {name for name, layer in model.named_modules() if type(layer) is KINDS[kind]}
    assert few == {name for name, _ in quantized_layers(plain)} != set()
    assert type(model.score) is nn.Linear
    assert {layer.weight.dtype for layer in model.modules() if type(layer) is KINDS[kind]} <= {torch.uint8, torch.int8}


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.3), ("int8", 0.05)])
def test_it_computes_nearly_what_the_plain_base_does(checkpoint, kind, error):
    ids = torch.arange(2, 22).reshape(2, 10)
    with torch.no_grad():
        few, plain = (base_of(checkpoint, each).model(ids).last_hidden_state for each in (kind, None))
    assert 0 < float((few - plain).norm() / plain.norm()) < error


def test_export_loads_the_base_in_full(checkpoint):
    assert type(base_of(checkpoint, "nf4", compute=None).model.layers[0].self_attn.q_proj) is nn.Linear


def test_bits_of_a_weight_are_those_of_the_file(tmp_path):
    write(tmp_path, width=256)
    for kind in KINDS:
        layer = base_of(tmp_path, kind).model.layers[0].mlp.up_proj
        taken = layer.weight.nbytes
        if kind == "nf4":
            state = layer.weight.quant_state
            taken += state.absmax.nbytes + state.state2.absmax.nbytes
        assert taken == bits_of_a_weight(kind) / 8 * 256 * 256


@pytest.mark.run
def test_a_plan_counts_the_bits(tmp_path):
    write_decoder(tmp_path)
    plans = {}
    for kind in (None, *KINDS):
        model = {"path": str(tmp_path)} | ({"quantization": kind} if kind else {})
        recipe = parse_recipe({**RECIPE, "model": model, "compute": {"device": "cpu", "precision": "fp32"}})
        plans[kind] = plan_run(recipe, clients=2)["memory"]["weights"]
    numbers = sum(layer.weight.numel() for _, layer in quantized_layers(LlamaForCausalLM.from_pretrained(tmp_path)))
    for kind in KINDS:
        assert plans[None] - plans[kind] == pytest.approx(numbers * (32 - bits_of_a_weight(kind)) / 8, abs=1)


def gradients(model):
    """Gradients of all of the adapter's tensors, after an evaluation as a run begins with."""
    batch = {"input_ids": torch.arange(2, 22).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    model.write({key: value + 0.1 for key, value in model.read(model.keys).items()})
    with model.evaluating():
        model.model(**model.begin(batch, [2]))
    parameters = model.train_only(model.keys)
    with model.training():
        model.model(**model.begin(batch, [2])).logits.square().sum().backward()
    return {key: parameter.grad for key, parameter in parameters.items()}


def test_gradients_are_those_of_the_weights_that_the_bits_stand_for(checkpoint):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", r=4)
    few = gradients(adapted(checkpoint, "nf4"))
    plain = gradients(AdaptedModel(in_full(base_of(checkpoint, "nf4")), config, seed=0))
    assert few.keys() == plain.keys()
    for key, gradient in few.items():
        assert bool(gradient.any()), key
        torch.testing.assert_close(gradient, plain[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "variant", "obstacles"), [("nf4", {}, 0), ("int8", {}, 0), ("nf4", {"use_dora": True}, 4)]
)
def test_cohorts_take_lora_and_leave_dora_to_one_client_at_a_time(checkpoint, kind, variant, obstacles):
    assert len(adapted(checkpoint, kind, **variant).obstacles()) == obstacles


@pytest.mark.run
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cohort_comes_to_what_one_client_at_a_time_comes_to(checkpoint, kind, pack):
    model = adapted(checkpoint, kind, lora_dropout=0.1)
    tensors = {key: value + 0.01 for key, value in model.read(model.keys).items()}
    jobs = [
        Job(f"c{n}", 1, 4, 0, tensors, model.keys, model.keys[:2], {}, np.arange(rows[0], rows[1]))
        for n, rows in enumerate(((0, 7), (7, 27), (27, 39)))
    ]
    # int8 rounds activations too: where two sums fall on either side of a half, they differ by a step
    settings = TrainingSettings(local_steps=5, batch_size=4, learning_rate=1e-3, optimizer="sgd")
    options = {"model": model, "task": TASK, "encoded": token_rows(), "settings": settings}
    alone, together = [sequential.train(job, **options) for job in jobs], cohort.train(jobs, **options, pack=pack)
    for one, other, job in zip(alone, together, jobs, strict=True):
        assert any(not torch.equal(one.tensors[key], job.tensors[key]) for key in job.keys)
        for key, value in one.tensors.items():
            torch.testing.assert_close(other.tensors[key], value, rtol=0, atol=1e-5 if kind == "nf4" else 1e-3)


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.mark.run
@pytest.mark.parametrize("algorithm", ["fedsa", "fedex"])  # fedex adds to the frozen weights
def test_a_run_trains_and_exports_what_plain_libraries_load(tmp_path, algorithm):
    model, rows = write_decoder(tmp_path / "model"), write_sums(tmp_path / "rows.jsonl")
    recipe = parse_recipe(
        {
            **RECIPE,
            "algorithm": algorithm,
            "model": {"path": str(model), "quantization": "nf4"},
            "data": {**RECIPE["data"], "path": str(rows)},
            "training": {"local_steps": 5, "batch_size": 4, "learning_rate": 3e-2},
            "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
        }
    )
    result = fedsa.run(Federation.from_recipe(recipe), tmp_path / "run")
    assert result.summary["chosen_round"] > 0  # better on validation than before
    (merged, *_) = result.export(tmp_path / "models", merge=True)
    base, tuned = (LlamaForCausalLM.from_pretrained(folder) for folder in (model, merged))
    changed = {
        name
        for (name, before), after in zip(base.named_parameters(), tuned.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} == {"q_proj", "v_proj"}
    if algorithm == "fedsa":
        (adapter, *_) = result.export(tmp_path / "adapters")
        again = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        for one, other in zip(again.parameters(), tuned.parameters(), strict=True):
            torch.testing.assert_close(one, other)


# -- where it does not go ---------------------------------------------------------------------------------------------


def recipe(**adapter):
    return {
        "rounds": 1,
        "model": {"path": "x", "quantization": "nf4"},
        "adapter": adapter,
        "data": {"path": "x", "partition": {"kind": "files"}},
    }


@pytest.mark.parametrize("variant", ["vera", "pissa", "olora", "loha", "ia3", "lora_xs"])
def test_variants_that_need_the_weights_in_full_are_refused(variant):
    with pytest.raises(Exception, match=f"model.quantization: does not go with adapter.variant = '{variant}'"):
        parse_recipe(recipe(variant=variant))


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_variants_that_do_not_are_taken(variant):
    assert parse_recipe(recipe(variant=variant)).model.quantization == "nf4"


def test_a_layer_that_the_checkpoint_lacks_is_not_drawn_in_few_bits(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    name = "model.layers.1.mlp.up_proj"
    save_file(
        {key: value for key, value in load_file(file).items() if not key.startswith(name)}, file, {"format": "pt"}
    )
    with pytest.raises(ModelError, match=rf"lacks {name}, which would be trained in 4 or 8 bits"):
        base_of(tmp_path, "nf4")


def test_without_bitsandbytes_the_install_command_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr("fedsa.models.quantized.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsa\[bnb\]'"):
        base_of(checkpoint, "nf4")


def test_it_loads_for_generation_with_the_vocabulary_in_full(tmp_path):
    settings = ModelSettings(path=str(write(tmp_path, LlamaForCausalLM)), quantization="nf4")
    model, drawn = load_base(settings, auto_model="AutoModelForCausalLM", options={}, seed=0, compute=CPU)
    assert type(model.lm_head) is nn.Linear
    assert drawn == set()
