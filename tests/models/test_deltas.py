"""What the server adds to the frozen weights, and several adapters: of one client, and of many in one pass."""

from __future__ import annotations

import copy

import pytest
import torch

from fedsa.errors import ModelError
from fedsa.models import AdaptedModel, adapted_fingerprint
from fedsa.types import Factor, Key
from support.tiers import first_is_quick
from support.tiny_models import BASES, TASK, adapt, albert, begin, client_tensors, gpt2, token_rows

FOLDS = {"folds": True}
BOTH = {"folds": True, "adapters": ("default", "local")}
ROWS = [[0, 1], [2, 3, 4], [5]]


def outputs(model: AdaptedModel, rows) -> torch.Tensor:
    encoded = token_rows()
    with model.evaluating():
        return TASK.outputs(model.model, begin(model, encoded, rows)).clone()


def alone(model: AdaptedModel, clients, rows=ROWS) -> torch.Tensor:
    made = []
    for tensors, own in zip(clients, rows, strict=True):
        model.write(tensors)
        made.append(outputs(model, [own]))
    return torch.cat(made)


def together(model: AdaptedModel, clients, rows=ROWS, *, pack=False) -> torch.Tensor:
    with model.stack(len(clients)) as stack:
        for number, tensors in enumerate(clients):
            stack.load(number, tensors)
        encoded = token_rows()
        with model.evaluating():
            return TASK.outputs(model.model, begin(model, encoded, rows, pack=pack)).clone()


def deltas(tensors) -> dict[Key, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.factor is Factor.DELTA}


@pytest.mark.parametrize("name", first_is_quick(BASES))
def test_it_is_added_to_what_the_frozen_layer_gives(name):
    model = adapt(BASES[name], method=FOLDS)
    plain = adapt(BASES[name])
    assert deltas(model.initial)
    for key, tensor in deltas(model.initial).items():
        assert tensor.dtype == torch.float32
        assert not tensor.any()
        a, b = model.initial[key._replace(factor=Factor.A)], model.initial[key._replace(factor=Factor.B)]
        assert tensor.shape == (b.shape[0], a.shape[1])
    assert torch.equal(outputs(model, [[0, 1, 2]]), outputs(plain, [[0, 1, 2]]))  # as without it, bit for bit
    (tensors,) = client_tensors(model, 1)
    model.write(tensors)
    merged = copy.deepcopy(model).merge().eval()
    encoded = token_rows()
    expected = TASK.outputs(merged, begin(model, encoded, [[0, 1, 2]]))
    given = outputs(model, [[0, 1, 2]])
    torch.testing.assert_close(given, expected.detach(), atol=1e-9, rtol=0)
    plain.write({key: tensor for key, tensor in tensors.items() if key not in deltas(tensors)})
    assert (given - outputs(plain, [[0, 1, 2]])).abs().max() > 1e-3
    assert all(torch.equal(tensor, model.read([key])[key]) for key, tensor in tensors.items())
    model.write(model.initial)
    assert torch.equal(outputs(model, [[0, 1, 2]]), outputs(adapt(BASES[name]), [[0, 1, 2]]))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_many_clients_with_deltas_of_their_own_are_each_alone(name, pack):
    attention = "sdpa" if name in ("llama", "modernbert") else "eager"
    model = adapt(BASES[name], method=BOTH, attention=attention)
    clients = client_tensors(model, 3)
    clients[1] = {**clients[1], **deltas(model.initial)}
    torch.testing.assert_close(together(model, clients, pack=pack), alone(model, clients), atol=1e-10, rtol=0)


def test_a_layer_that_is_called_twice_has_it_both_times():
    model = adapt(albert, method=FOLDS)
    clients = client_tensors(model, 3)
    torch.testing.assert_close(together(model, clients), alone(model, clients), atol=1e-10, rtol=0)


def test_equal_deltas_are_held_once_and_zeros_not_at_all():
    model = adapt(method=FOLDS)
    first, second, _ = clients = client_tensors(model, 3)
    clients[2] = {**clients[2], **{key: tensor.clone() for key, tensor in deltas(first).items()}}
    stack = model.stack(3)
    assert not any(key.factor is Factor.DELTA for key in stack.values)
    held = stack._deltas
    for number, tensors in enumerate([first, {**second, **deltas(first)}, clients[2]]):
        stack.load(number, tensors)
    assert {held.copies(key) for key in deltas(first)} == {1}
    stack.load(1, second)
    assert {held.copies(key) for key in deltas(first)} == {2}
    for number in range(3):
        stack.load(number, model.initial)
    assert {held.copies(key) for key in deltas(first)} == {0}
    shared = [{**tensors, **deltas(first)} for tensors in clients]
    torch.testing.assert_close(together(model, shared), alone(model, shared), atol=1e-10, rtol=0)


def test_gradients_go_through_it_and_none_to_it():
    model = adapt(method=FOLDS)
    (tensors,) = client_tensors(model, 1)
    model.write(tensors)
    trained = model.train_only(model.keys)
    assert set(trained) == set(model.keys) - set(deltas(tensors))
    with model.training():
        batch = begin(model, token_rows(), [[0, 1, 2]])
        sums, _ = TASK.losses(model.model, batch)
        sums.sum().backward()
    a = next(key for key in trained if key.factor is Factor.A and key.module.endswith("value"))  # deltas lie behind it
    gradient, step, losses = trained[a].grad, 1e-6, []
    for sign in (1, -1):
        model.write({a: tensors[a] + sign * step * gradient.sign()})
        with model.evaluating():
            value, _ = TASK.losses(model.model, begin(model, token_rows(), [[0, 1, 2]]))
        losses.append(float(value.sum()))
    assert gradient.abs().sum() > 1e-3
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(gradient.abs().sum()), rel=1e-5)


