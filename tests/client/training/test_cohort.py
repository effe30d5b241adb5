"""A cohort comes to what one client at a time comes to: for every variant, kind of model and setting."""

import pytest
import torch

from fedsa.client.training import cohort
from fedsa.client.training.job import Job
from fedsa.errors import TrainingError
from fedsa.models import AdaptedModel
from fedsa.recipe import TrainingSettings
from fedsa.types import Side
from support.cohorts import SETTINGS, TWENTY, both, jobs_of, largest_difference, moved
from support.tiers import factors_of, one_of_each
from support.tiny_models import BASES, FITTING, TASK, VARIANTS, adapt, token_rows

pytestmark = pytest.mark.run


def adapted(name="bert", variant="lora", *, saved=None, **options) -> AdaptedModel:
    # Some models' eager attention sums in fp32 whatever they compute in, and in packed rows in another order.
    attention = "sdpa" if name in ("llama", "modernbert") else "eager"
    return adapt(BASES[name], variant, attention=attention, modules_to_save=saved, **options)


def kind(name, variant, pack):
    """Every variant on one model, every model with one variant."""
    if name == "bert":
        return variant, pack
    return (name, pack) if variant == "lora" else None


@pytest.mark.parametrize(
    ("name", "variant", "pack"), one_of_each([(*case, pack) for case in FITTING for pack in (False, True)], kind)
)
def test_after_twenty_steps_of_adamw_in_float64(name, variant, pack):
    model = adapted(name, variant, dropout=0.1)
    jobs = jobs_of(model)
    alone, together = both(model, jobs, TWENTY, pack=pack)
    assert moved(jobs, alone) > 1e-3
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize(
    ("variant", "pack"),
    one_of_each(
        [(variant, pack) for variant in VARIANTS for pack in (False, True)],
        lambda variant, pack: (factors_of(variant), pack),
    ),
)
def test_after_twenty_steps_of_adamw_in_fp32(variant, pack):
    model = adapted("bert", variant, dtype=torch.float32, dropout=0.1)
    alone, together = both(model, jobs_of(model), TWENTY, pack=pack)
    assert largest_difference(alone, together) <= 1e-5


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_with_every_setting_of_the_training(settings):
    model = adapted(dropout=0.1)
    jobs = jobs_of(model, (3, 20, 11, 20))
    alone, together = both(model, jobs, settings, pack=True)
    assert moved(jobs, alone) > 1e-7
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_kept_optimiser_states_go_on_from_where_each_client_was(optimizer):
    model = adapted()
    settings = TrainingSettings(local_steps=3, batch_size=4, optimizer_state="keep", **optimizer)
    first, _ = both(model, jobs_of(model), settings)
    states = [first[0].optimizer_state, {}, first[2].optimizer_state]  # the second client comes late
    only_head = {name: value for name, value in first[2].optimizer_state.items() if "classifier" in name}
    states.append(only_head)
    jobs = jobs_of(model, (7, 20, 12, 9), states=states)
    alone, together = both(model, jobs, settings)
    assert largest_difference(alone, together) <= 1e-10


def test_moments_of_what_a_round_does_not_train_are_kept():
    """A method that alternates trains B in this round and A in the next: A goes on from its own moments."""
    model = adapted()
    settings = TrainingSettings(local_steps=3, batch_size=4, optimizer_state="keep")
    first, _ = both(model, jobs_of(model), settings)
    states = [result.optimizer_state for result in first]
    jobs = jobs_of(model, trained=lambda key: key.factor.value == "B", states=states)
    for results in both(model, jobs, settings):
        for result, before in zip(results, states, strict=True):
            assert result.optimizer_state.keys() == before.keys()
            same = {name for name, value in before.items() if torch.equal(value, result.optimizer_state[name])}
            assert same == {name for name in before if ":B:" not in name}


def test_only_some_keys_are_trained():
    model = adapted()
    jobs = jobs_of(model, trained=lambda key: key.factor.value == "B")
    alone, together = both(model, jobs, TWENTY)
    assert largest_difference(alone, together) <= 1e-10
    for job, result in zip(jobs, together, strict=True):
        same = [key for key in job.tensors if torch.equal(job.tensors[key], result.tensors[key])]
        assert {key for key in job.tensors if key.factor.value != "B"} == set(same)


