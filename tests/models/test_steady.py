"""State of the base that is no parameter stays as it was, whoever trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

import fedsa
from fedsa.errors import ModelError
from fedsa.models import load_base
from fedsa.models.steady import check_norms
from fedsa.recipe import ModelSettings
from support.judge import run
from support.zoo import KINDS, SETTINGS, clients_of, write_model

pytestmark = pytest.mark.run


class Counting(nn.Module):
    """A layer that counts how often it is called in training, in a buffer: by adding, or by a new buffer."""

    def __init__(self, inner: nn.Module, *, anew: bool, kept: bool = True) -> None:
        super().__init__()
        self.inner, self.anew = inner, anew
        self.register_buffer("seen", torch.zeros(()), persistent=kept)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.training and self.anew:
            self.seen = self.seen + 1
        elif self.training:
            self.seen += 1
        return self.inner(values)


def federation(folder: Path, make: Any, **settings: Any) -> fedsa.Federation:
    write_model("bert", folder)
    options = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    base, _ = load_base(
        ModelSettings(path=str(folder)), auto_model="AutoModelForSequenceClassification", options=options, seed=0
    )
    inner: Any = base
    inner.bert.encoder.layer[0].output.dense = make(inner.bert.encoder.layer[0].output.dense)
    from transformers import AutoTokenizer

    return fedsa.Federation.from_objects(
        base,
        LoraConfig(r=2, target_modules=["query"], lora_dropout=0.0),
        clients_of("classification"),
        rounds=1,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        training={"local_steps": 1, "batch_size": 4, "trainer": "sequential"},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
        **settings,
    )


@pytest.mark.parametrize("anew", [False, True])
def test_state_that_training_changes_is_refused_before_the_first_round(tmp_path: Path, anew: bool) -> None:
    with pytest.raises(ModelError, match=r"output\.dense \(Counting\) changes its seen whenever it trains"):
        federation(tmp_path, lambda layer: Counting(layer, anew=anew))


def test_what_a_model_makes_anew_of_each_batch_is_no_state(tmp_path: Path) -> None:
    federation(tmp_path, lambda layer: Counting(layer, anew=True, kept=False))


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_running_statistics_stay_in_both_trainers(tmp_path: Path, trainer: str) -> None:
    def with_norm(layer: nn.Module) -> nn.Module:
        return nn.Sequential(layer, Transposed(nn.BatchNorm1d(16)))

    made = federation(tmp_path / "model", with_norm)
    settings = made.recipe.training.model_copy(update={"trainer": trainer, "cohort_size": 2 * (trainer == "cohort")})
    from dataclasses import replace

    made = replace(made, recipe=made.recipe.model_copy(update={"training": settings}))
    before = {name: buffer.clone() for name, buffer in made.model.model.named_buffers()}
    fedsa.run(made, tmp_path / "run")
    after = dict(made.model.model.named_buffers())
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


class Transposed(nn.Module):
    """Batch normalisation of the features of tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.norm(values.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("name", ["resnet", pytest.param("levit", marks=pytest.mark.slow)])
def test_a_run_of_images_leaves_every_buffer_as_it_was(name: str, tmp_path: Path) -> None:
    made, _ = run(name, tmp_path)
    task = KINDS[name].task
    again, _ = load_base(
        ModelSettings(path=str(tmp_path / "model")),
        auto_model="AutoModelForImageClassification",
        options={"num_labels": 2},
        seed=0,
    )
    buffers = dict(again.named_buffers())
    own = {path: buffer for path, buffer in made.model.model.get_base_model().named_buffers() if path in buffers}
    assert len(own) > 5
    assert SETTINGS[task]
    assert all(torch.equal(buffers[path], buffer) for path, buffer in own.items())


def test_normalisation_over_a_batch_alone_is_refused() -> None:
    with pytest.raises(ModelError, match="0 is batch normalisation without running statistics"):
        check_norms(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)))
    check_norms(nn.Sequential(nn.InstanceNorm1d(4), nn.BatchNorm1d(4), nn.LayerNorm(4)))