def test_small_ones_are_not_rounded_away_in_bf16():
    model = adapt(method=FOLDS, precision="bf16", scale=1.0)
    (tensors,) = client_tensors(model, 1, scale=0)
    small = {key: torch.full_like(tensor, 2.0**-12) for key, tensor in deltas(tensors).items()}
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.write(small)
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert all(torch.equal(tensor, model.read([key])[key]) for key, tensor in small.items())
    layer, key = model.model.get_submodule(f"base_model.model.{next(iter(small)).module}"), next(iter(small))
    values = torch.ones(1, 1, small[key].shape[1])
    with model.autocast():
        given = layer.base_layer(values.bfloat16()).float()
    model.write({key: torch.zeros_like(small[key])})
    with model.autocast():
        base = layer.base_layer(values.bfloat16()).float()
    torch.testing.assert_close(given - base, torch.full_like(base, 16 * 2.0**-12), atol=2.0**-9, rtol=0)


def test_it_is_no_part_of_the_base():
    plain, folding = adapt(), adapt(method=BOTH)
    assert adapted_fingerprint(plain) == adapted_fingerprint(folding)
    folding.write(client_tensors(folding, 1)[0])
    assert adapted_fingerprint(plain) == adapted_fingerprint(folding)


def test_what_it_does_not_go_with():
    with pytest.raises(ModelError, match=r"does not go with adapter.variant = 'vera'"):
        adapt(variant="vera", method=FOLDS)
    with pytest.raises(ModelError, match=r"embeddings.word_embeddings is a Embedding layer.*leave it out"):
        adapt(target_modules=["word_embeddings", "query"], method=FOLDS)
    model = adapt(gpt2, method=FOLDS)
    key, tensor = next(iter(deltas(model.initial).items()))
    with pytest.raises(ModelError, match=r"delta:default of shape \(16, 48\) does not fit .* \(48, 16\)"):
        model.write({key: tensor.T})
    with pytest.raises(ModelError, match=r"does not fit"):
        model.stack(1).load(0, {key: tensor.T})


# -- several adapters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lora", "rslora", "vera"])
def test_the_updates_of_several_adapters_are_added(variant):
    model = adapt(variant=variant, method={"adapters": ("default", "local")})
    tensors = client_tensors(model, 3)
    heads = {key for key in model.keys if key.factor is Factor.HEAD}
    assert {key.adapter for key in heads} == {"default"}
    assert {key._replace(adapter="local") for key in model.keys if key.adapter == "default"} - {
        key._replace(adapter="local") for key in heads
    } == {key for key in model.keys if key.adapter == "local"}
    torch.testing.assert_close(together(model, tensors), alone(model, tensors), atol=1e-10, rtol=0)
    model.write(tensors[0])
    given = outputs(model, [[0, 1, 2]])
    local = {key: torch.zeros_like(tensor) for key, tensor in tensors[0].items() if key.adapter == "local"}
    model.write(local)
    without = outputs(model, [[0, 1, 2]])
    one = adapt(variant=variant)
    one.write({key: tensor for key, tensor in tensors[0].items() if key.adapter == "default"})
    torch.testing.assert_close(without, outputs(one, [[0, 1, 2]]), atol=1e-10, rtol=0)
    assert (given - without).abs().max() > 1e-6


def test_they_begin_with_values_of_their_own_that_the_seed_decides():
    first, again = (adapt(method={"adapters": ("default", "local", "third")}).initial for _ in range(2))
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    for key, tensor in first.items():
        if key.factor is Factor.A and key.adapter == "default":
            others = [first[key._replace(adapter=name)] for name in ("local", "third")]
            assert not any(torch.equal(tensor, other) for other in others)
            assert not torch.equal(*others)
    plain = adapt().initial  # and the first begins as if it were alone
    assert all(torch.equal(tensor, first[key]) for key, tensor in plain.items())


# -- scaling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_the_methods_scale_is_in_every_layer_and_in_the_config(variant):
    own = set(adapt(variant=variant).scaling.values())
    method = {"scaling": lambda scaling, rank: scaling * rank / 3, "adapters": ("default", "local")}
    model = adapt(variant=variant, method=method)
    (before,), (after,) = own, set(model.scaling.values())
    assert after == pytest.approx(before * 4 / 3, rel=1e-12)
    config = model.config
    assert config.use_rslora == (variant == "rslora")
    assert config.lora_alpha / (2.0 if config.use_rslora else 4) == after
    assert {layer.scaling["local"] for layer in model.model.modules() if hasattr(layer, "lora_A")} == {after}


def test_a_scale_that_is_the_variants_own_leaves_the_config_alone():
    model = adapt(method={"scaling": lambda scaling, rank: scaling}, rank_pattern={"query": 2})
    assert set(model.scaling.values()) == {2.0, 4.0}
    assert type(model.config.lora_alpha) is int
    with pytest.raises(ModelError, match="rank_pattern and alpha_pattern"):
        adapt(method={"scaling": lambda scaling, rank: scaling / 2}, rank_pattern={"query": 2})
