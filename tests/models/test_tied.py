"""One tensor in two layers: an adapter in one of them leaves the other as it was, merged too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig
from torch import nn

from fedsa.errors import ModelError
from fedsa.models import quiet
from fedsa.models.tied import untie
from support import judge
from support.judge import TOLERANCE, rows_to_judge, run
from support.zoo import KINDS, SETTINGS, write_model

pytestmark = pytest.mark.run

TIED = "llama, tied, lm_head"


@pytest.mark.parametrize(
    "algorithm", ["flora", "frlora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fedex", "flexlora"))]
)
def test_a_method_that_folds_gives_a_merged_model_that_is_what_was_measured(algorithm: str, tmp_path: Path) -> None:
    """Both rounds fold into ``lm_head``, whose tensor is that of the embedding in the checkpoint."""
    federation, result = run(TIED, tmp_path, algorithm=algorithm)
    result.export(tmp_path / "merged", client="c1", merge=True, round="final")
    task = KINDS[TIED].task
    merged = judge.load(task, tmp_path / "merged")
    before = judge.load(task, tmp_path / "model")
    again = judge.loss(task, SETTINGS[task], merged, tmp_path / "merged", rows_to_judge(federation, "c1"))
    assert again == pytest.approx(result.summary["per_client"]["c1"]["test_final"]["loss"], abs=TOLERANCE)
    assert torch.equal(merged.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert not torch.equal(merged.lm_head.weight, before.lm_head.weight)


def base_of(name: str, folder: Path) -> transformers.PreTrainedModel:
    with quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(write_model(name, folder))


def test_weights_that_no_adapter_touches_stay_one(tmp_path: Path) -> None:
    model = base_of(TIED, tmp_path)
    untie(model, LoraConfig(target_modules=["q_proj"]))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["lm_head"]),
        LoraConfig(target_modules=["q_proj", "embed_tokens"]),
        LoraConfig(target_modules=r".*lm_head"),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(target_modules=["q_proj"], target_parameters=["embed_tokens.weight"]),
    ],
    ids=["head", "embedding", "expression", "in full", "parameter"],
)
def test_an_untied_model_is_saved_untied(config: LoraConfig, tmp_path: Path) -> None:
    model = base_of(TIED, tmp_path / "tied")
    untie(model, config)
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(tmp_path / "untied")
    with quiet():
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight + 1, again.lm_head.weight)


def test_one_layer_in_two_places_is_refused(tmp_path: Path) -> None:
    model = base_of(TIED, tmp_path)
    model.model.again = model.model.layers[0].self_attn.q_proj
    assert isinstance(model.model.again, nn.Linear)
    with pytest.raises(ModelError, match="is one layer with model"):
        untie(model, LoraConfig(target_modules=["q_proj"]))
