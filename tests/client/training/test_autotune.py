"""What a run chooses by measuring: within the budget, kept where it is given, and not measured again on resume."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedsa.client.training import autotune, cohort, sequential
from fedsa.client.training.autotune import activation_bytes, choose_attention, choose_training
from fedsa.client.training.job import Job
from fedsa.errors import ModelError
from fedsa.federation import Federation
from fedsa.models import AdaptedModel
from fedsa.recipe import ComputeSettings, Recipe, TrainingSettings, dump_recipe
from fedsa.tasks.base import Encoded
from support.tiny_models import (
    TASK,
    VARIANTS,
    adapt,
    bert,
    client_tensors,
    distilbert,
    mistral,
    rows_of,
    token_rows,
    xlnet,
)

pytestmark = pytest.mark.run

CPU = ComputeSettings(device="cpu", threads=1, precision="fp32")
EQUAL = rows_of([10] * 40)  # rows of ten tokens


def attention_for(model: AdaptedModel, encoded: Any, batch_size: int) -> str:
    settings = TrainingSettings(batch_size=batch_size)
    return choose_attention(settings, model=model, task=TASK, encoded=encoded, rows=np.arange(40))


def choose(
    model: AdaptedModel,
    encoded: Encoded = EQUAL,
    *,
    clients: int = 4,
    compute: ComputeSettings = CPU,
    **given: Any,
) -> TrainingSettings:
    """Choose for the rows dealt to four holders, of whom some train in a round."""
    return choose_training(
        TrainingSettings(batch_size=4, **given),
        compute,
        model=model,
        task=TASK,
        encoded=encoded,
        rows=np.array_split(np.arange(len(encoded.labels)), 4),
        clients=clients,
    )


@pytest.fixture
def model() -> AdaptedModel:
    return adapt(bert, dtype=torch.float32)


@pytest.fixture
def adapted_embedding() -> AdaptedModel:
    """A model that many clients cannot go through at once."""
    return adapt(bert, target_modules=["query", "word_embeddings"], dtype=torch.float32)


@pytest.fixture
def windowed() -> AdaptedModel:
    """A model that cannot be packed: its layers see four tokens back only."""
    return adapt(mistral, base={"sliding_window": 4}, dtype=torch.float32)


# -- the size of a cohort ---------------------------------------------------------------------------------------------


def bytes_of_a_client(model: AdaptedModel, *, by_token: int) -> float:
    """Return what one client's batch of 4 rows of 10 tokens takes: 16 + 2·4 bytes for a trained number, and tokens."""
    return 24 * sum(value.numel() for value in model.initial.values()) + by_token * 40


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> int:
    """A token takes 1000 bytes, and many clients are as fast as more of them."""
    monkeypatch.setattr(
        autotune, "activation_bytes", lambda model, task, encoded, rows, pack: 1000 * int(encoded.lengths[rows].sum())
    )
    monkeypatch.setattr(autotune, "_SATURATED", {"cpu": 10**9})
    return 1000


@pytest.mark.parametrize(("fits", "size"), [(0.001, 1), (0.99, 1), (1.01, 1), (2.99, 2), (3.01, 3), (6.5, 6), (99, 7)])
def test_a_cohort_fits_into_the_memory_budget(model: AdaptedModel, measured: int, fits: float, size: int) -> None:
    budget = fits * bytes_of_a_client(model, by_token=measured) / 2**30
    compute = CPU.model_copy(update={"memory_budget": budget})
    assert choose(model, clients=7, compute=compute).cohort_size == size


@pytest.mark.parametrize(("fits", "size"), [(1.0, 1), (3.01, 3)])
def test_without_a_budget_a_cohort_takes_half_of_what_is_free(
    model: AdaptedModel, measured: int, monkeypatch: pytest.MonkeyPatch, fits: float, size: int
) -> None:
    free = 2 * fits * bytes_of_a_client(model, by_token=measured)
    monkeypatch.setattr(autotune.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(free) + 1))
    assert choose(model, clients=7).cohort_size == size