@pytest.mark.parametrize(
    "saved", [["classifier", "pooler"], ["classifier", "LayerNorm"], ["classifier", "intermediate"]], ids=str
)
@pytest.mark.parametrize("pack", [False, True])
def test_layers_trained_in_full_are_each_clients_own(saved, pack):
    model = adapted(saved=saved)
    jobs = jobs_of(model)
    alone, together = both(model, jobs, TWENTY, pack=pack)
    assert moved(jobs, alone) > 1e-3
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
@pytest.mark.parametrize("variant", ["lora", "dora", "loha", "vera"])
def test_the_b_side_moves_by_the_ratio(variant, trainer):
    """LoRA+: under SGD without clipping, one step is the gradient times the rate of the side."""
    model, steps = adapted("bert", variant), {}
    (job,) = jobs_of(model, (9,))
    for ratio in (1.0, 16.0):
        settings = TrainingSettings(
            local_steps=1, batch_size=4, optimizer="sgd", max_grad_norm=None, b_learning_rate_ratio=ratio
        )
        alone, together = both(model, [job], settings)
        (result,) = alone if trainer == "sequential" else together
        steps[ratio] = {key: result.tensors[key] - value for key, value in job.tensors.items()}
    for key, step in steps[1.0].items():
        assert step.abs().max() > 1e-8
        expected = step * (16.0 if key.factor.side is Side.B else 1.0)
        torch.testing.assert_close(steps[16.0][key], expected, rtol=1e-6, atol=1e-12)


def test_a_client_alone_is_a_cohort_too():
    model = adapted(dropout=0.2)
    alone, together = both(model, jobs_of(model, (9,)), TWENTY, pack=True)
    assert largest_difference(alone, together) <= 1e-10


def test_what_a_client_comes_to_does_not_depend_on_the_others():
    model = adapted(dropout=0.3)
    jobs = jobs_of(model)
    options = {"model": model, "task": TASK, "encoded": token_rows(), "settings": TWENTY, "pack": True}
    together = cohort.train(jobs, **options)
    turned = cohort.train(jobs[::-1], **options)
    assert largest_difference(together, turned[::-1]) <= 1e-10


def test_dropout_of_different_clients_differs():
    model = adapted(dropout=0.5)
    first = jobs_of(model, (1,))[0]  # one row: nothing else that is drawn by the client's name can differ
    twin = Job("another", *[getattr(first, name) for name in first.__dataclass_fields__][1:])
    same = Job("c0", *[getattr(first, name) for name in first.__dataclass_fields__][1:])
    once = TrainingSettings(local_steps=1, batch_size=1, optimizer="sgd", max_grad_norm=None)
    options = {"model": model, "task": TASK, "encoded": token_rows(), "settings": once}
    one, other, again = cohort.train([first, twin, same], **options)
    assert one.metrics["loss"] == pytest.approx(again.metrics["loss"], abs=1e-12)
    assert abs(one.metrics["loss"] - other.metrics["loss"]) > 1e-3


def test_the_model_is_as_it_was_before():
    model = adapted()
    before = {name: (id(module), module.training) for name, module in model.model.named_modules()}
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    cohort.train(jobs_of(model), model=model, task=TASK, encoded=token_rows(), settings=TWENTY)
    assert {name: (id(module), module.training) for name, module in model.model.named_modules()} == before
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())


def test_bf16_follows_fp32_within_its_precision():
    settings = TrainingSettings(local_steps=5, batch_size=4, learning_rate=2e-3)
    losses = {}
    for precision in ("fp32", "bf16"):
        model = adapted(dtype=torch.float32, precision=precision)
        results = cohort.train(jobs_of(model), model=model, task=TASK, encoded=token_rows(), settings=settings)
        losses[precision] = [result.metrics["loss"] for result in results]
        assert all(value.dtype == torch.float32 for result in results for value in result.tensors.values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]


def test_a_loss_that_is_not_finite_names_the_client():
    model = adapted()
    settings = TrainingSettings(local_steps=3, batch_size=4, learning_rate=1e300, optimizer="sgd", max_grad_norm=None)
    with pytest.raises(TrainingError, match=r"client 'c0', round 2: the loss is not finite"):
        cohort.train(jobs_of(model), model=model, task=TASK, encoded=token_rows(), settings=settings)
