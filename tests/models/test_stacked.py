"""A stack gives each client's rows what the model gives with that client's tensors written into it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fedsa.models import AdaptedModel
from fedsa.models.dropout import Streams
from fedsa.models.stacked import Stack, obstacles
from fedsa.types import Factor, Key
from support.stacks import ENCODED, ROWS, alone, check, together
from support.tiers import first_is_quick, one_of_each
from support.tiny_models import (
    BASES,
    FITTING,
    TASK,
    VARIANTS,
    adapt,
    begin,
    bert,
    client_tensors,
    gpt2,
    llama,
    peft_config,
    roberta,
)


def kind(name, variant, pack):
    """Every variant on one model, every model with one variant."""
    if name == "bert":
        return variant, pack
    return (name, pack) if variant == "lora" else None


@pytest.mark.run
@pytest.mark.parametrize(
    ("name", "variant", "pack"), one_of_each([(*case, pack) for case in FITTING for pack in (False, True)], kind)
)
def test_each_clients_rows_go_through_its_own_adapter(name, variant, pack):
    check(adapt(BASES[name], variant), pack=pack)


ADAPTERS = {
    "every linear layer": (bert, {"target_modules": ["query", "key", "value", "dense"]}),
    "another rank for some layers": (bert, {"rank_pattern": {"value": 2}, "alpha_pattern": {"value": 5}}),
    "the first layer alone": (bert, {"layers_to_transform": [0]}),
    "a pooler in full": (bert, {"modules_to_save": ["classifier", "pooler"]}),
    "layer norms in full": (bert, {"modules_to_save": ["classifier", "LayerNorm"]}),
    "linear layers in full": (bert, {"modules_to_save": ["classifier", "intermediate"]}),
    "word embeddings in full": (bert, {"modules_to_save": ["classifier", "word_embeddings"]}),
    "a head of two layers, one of them adapted": (roberta, {"target_modules": ["query", "output.dense"]}),
    "transposed weights": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "dora on every linear layer": (bert, {"variant": "dora", "target_modules": ["query", "output.dense"]}),
    "dora on transposed weights": (gpt2, {"variant": "dora", "target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "dora of another rank for some layers": (bert, {"variant": "dora", "rank_pattern": {"value": 2}}),
    "loha of another rank for some layers": (bert, {"variant": "loha", "rank_pattern": {"value": 2}}),
    "ia3 on inputs of some layers": (
        bert,
        {"variant": "ia3", "target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
    ),
    "ia3 on inputs of transposed layers": (
        gpt2,
        {"variant": "ia3", "target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
    "rms norms in full": (llama, {"modules_to_save": ["score", "input_layernorm", "norm"]}),
}


@pytest.mark.run
@pytest.mark.parametrize("pack", first_is_quick([False, True]))
@pytest.mark.parametrize(("make", "options"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_of_other_shapes(make, options, pack):
    model = adapt(make, **options)
    assert model.obstacles() == []
    check(model, pack=pack)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_the_precision_of_the_base_it_is_near(variant):
    model = adapt(bert, variant, precision="bf16")
    clients = client_tensors(model, len(ROWS))
    outputs = together(model, clients)
    for key, value in model.stack(1).values.items():  # an output is not multiplied by a rounded number
        whole = key.factor in (Factor.MAGNITUDE, Factor.SCALE)
        assert value.dtype == (torch.float32 if whole else torch.bfloat16)
    for tensors, rows, output in zip(clients, ROWS, outputs, strict=True):
        if rows:
            model.write(tensors)
            batch = begin(model, ENCODED, [rows])
            with torch.no_grad(), model.autocast():
                expected = TASK.outputs(model.model, batch)
            assert (output - expected).norm() < 0.1 * expected.norm()


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_client_has_the_gradient_of_its_own_rows(variant):
    model = adapt(bert, variant, modules_to_save=["classifier", "pooler"])
    clients = client_tensors(model, len(ROWS))
    with model.stack(len(clients), model.keys) as stack:
        for place, tensors in enumerate(clients):
            stack.load(place, tensors)
        TASK.losses(model.model, begin(model, ENCODED, ROWS))[0].sum().backward()
        stacked = {key: value.grad for key, value in stack.values.items()}
    for place, (tensors, rows) in enumerate(zip(clients, ROWS, strict=True)):
        model.write(tensors)
        parameters = model.train_only(model.keys)
        if rows:
            TASK.losses(model.model, begin(model, ENCODED, [rows]))[0].sum().backward()
        for key, parameter in parameters.items():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert bool(expected.abs().max() > 1e-6) is bool(rows)
            torch.testing.assert_close(stacked[key][place], expected, rtol=1e-8, atol=1e-9)


def test_only_what_is_trained_has_a_gradient():
    model = adapt(bert)
    wanted = {key for key in model.keys if key.factor is Factor.B}
    stack = model.stack(3, wanted)
    assert {key for key, value in stack.values.items() if value.requires_grad} == wanted
    assert not any(value.requires_grad for value in model.stack(3).values.values())
    for key, value in stack.values.items():
        assert value.shape == (3, *model.initial[key].shape)


def test_what_is_loaded_stands_in_the_clients_place_alone():
    model = adapt(bert)
    stack = model.stack(3, model.keys)
    (tensors,) = client_tensors(model, 1)
    stack.load(1, tensors)
    for key, value in stack.values.items():
        assert torch.equal(value[1], tensors[key])
        assert not value[0].any()
        assert not value[2].any()
    one = model.keys[0]
    stack.load(1, {one: torch.ones_like(tensors[one])})
    assert torch.equal(stack.values[one][1], torch.ones_like(tensors[one]))
    assert torch.equal(stack.values[model.keys[1]][1], tensors[model.keys[1]])


# -- in and out -------------------------------------------------------------------------------------------------------


def picture(model: AdaptedModel) -> dict:
    """Return which modules there are, and their modes; and copies of all weights."""
    modules = {name: (id(module), module.training) for name, module in model.model.named_modules()}
    return {**modules, **{f"{name}, value": value.clone() for name, value in model.model.state_dict().items()}}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_is_as_it_was_after_a_stack(variant):
    model = adapt(bert, variant, modules_to_save=["classifier", "pooler"])
    before = picture(model)
    outside = alone(model, model.initial, ROWS[0])
    stack = model.stack(len(ROWS))
    assert_same(picture(model), before)
    with stack:
        assert picture(model).keys() != before.keys()
    assert_same(picture(model), before)
    with pytest.raises(ZeroDivisionError), stack:
        1 / 0  # noqa: B018
    assert_same(picture(model), before)
    together(model, client_tensors(model, len(ROWS)))
    assert_same(picture(model), before)
    assert torch.equal(alone(model, model.initial, ROWS[0]), outside)


def test_the_models_own_adapter_takes_no_part_in_a_stack():
    model = adapt(bert)
    clients = client_tensors(model, len(ROWS))
    first = together(model, clients)
    model.write(client_tensors(model, 1, scale=50.0)[0])
    again = together(model, clients)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_a_stack_are_in_the_models_mode(training):
    model = adapt(bert, dropout=0.5)
    model.model.train(training)
    with model.stack(2):
        assert all(module.training is training for module in model.model.modules() if module is not model.model)


def test_without_a_pass_there_are_no_owners():
    model = adapt(bert)
    model.streams.layout = None
    with model.stack(2), pytest.raises(RuntimeError, match="no pass has begun"):
        TASK.outputs(model.model, ENCODED.batch([0]))


# -- what cannot be stacked -------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """One layer of each kind that PEFT can adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.embedding = nn.Embedding(4, 4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 4)