def test_bf16_takes_less_for_each_client(measured: int) -> None:
    model = adapt(bert, precision="bf16")
    trained = sum(value.numel() for value in model.initial.values())
    budget = 3.01 * (20 * trained + 40 * measured)  # 16 + 2·2 bytes
    compute = CPU.model_copy(update={"memory_budget": budget / 2**30})
    assert choose(model, clients=7, compute=compute).cohort_size == 3


@pytest.mark.parametrize(("saturated", "size"), [(1, 1), (40, 1), (79, 2), (200, 5), (10**6, 7)])
def test_a_cohort_is_no_larger_than_makes_it_faster(
    model: AdaptedModel, measured: int, monkeypatch: pytest.MonkeyPatch, saturated: int, size: int
) -> None:
    """A client's batch has 40 tokens: so many clients, rounded, are enough."""
    monkeypatch.setattr(autotune, "_SATURATED", {"cpu": saturated})
    assert choose(model, clients=7).cohort_size == size


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_a_cohort_is_no_larger_than_a_round(model: AdaptedModel, measured: int, clients: int) -> None:
    assert choose(model, clients=clients).cohort_size == clients


def test_the_real_measure_follows_the_budget(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_SATURATED", {"cpu": 10**9})
    budgets = [2.0**power for power in range(-20, 1)]
    sizes = [choose(model, clients=50, compute=CPU.model_copy(update={"memory_budget": each})).cohort_size
             for each in budgets]  # fmt: skip
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, 50)
    assert any(1 < size < 50 for size in sizes)


def test_the_clients_of_a_round_are_those_that_are_sampled(tiny_recipe: Callable[..., Recipe]) -> None:
    for fraction, size in (("1.0", 3), ("0.67", 2), ("0.1", 1)):
        recipe = tiny_recipe(f"fraction_train={fraction}")
        assert Federation.from_recipe(recipe).recipe.training.cohort_size == size


# -- what a pass keeps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_kept_follow_the_tokens(variant: str) -> None:
    model = adapt(bert, variant, dtype=torch.float32, dropout=0.1)
    few, many = (activation_bytes(model, TASK, EQUAL, np.arange(count), False) for count in (4, 16))
    assert few > 40 * 16 * 4, "at least one activation of the model's width"
    if variant == "loha":  # kept once, whatever the rows: all pairs of columns, and of rows where the input is trained
        pairs = 4 * 4 * 16 * (4 + 2) * 4
        few, many = few - pairs, many - pairs
    assert many == pytest.approx(4 * few, rel=0.01), "weights are there once, whoever trains: they are not counted"


def test_bytes_kept_are_less_where_texts_are_packed(model: AdaptedModel) -> None:
    encoded = rows_of([31] + [3] * 30)
    padded, packed = (activation_bytes(model, TASK, encoded, np.arange(31), pack) for pack in (False, True))
    assert packed < 0.5 * padded


# -- the trainer ------------------------------------------------------------------------------------------------------


def test_a_cohort_is_chosen_where_it_is_possible(model: AdaptedModel) -> None:
    chosen = choose(model, token_rows(), local_steps=7, learning_rate=0.25)
    assert (chosen.trainer, chosen.packing, chosen.cohort_size) == ("cohort", True, 4)
    assert (chosen.local_steps, chosen.learning_rate, chosen.batch_size) == (7, 0.25, 4)


def test_one_by_one_is_chosen_where_it_is_not(adapted_embedding: AdaptedModel) -> None:
    chosen = choose(adapted_embedding)
    assert (chosen.trainer, chosen.packing, chosen.cohort_size) == ("sequential", False, 0)


def test_a_cohort_where_it_is_not_possible_is_an_error(adapted_embedding: AdaptedModel) -> None:
    expected = (
        r"^training\.trainer = 'cohort' cannot be used with this model and adapter "
        r"\(bert\.embeddings\.word_embeddings: a "
        r"peft\.tuners\.lora Embedding layer\): set 'sequential', "
        r"without cohort_size and packing$"
    )
    with pytest.raises(ModelError, match=expected):
        choose(adapted_embedding, trainer="cohort")


