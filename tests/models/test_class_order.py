"""A checkpoint's head whose classes stand in another order than the data's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fedsa.models import load_base, names_of, turn_head
from fedsa.recipe import ModelSettings
from support.zoo import KINDS, write_model

WANTED = ("anger", "joy", "fear", "calm")
HEADS = ["bert", "roberta", "distilbert", "electra", "deberta-v2", "xlnet", "llama, classes", "gpt2, classes", "bart"]
PICTURES = ["vit", "dinov2", "deit", "swin", "resnet", "convnext"]


def checkpoint(name: str, folder: Path, names: Sequence[str]) -> Any:
    """Write a model with a head for classes of these names, and return it."""
    kind = KINDS[name]
    config = transformers.AutoConfig.for_model(
        kind.model_type or name,
        **kind.sizes,
        architectures=[],
        id2label=dict(enumerate(names)),
        label2id={each: number for number, each in enumerate(names)},
    )
    auto = "AutoModelForImageClassification" if name in PICTURES else "AutoModelForSequenceClassification"
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim():
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(folder)
    return model


def loaded(name: str, folder: Path, notes: list[str] | None = None, wanted: Sequence[str] = WANTED) -> Any:
    auto = "AutoModelForImageClassification" if name in PICTURES else "AutoModelForSequenceClassification"
    labels = {each: number for number, each in enumerate(wanted)}
    options = {"num_labels": len(wanted), "id2label": dict(enumerate(wanted)), "label2id": labels}
    return load_base(ModelSettings(path=str(folder)), auto_model=auto, options=options, seed=0, notes=notes)[0]


@torch.no_grad()
def said(name: str, model: Any) -> torch.Tensor:
    if name in PICTURES:
        return model(pixel_values=torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).logits[0]
    return model(input_ids=torch.tensor([[2, 8, 9, 6, 3]])).logits[0]


@pytest.mark.run
@pytest.mark.parametrize("name", [*HEADS, *PICTURES])
def test_a_head_says_of_each_class_what_it_said(name: str, tmp_path: Path) -> None:
    there = ["Joy", " calm", "ANGER", "fear"]
    model = checkpoint(name, tmp_path, there)
    notes: list[str] = []
    turned = loaded(name, tmp_path, notes)
    before = dict(zip([each.strip().lower() for each in there], said(name, model), strict=True))
    after = dict(zip(WANTED, said(name, turned), strict=True))
    assert notes == []
    assert turned.config.id2label == dict(enumerate(WANTED))
    for each in WANTED:
        assert torch.allclose(before[each], after[each], atol=1e-6)


def test_a_head_in_the_same_order_stays_to_the_byte(tmp_path: Path) -> None:
    model, notes = checkpoint("bert", tmp_path, WANTED), []
    assert all(
        torch.equal(one, two)
        for one, two in zip(
            model.state_dict().values(), loaded("bert", tmp_path, notes).state_dict().values(), strict=True
        )
    )
    assert notes == []


def test_classes_without_names_are_told(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path, [f"LABEL_{number}" for number in range(4)])
    notes: list[str] = []
    loaded("bert", tmp_path, notes)
    assert len(notes) == 1
    assert "in the order 'anger', 'joy', 'fear', 'calm'" in notes[0]
    assert "task.labels" in notes[0]


def test_classes_of_other_names_are_told(tmp_path: Path) -> None:
    checkpoint("bert", tmp_path, ["anger", "joy", "fear", "rest"])
    notes: list[str] = []
    loaded("bert", tmp_path, notes)
    assert len(notes) == 1
    assert "'rest'" in notes[0]
    assert "'calm'" in notes[0]


def test_of_a_head_that_is_drawn_nothing_is_told(tmp_path: Path) -> None:
    write_model("bert", tmp_path)
    notes: list[str] = []
    loaded("bert", tmp_path, notes)
    assert notes == []


def test_a_head_that_is_as_wide_as_it_is_deep_is_turned_at_its_end_alone() -> None:
    """RoBERTa's head has two layers; both may have as many outputs as there are classes."""
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=4
    )
    model = transformers.RobertaForSequenceClassification(config).eval()
    dense, last = model.classifier.dense.weight.clone(), model.classifier.out_proj.weight.clone()
    turn_head(model, WANTED[::-1], WANTED)
    assert torch.equal(model.classifier.dense.weight, dense)
    assert torch.equal(model.classifier.out_proj.weight, last.flip(0))


@pytest.mark.parametrize("table", [None, [], {}, {"a": "b"}, {0: "x", 2: "y"}, {0: "LABEL_0", 1: "LABEL_1"}])
def test_names_that_are_none_are_none(table: Any) -> None:
    class Config:
        id2label = table

    assert names_of(Config()) == []