OBSTACLES = {
    "linear": ({"target_modules": ["linear"], "modules_to_save": ["head"]}, []),
    "embedding": (
        {"target_modules": ["linear", "embedding"]},
        ["embedding: a peft.tuners.lora Embedding layer"],
    ),
    "conv": ({"target_modules": ["conv"]}, ["conv: a peft.tuners.lora Conv2d layer"]),
    "both": (
        {"target_modules": ["conv", "embedding"]},
        ["conv: a peft.tuners.lora Conv2d layer", "embedding: a peft.tuners.lora Embedding layer"],
    ),
    "dora": ({"target_modules": ["linear"], "use_dora": True}, []),
    "a variant": ({"target_modules": ["linear"], "init_lora_weights": "mica"}, ["linear: a LoRA variant"]),
    "a bias": ({"target_modules": ["linear"], "lora_bias": True}, ["linear: a LoRA variant"]),
}


@pytest.mark.parametrize(("options", "expected"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_stands_in_the_way_of_a_stack(options, expected):
    assert obstacles(get_peft_model(Mixed(), LoraConfig(r=2, **options))) == expected


@pytest.mark.parametrize("variant", ["vera", "loha", "ia3"])
def test_other_adapters_on_linear_layers_are_no_obstacle(variant):
    assert obstacles(get_peft_model(Mixed(), peft_config(variant, ["linear"], task_type=None))) == []


@pytest.mark.parametrize("variant", ["loha", "ia3"])
def test_other_adapters_on_other_layers_are_an_obstacle(variant):
    model = get_peft_model(Mixed(), peft_config(variant, ["conv"], task_type=None))
    assert obstacles(model) == [f"conv: a peft.tuners.{variant} Conv2d layer"]


def test_an_adapted_embedding_is_an_obstacle_and_no_stack_is_made():
    model = adapt(bert, target_modules=["query", "word_embeddings"])
    assert model.obstacles() == ["bert.embeddings.word_embeddings: a peft.tuners.lora Embedding layer"]
    with pytest.raises(NotImplementedError, match=r"^bert\.embeddings\.word_embeddings: Embedding cannot be stacked$"):
        model.stack(2)


def test_parameters_beside_parts_with_parameters_cannot_be_stacked():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))

    base = Mixed()
    base.head = Both()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["linear"], modules_to_save=["head"]))
    tensors = {
        Key("linear", Factor.A): torch.zeros(2, 4),
        Key("linear", Factor.B): torch.zeros(4, 2),
        Key("head.scale", Factor.HEAD): torch.zeros(4),
        Key("head.inner.weight", Factor.HEAD): torch.zeros(4, 4),
        Key("head.inner.bias", Factor.HEAD): torch.zeros(4),
    }
    with pytest.raises(NotImplementedError, match="Both has parameters beside parts with parameters"):
        Stack(model, Streams(), tensors, 2)
