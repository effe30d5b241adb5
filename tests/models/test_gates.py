"""Layers whose gate weighs several adapters, for each token or for all, one client's and many clients'."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear

from fedsa.errors import ModelError
from fedsa.types import Factor, Gating, Key
from support.stacks import ENCODED, ROWS, alone, check, together
from support.tiers import first_is_quick
from support.tiny_models import BASES, TASK, adapt, begin, bert, client_tensors, gpt2, llama

GATED = {"adapters": ("default", "rest"), "gated": "token"}
CONSTANT = {"layer": lambda gate: gate.softmax(dim=0), "free": lambda gate: gate}
"""What a gate multiplies by that gives all tokens the same."""


def test_a_layer_is_the_base_and_what_the_gate_leaves_of_each_adapter():
    model = adapt(method=GATED)
    (tensors,) = client_tensors(model, 1)
    model.write(tensors)
    path, layer = next((path, module) for path, module in model.model.named_modules() if isinstance(module, LoraLinear))
    module = path.removeprefix("base_model.model.")
    values = torch.randn(5, 16, dtype=torch.float64)
    shares = torch.softmax(values @ tensors[Key(module, Factor.GATE)].T, dim=1)
    expected = values @ layer.base_layer.weight.T + layer.base_layer.bias
    for place, adapter in enumerate(("default", "rest")):
        a, b = (tensors[Key(module, factor, adapter)] for factor in (Factor.A, Factor.B))
        expected = expected + shares[:, [place]] * (values @ a.T @ b.T) * model.scaling[module]
    torch.testing.assert_close(layer(values), expected, atol=1e-12, rtol=0)
    assert shares.std(dim=0).min() > 0.01, "tokens differ"


@pytest.mark.parametrize("variant", ["lora", "lora_xs"])
@pytest.mark.parametrize("gating", CONSTANT)
def test_a_gate_that_gives_all_tokens_the_same_is_a_scale_of_each_adapter(gating, variant):
    model, plain = (adapt(variant=variant, method={**GATED, "gated": kind}) for kind in (gating, None))
    (tensors,) = client_tensors(model, 1)
    model.write(tensors)
    plain.write({key: value for key, value in tensors.items() if key.factor is not Factor.GATE})
    layers = [
        {path.removeprefix("base_model.model."): layer for path, layer in each.model.named_modules()}
        for each in (model, plain)
    ]
    module = next(path for path, layer in layers[0].items() if isinstance(layer, LoraLinear))
    gate = tensors[Key(module, Factor.GATE)]
    assert gate.shape == (2,)
    for adapter, multiplier in zip(("default", "rest"), CONSTANT[gating](gate).tolist(), strict=True):
        layers[1][module].scaling[adapter] *= multiplier
    values = torch.randn(5, 16, dtype=torch.float64)
    expected = layers[1][module](values)
    torch.testing.assert_close(layers[0][module](values), expected, atol=1e-12, rtol=0)
    assert (expected - layers[1][module].base_layer(values)).abs().max() > 0.1


@pytest.mark.parametrize("gating", CONSTANT)
def test_a_merged_model_has_what_the_gates_left_of_each_adapter(gating):
    model = adapt(method={**GATED, "gated": gating})
    (tensors,) = client_tensors(model, 1)
    expected = alone(model, tensors, ROWS[0])
    batch = begin(model, ENCODED, [ROWS[0]])
    merged = model.merge()
    with torch.no_grad():
        torch.testing.assert_close(TASK.outputs(merged, batch), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("gating", "first"), [("layer", 0.0), ("free", 1.0)])
def test_gates_begin_with_equal_shares_and_with_one(gating, first):
    gates = [value for key, value in adapt(method={**GATED, "gated": gating}).initial.items() if key.factor == "gate"]
    assert gates
    assert all(value.tolist() == [first, first] for value in gates)


@pytest.mark.parametrize("gating", get_args(Gating))
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", first_is_quick(BASES))
def test_many_clients_gates_at_once(name, pack, gating):
    check(adapt(BASES[name], method={**GATED, "gated": gating}), pack=pack)


@pytest.mark.parametrize("clients", [1, 2])
def test_the_model_has_its_own_gate_again_after_a_stack(clients):
    model = adapt(method=GATED)
    tensors = client_tensors(model, len(ROWS))
    before = alone(model, tensors[0], ROWS[0])
    with model.stack(clients):
        pass
    torch.testing.assert_close(alone(model, tensors[0], ROWS[0]), before, atol=0, rtol=0)
    together(model, tensors)
    torch.testing.assert_close(alone(model, tensors[0], ROWS[0]), before, atol=0, rtol=0)


def test_gates_are_drawn_from_the_seed_and_are_the_first_adapters():
    first, again = (adapt(gpt2, method=GATED).initial for _ in range(2))
    gates = {key: value for key, value in first.items() if key.factor is Factor.GATE}
    assert {key.adapter for key in gates} == {"default"}
    assert {tuple(value.shape) for value in gates.values()} == {(2, 16)}
    assert all(torch.equal(value, again[key]) for key, value in gates.items())
    assert all(0.2 < value.abs().max() <= 16**-0.5 for value in gates.values()), "between ±1/√in"
    assert len(gates) == len({key.module for key in first if key.factor is Factor.A})
    plain = adapt(gpt2, method={"adapters": ("default", "rest")}).initial
    assert all(torch.equal(value, first[key]) for key, value in plain.items()), "the adapters begin as without gates"


def test_what_has_no_gate():
    with pytest.raises(ModelError, match=r"word_embeddings is Embedding: leave it out"):
        adapt(bert, method=GATED, target_modules=["word_embeddings", "query"])
    assert not any(key.factor is Factor.GATE for key in adapt(llama).initial)
