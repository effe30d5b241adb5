import itertools

import pytest
import torch

from fedsa.client.training.job import Job, local_batches
from fedsa.client.training.sequential import train
from fedsa.errors import TrainingError
from fedsa.federation import Federation
from fedsa.recipe import TrainingSettings
from fedsa.types import Side

# -- training on the tiny model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(tiny_recipe, tiny_model_without_dropout):
    return Federation.from_recipe(
        tiny_recipe(f"model.path='{tiny_model_without_dropout.as_posix()}'", "adapter.dropout=0.0")
    )


@pytest.fixture(scope="module")
def start(federation):
    """Tensors to train from: the initial ones with a B that is not zero, so that A has a gradient from the start."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) if key.factor.side is Side.B else tensor
        for key, tensor in federation.model.initial.items()
    }


@pytest.fixture
def run(federation, start):
    """Train one client's round with settings; give the trained tensors, or all that came out."""

    def run(*, tensors=None, trained=None, received=(), round=1, rounds=1, state=None, whole=False, **chosen):
        chosen = {"local_steps": 1, "batch_size": 8, "max_grad_norm": None, **chosen}
        client = federation.clients[0]
        result = train(
            Job(
                client=client,
                round=round,
                rounds=rounds,
                seed=0,
                tensors=start if tensors is None else tensors,
                keys=federation.model.keys if trained is None else tuple(trained),
                received=tuple(received),
                optimizer_state=state or {},
                rows=federation.rows.partition.clients[client].train,
            ),
            model=federation.model,
            task=federation.task,
            encoded=federation.encoded,
            settings=TrainingSettings(**chosen),
        )
        return result if whole else result.tensors

    return run


def keys_on(federation, *sides):
    return [key for key in federation.model.keys if key.factor.side in sides]


def step(after, before, keys):
    """Return the flattened change of some tensors."""
    return torch.cat([(after[key] - before[key]).flatten() for key in keys])


def gradient(federation, tensors, rows):
    """Return the gradient of the loss on some rows, by autograd on the model itself."""
    model = federation.model
    model.write(tensors)
    parameters = model.train_only(model.keys)
    sums, counts = federation.task.losses(model.model, federation.encoded.batch(rows))
    (sums.sum() / counts.sum()).backward()
    return {key: parameter.grad.clone() for key, parameter in parameters.items()}


def test_one_sgd_step_is_the_gradient(federation, start, run):
    client = federation.clients[0]
    rows = federation.rows.partition.clients[client].train
    chosen = TrainingSettings(local_steps=1, batch_size=8)
    ((batch,),) = local_batches(Job(client, 1, 1, 0, {}, (), (), {}, rows), chosen, federation.encoded.lengths)
    expected = gradient(federation, start, batch)
    after = run(optimizer="sgd", learning_rate=0.5)
    for key in federation.model.keys:
        torch.testing.assert_close(after[key], start[key] - 0.5 * expected[key], rtol=0, atol=1e-6)
        assert expected[key].abs().max() > 1e-6


def test_the_rate_follows_the_whole_run_and_not_the_round(federation, start, run):
    """Half-way through a linear schedule the first step of a round is half as long as at the constant rate."""
    keys = federation.model.keys
    common = {"optimizer": "sgd", "learning_rate": 0.1, "round": 3, "rounds": 4}
    constant = step(run(**common), start, keys)
    linear = step(run(**common, schedule="linear"), start, keys)
    warming = step(run(**common, schedule="linear", warmup_fraction=0.8), start, keys)
    torch.testing.assert_close(linear, 0.5 * constant, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(warming, 0.5 / 0.8 * constant, rtol=1e-3, atol=1e-7)


def test_clipping_bounds_the_common_norm_of_all_gradients(federation, start, run):
    keys = federation.model.keys
    free = step(run(optimizer="sgd", learning_rate=1.0), start, keys)
    assert free.norm() > 0.02
    clipped = step(run(optimizer="sgd", learning_rate=1.0, max_grad_norm=0.01), start, keys)
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-4)
    loose = step(run(optimizer="sgd", learning_rate=1.0, max_grad_norm=1e3), start, keys)
    assert torch.equal(loose, free)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_tensors_are_unchanged(federation, start, run, optimizer):
    trained = keys_on(federation, Side.B, Side.HEAD)
    after = run(optimizer=optimizer, trained=trained, local_steps=3, weight_decay=0.1, learning_rate=0.1)
    for key in federation.model.keys:
        assert torch.equal(after[key], start[key]) is (key not in trained), key


def test_head_learning_rate_is_of_the_head_alone(federation, start, run):
    head, rest = keys_on(federation, Side.HEAD), keys_on(federation, Side.A, Side.B)
    one = run(optimizer="sgd", learning_rate=0.01)
    ten = run(optimizer="sgd", learning_rate=0.01, head_learning_rate=0.1)
    assert all(torch.equal(one[key], ten[key]) for key in rest)
    torch.testing.assert_close(step(ten, start, head), 10 * step(one, start, head), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradient_accumulation_is_a_larger_batch(federation, run, optimizer):
    common = {"optimizer": optimizer, "learning_rate": 1e-3, "local_steps": 3, "max_grad_norm": 1.0}
    whole = run(batch_size=8, **common)
    parts = run(batch_size=2, gradient_accumulation_steps=4, **common)
    for key in federation.model.keys:
        torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=1e-5)