def test_an_adapter_that_cannot_be_stacked_is_trained_all_the_same(
    tiny_recipe: Callable[..., Recipe], tmp_path: Any
) -> None:
    from fedsa.api import run

    targets = "adapter={r=2, target_modules=['query', 'word_embeddings']}"
    federation = Federation.from_recipe(tiny_recipe(targets))
    assert federation.recipe.training.trainer == "sequential"
    assert run(federation, tmp_path / "run").summary["rounds"] == 2
    with pytest.raises(ModelError, match=r"training\.trainer = 'cohort' cannot be used"):
        Federation.from_recipe(tiny_recipe(targets, "training.trainer=cohort"))


# -- packing ----------------------------------------------------------------------------------------------------------


def test_packing_that_is_not_possible_is_not_chosen(windowed: AdaptedModel) -> None:
    chosen = choose(windowed, token_rows())
    assert (chosen.trainer, chosen.packing) == ("cohort", False)


def test_packing_that_is_not_possible_is_an_error(windowed: AdaptedModel) -> None:
    expected = (
        r"^training\.packing = true cannot be used with this model \(a token in packed rows differs by [\d.]+% from "
        r"the same in padded rows\): "
        r"set it to false$"
    )
    with pytest.raises(ModelError, match=expected):
        choose(windowed, token_rows(), packing=True)


# -- what is given ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"trainer": "sequential"},
        {"trainer": "cohort", "cohort_size": 2, "packing": False},
        {"trainer": "cohort", "cohort_size": 50, "packing": True},  # more than train in a round
        {"cohort_size": 1},
        {"packing": False},
        {"packing": True},
    ],
    ids=str,
)
def test_what_is_given_is_kept(model: AdaptedModel, given: dict[str, Any]) -> None:
    chosen = choose(model, token_rows(), **given)
    for name, value in given.items():
        assert getattr(chosen, name) == value
    assert chosen.trainer in ("sequential", "cohort")
    assert chosen.packing is not None
    assert (chosen.cohort_size > 0) is (chosen.trainer == "cohort")


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in names:
        monkeypatch.setattr(autotune, name, measure)


def test_what_is_given_is_not_measured(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "activation_bytes", "_budget", "packing_obstacle")
    assert choose(model, cohort_size=3, packing=False).cohort_size == 3
    assert choose(model, trainer="sequential").trainer == "sequential"


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["training.trainer=sequential"],
        ["training.packing=false"],
        ["training.cohort_size=2"],
        ["adapter={r=2, target_modules=['query', 'word_embeddings']}"],
    ],
    ids=str,
)
def test_a_resolved_recipe_is_not_chosen_again(
    tiny_recipe: Callable[..., Recipe], tiny_model: Any, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    recipe = tiny_recipe(f"model={{path='{tiny_model.as_posix()}'}}", *settings)
    assert recipe.model.attn_implementation is None
    resolved = Federation.from_recipe(recipe).recipe
    assert resolved.model.attn_implementation in ("eager", "sdpa")
    assert resolved.training.trainer != "auto"
    assert resolved.training.packing is not None
    assert (resolved.training.cohort_size > 0) is (resolved.training.trainer == "cohort")
    forbid(monkeypatch, "activation_bytes", "_budget", "_seconds_of_a_step")
    again = Federation.from_recipe(resolved)
    assert dump_recipe(again.recipe) == dump_recipe(resolved)
    assert again.model.attention == resolved.model.attn_implementation


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], list[str]]:
    """Say how many seconds a step takes with each attention, and return which are asked."""

    def say(seconds: dict[str, float]) -> list[str]:
        asked = []

        def measure(model: AdaptedModel, task: object, encoded: object, rows: object, *, pack: bool) -> float:
            asked.append(model.attention)
            return seconds[model.attention]

        monkeypatch.setattr(autotune, "_seconds_of_a_step", measure)
        return asked

    return say


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"eager": 1.0, "sdpa": 2.0}, "eager"),
        ({"eager": 2.0, "sdpa": 1.0}, "sdpa"),
        ({"eager": 1.1, "sdpa": 1.0}, "eager"),  # on a processor eager is expected: a little slower is noise
    ],
)
@pytest.mark.parametrize("start", ["eager", "sdpa"])
def test_the_faster_attention_is_chosen(
    script: Callable[[dict[str, float]], list[str]], start: str, seconds: dict[str, float], chosen: str
) -> None:
    model = adapt(bert, dtype=torch.float32, attention=start)
    asked = script(seconds)
    assert attention_for(model, EQUAL, 4) == chosen
    assert model.attention == chosen
    assert sorted(asked) == ["eager", "sdpa"]


