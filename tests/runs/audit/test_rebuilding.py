"""Texts, rebuilt from the updates of a small encoder: the control must fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification

import fedsa
from fedsa.errors import UserError
from fedsa.models.dropout import without_dropout
from fedsa.runs.audit import Subject
from fedsa.runs.audit.inputs import inputs_of
from fedsa.runs.audit.membership import of_adapters
from fedsa.runs.audit.rebuilding import Rebuilder
from fedsa.runs.audit.training import OneStep, Training
from fedsa.types import Factor
from support.tiny_words import WORDS, encoder_words

pytestmark = pytest.mark.run


def federation_of(modules: str = r".*layer\.0.*(query|value)") -> fedsa.Federation:
    torch.manual_seed(0)
    tokenizer, random = encoder_words(), np.random.default_rng(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, num_labels=2, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    rows = [
        {"text": " ".join(random.choice(WORDS, random.integers(8, 14))), "label": ["a", "b"][number % 2]}
        for number in range(60)
    ]
    clients = {name: Dataset.from_list(rows[start::2]) for start, name in enumerate(("north", "south"))}
    return fedsa.Federation.from_objects(
        BertForSequenceClassification(config),
        LoraConfig(r=8, target_modules=modules, lora_dropout=0.1),
        clients,
        tokenizer=tokenizer,
        rounds=1,
        task={"text_columns": ["text"], "label_column": "label"},
        training={"local_steps": 2, "batch_size": 2, "learning_rate": 0.05, "trainer": "sequential"},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
    )


@pytest.fixture(scope="module")
def rebuilder(tmp_path_factory: pytest.TempPathFactory) -> Rebuilder:
    federation = federation_of()
    path = fedsa.run(federation, tmp_path_factory.mktemp("audit") / "run", progress=False).path
    return Rebuilder.of(Subject.open(path, federation=federation))


def score(rebuilder: Rebuilder, name: str, how: Training, texts: int = 2) -> Any:
    (part,) = [part for part in rebuilder.subject.parts() if part.name == name]
    return rebuilder.score(part, how, texts=texts)


def test_a_text_is_rebuilt_from_one_step_of_a_word_for_word(rebuilder: Rebuilder) -> None:
    found = score(rebuilder, "A", OneStep)
    assert found.score == 1
    assert found.ordered == 1
    assert found.chance < 0.5


def test_b_of_a_small_rank_tells_less(rebuilder: Rebuilder) -> None:
    assert score(rebuilder, "B", OneStep).score < 0.8


def test_both_tell_as_much_as_a(rebuilder: Rebuilder) -> None:
    assert score(rebuilder, "A and B", OneStep, texts=1).score == 1


def test_a_sum_is_of_the_texts_of_all(rebuilder: Rebuilder) -> None:
    summed = replace(rebuilder, subject=replace(rebuilder.subject, summed=True))
    alone, together = score(rebuilder, "A", OneStep, texts=1), score(summed, "A", OneStep, texts=1)
    assert together.tokens > alone.tokens
    assert together.ordered is None
    one = replace(rebuilder.subject, clients=rebuilder.subject.clients[:1])
    few = Rebuilder.of(one)  # a sum has more clients than are attacked
    assert score(replace(few, subject=replace(one, summed=True)), "A", OneStep, texts=1).tokens == together.tokens


def test_an_adapter_that_has_learned_by_heart_tells_its_rows(rebuilder: Rebuilder) -> None:
    subject = replace(rebuilder.subject, most_rows=12)
    found = of_adapters(subject, {"north": subject.state("north")})
    assert found.control is not None
    assert found.control >= 0.7
    untrained = of_adapters(subject, {"north": subject.start("north")})
    assert untrained.score == untrained.chance == 0.5


def test_nothing_is_dropped_where_nothing_should_be(rebuilder: Rebuilder) -> None:
    federation = rebuilder.subject.federation
    model = federation.model
    batch = federation.encoded.batch([0])

    def outputs() -> torch.Tensor:
        begun = model.begin(batch, [1], seeds=[3], batches=[0])
        return federation.task.outputs(model.model, begun)

    with model.training():
        torch.manual_seed(1)
        dropped = outputs()
        with without_dropout(model.model):
            kept = outputs()
        torch.manual_seed(1)
        again = outputs()
    with model.evaluating():
        expected = outputs()
    assert torch.allclose(kept, expected, atol=1e-6)
    assert not torch.allclose(dropped, kept, atol=1e-4)
    assert torch.equal(dropped, again)


def test_inputs_are_those_of_a_text(rebuilder: Rebuilder) -> None:
    federation = rebuilder.subject.federation
    batch, model = federation.encoded.batch([0]), federation.model
    seen: list[torch.Tensor] = []
    layer = dict(model.model.get_base_model().named_modules())[rebuilder.inputs.modules[0]]
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    with model.evaluating():
        model.model(**{name: value for name, value in model.begin(batch, [1]).items() if name != "labels"})
    handle.remove()
    ids = batch["input_ids"][0][: federation.encoded.lengths[0]]
    assert torch.allclose(rebuilder.inputs.values[torch.arange(len(ids)), ids], seen[0][0, : len(ids)], atol=1e-5)


def test_layers_that_read_whole_texts_are_refused() -> None:
    federation = federation_of(r".*layer\.1.*(query|value)")
    assert all("layer.1" in key.module for key in federation.model.keys if key.factor is Factor.A)
    with pytest.raises(UserError, match="no adapted layer reads single tokens"):
        inputs_of(federation.model, federation.encoded.batch([0]), 8)


def test_the_place_of_a_word_makes_no_difference_to_a_decoder_that_turns(tmp_path: Path) -> None:
    from support.tiny_models import llama

    adapted = adapted_decoder(llama)
    ids = torch.tensor([[5, 6, 7, 8]])
    made = inputs_of(adapted, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 8)
    assert made.values.shape == (1, 40, 16)
    assert made.modules == ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


def adapted_decoder(make: Callable[[], Any]) -> Any:
    from fedsa.models import AdaptedModel

    return AdaptedModel(make(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"]), seed=0)