def test_metrics_say_how_many_steps(run):
    result = run(local_steps=4, gradient_accumulation_steps=2, whole=True)
    assert result.metrics["steps"] == 4
    assert result.metrics["loss"] > 0
    assert result.metrics["seconds"] > 0
    assert result.optimizer_state == {}


def test_training_lowers_the_loss(run):
    first = run(local_steps=1, batch_size=30, whole=True)
    last = run(tensors=run(local_steps=60, batch_size=16, learning_rate=0.02), local_steps=1, batch_size=30, whole=True)
    assert last.metrics["loss"] < 0.7 * first.metrics["loss"]


# -- the proximal term ------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_proximal_term(federation, start, run):
    """With w₁ the weights after one step of SGD, the second step with the term is longer by −ημ(w₁ − w₀), on what
    was received; on all else it changes nothing."""
    received = keys_on(federation, Side.A)
    rate, mu = 0.05, 0.5
    common = {"optimizer": "sgd", "learning_rate": rate, "received": received}
    first = run(**common, local_steps=1, proximal_mu=mu)
    without, with_term = run(**common, local_steps=2), run(**common, local_steps=2, proximal_mu=mu)
    for key in federation.model.keys:
        if key in received:
            expected = -rate * mu * (first[key] - start[key])
            assert expected.abs().max() > 1e-6
            torch.testing.assert_close(with_term[key] - without[key], expected, rtol=1e-2, atol=1e-7)
        else:
            assert torch.equal(with_term[key], without[key])


def test_the_proximal_term_is_zero_at_the_start(run, federation):
    common = {"optimizer": "sgd", "received": federation.model.keys, "learning_rate": 0.1}
    with_term, without = run(**common, proximal_mu=100.0), run(**common)
    assert all(torch.equal(with_term[key], without[key]) for key in federation.model.keys)


def test_a_large_proximal_term_keeps_what_was_received_near(federation, start, run):
    received, rest = keys_on(federation, Side.A), keys_on(federation, Side.B, Side.HEAD)
    common = {"optimizer": "sgd", "learning_rate": 0.02, "local_steps": 30, "received": received}
    free, held = run(**common), run(**common, proximal_mu=40.0)
    assert step(held, start, received).norm() < 0.3 * step(free, start, received).norm()
    assert step(held, start, rest).norm() > 0.5 * step(free, start, rest).norm()


# -- optimiser state --------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1},
    "momentum": {"optimizer": "sgd", "learning_rate": 1e-2, "momentum": 0.9},
}


@pytest.mark.parametrize("chosen", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_kept_optimiser_is_one_long_optimiser(federation, run, chosen):
    first = run(**chosen, local_steps=3, optimizer_state="keep", whole=True)
    later = {"round": 2, "rounds": 2, "local_steps": 3, "tensors": first.tensors}
    kept = run(**chosen, **later, optimizer_state="keep", state=first.optimizer_state)
    reset = run(**chosen, **later)
    whole = run(**chosen, local_steps=6)
    assert all(torch.equal(kept[key], whole[key]) for key in federation.model.keys)
    assert not any(torch.equal(reset[key], whole[key]) for key in federation.model.keys)


@pytest.mark.parametrize("chosen", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_kept_optimiser_in_a_whole_run_without_aggregation(tiny_run, tiny_model_without_dropout, chosen):
    common = (
        "algorithm=local",
        f"model.path='{tiny_model_without_dropout.as_posix()}'",
        "adapter.dropout=0.0",
        *(f"training.{name}={value}" for name, value in chosen.items()),
    )
    two = tiny_run(*common, "rounds=2", "training.local_steps=3", "training.optimizer_state=keep")
    one = tiny_run(*common, "rounds=1", "training.local_steps=6")
    reset = tiny_run(*common, "rounds=2", "training.local_steps=3")
    for client in one.federation.clients:
        whole, kept, forgot = one.personal(client), two.personal(client), reset.personal(client)
        assert all(torch.equal(kept[key], whole[key]) for key in whole)
        assert not all(torch.equal(forgot[key], whole[key]) for key in whole)


def test_what_is_kept_of_an_optimiser(federation, run):
    trained = keys_on(federation, Side.B)
    state = run(trained=trained, optimizer_state="keep", whole=True).optimizer_state
    assert set(state) == {
        f"{slot}|{key}" for slot, key in itertools.product(("step", "exp_avg", "exp_avg_sq"), trained)
    }
    assert {float(value) for name, value in state.items() if name.startswith("step")} == {1.0}
    assert run(trained=trained, optimizer="sgd", optimizer_state="keep", whole=True).optimizer_state == {}


# -- failure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loss_that_is_not_finite_names_client_and_round(federation, run, optimizer):
    text = (
        rf"^client '{federation.clients[0]}', round 2: the loss is not finite \(mean over the round: (nan|inf)\); "
        r"lower training\.learning_rate \(now 1e\+30\) or set training\.max_grad_norm$"
    )
    with pytest.raises(TrainingError, match=text):
        run(optimizer=optimizer, learning_rate=1e30, local_steps=5, round=2, rounds=3)


def test_a_last_step_that_is_not_finite_is_seen_too(federation, run):
    with pytest.raises(TrainingError, match="round 1: the loss is not finite"):
        run(optimizer="sgd", learning_rate=1e38, local_steps=1, momentum=0.0, weight_decay=1e38)