def test_attention_that_the_model_lacks_is_not_chosen(
    script: Callable[[dict[str, float]], list[str]], monkeypatch: pytest.MonkeyPatch, model: AdaptedModel
) -> None:
    switch = AdaptedModel.set_attention
    monkeypatch.setattr(AdaptedModel, "set_attention", lambda self, name: name != "sdpa" and switch(self, name))
    asked = script({"eager": 9.0, "sdpa": 0.0})
    assert attention_for(model, EQUAL, 4) == "eager"
    assert asked == ["eager"]


def test_a_step_is_really_measured(model: AdaptedModel) -> None:
    assert attention_for(model, token_rows(), 4) in ("eager", "sdpa")


def test_attention_that_is_given_is_not_measured(
    tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "_seconds_of_a_step")
    for name in ("eager", "sdpa"):
        federation = Federation.from_recipe(tiny_recipe(f"model.attn_implementation={name}"))
        assert federation.recipe.model.attn_implementation == federation.model.attention == name


# -- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [bert, distilbert, mistral])
def test_measuring_changes_nothing(make: Any) -> None:
    model = adapt(make, dropout=0.2, dtype=torch.float32)
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    modules = {name: (id(module), module.training) for name, module in model.model.named_modules()}
    choose(model, token_rows())
    attention_for(model, token_rows(), 4)
    assert {name: (id(module), module.training) for name, module in model.model.named_modules()} == modules
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.model.parameters())


# -- models of other kinds --------------------------------------------------------------------------------------------


def test_attention_is_chosen_for_a_model_that_cannot_be_packed(model: AdaptedModel) -> None:
    def refuse(layer: Any, args: Any, kwargs: Any) -> None:
        if model.streams.layout is not None and model.streams.layout.packed is not None:
            raise ValueError("no packed rows")

    model.layers.layers[1].register_forward_pre_hook(refuse, with_kwargs=True)
    assert attention_for(model, token_rows(), 8) in ("eager", "sdpa")
    assert choose(model, token_rows()).packing is False


def test_layers_in_full_that_cannot_be_stacked_are_an_obstacle() -> None:
    """PEFT takes ``word_embeddings`` for a layer of that name, too: one layer in full is in another."""
    model = adapt(bert, dtype=torch.float32, modules_to_save=["classifier", "embeddings"])
    with pytest.raises(NotImplementedError):
        model.stack(2)
    assert choose(model).trainer == "sequential"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_with_the_tokens_in_front_of_the_rows(dropout: float) -> None:
    model = adapt(xlnet, dtype=torch.float32, dropout=dropout)
    rows, settings = token_rows(), choose(model, token_rows(), local_steps=2)
    tensors = client_tensors(model, 2)
    jobs = [Job(f"c{n}", 1, 1, 0, tensors[n], model.keys, (), {}, np.arange(10 * n, 10 * n + 10)) for n in range(2)]
    common = {"model": model, "task": TASK, "encoded": rows, "settings": settings}
    alone = [sequential.train(job, **common) for job in jobs]
    if settings.trainer == "cohort":
        together = cohort.train(jobs, **common, pack=bool(settings.packing))
        for one, other in zip(alone, together, strict=True):
            for key, value in one.tensors.items():
                torch.testing.assert_close(other.tensors[key], value, rtol=0, atol=1e-5)
