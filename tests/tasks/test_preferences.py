"""DPO: the loss of a pair of answers, against code that is not fedsa's, and what the base model says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import fedsa
from fedsa.client.evaluation import evaluate
from fedsa.errors import DataError, ModelError
from fedsa.tasks.adapter_off import adapter_off
from fedsa.tasks.preferences import AnswerPairs, Dpo
from fedsa.types import CLASS_NUMBER
from support.every_task import every_federation
from support.tiny_decoder import write_decoder

CASES = [
    # what is asked, the preferred answer, the other one
    ("what is 1 plus 2 ?", "it equals 3", "it equals 4"),
    ("red", "blue green", "so"),
    ("so it is", "what", "the correct answer is 7 so it equals 7"),
    ("what is 9 plus 9 ?", "18", "so it is 17 plus 2"),
]


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def model(decoder: Path) -> PeftModel:
    """A model whose adapter changes what it says."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(decoder), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted


def encoded_cases(decoder: Path, beta: float = 0.1, most: int = 64) -> tuple[Dpo, AnswerPairs]:
    task, tokenizer = Dpo(beta, most), AutoTokenizer.from_pretrained(decoder)
    rows = Dataset.from_dict({
        "prompt": [json.dumps(turns("user", asked)) for asked, _, _ in CASES],
        "chosen": [json.dumps(turns("assistant", better)) for _, better, _ in CASES],
        "rejected": [json.dumps(turns("assistant", worse)) for _, _, worse in CASES],
        CLASS_NUMBER: [0] * len(CASES),
    })  # fmt: skip
    return task, task.encode(rows, np.arange(len(CASES)), tokenizer, limit=64)


def log_likelihood(model: Any, tokenizer: Any, asked: str, answer: str) -> float:
    """Return log p(answer | asked) in the tokenizer's chat template, token by token, without padding."""
    front = tokenizer.apply_chat_template(turns("user", asked), tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turns("user", asked), *turns("assistant", answer)], tokenize=False)
    given, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (front, whole))
    with torch.inference_mode():
        chances = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return sum(float(chances[place - 1, ids[place]]) for place in range(len(given), len(ids)))


def written_out(model: Any, base: Any, tokenizer: Any, beta: float) -> list[tuple[float, float]]:
    """Return each case's margin and loss, as equation 7 of the paper (arXiv 2305.18290) has it."""
    found = []
    for asked, better, worse in CASES:
        rewards = [
            beta * (log_likelihood(model, tokenizer, asked, answer) - log_likelihood(base, tokenizer, asked, answer))
            for answer in (better, worse)
        ]
        margin = rewards[0] - rewards[1]
        found.append((margin, math.log1p(math.exp(-margin))))
    return found


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_is_that_of_the_paper_written_out(decoder: Path, model: PeftModel, beta: float) -> None:
    task, encoded = encoded_cases(decoder, beta)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(decoder), AutoTokenizer.from_pretrained(decoder)
    model.double(), base.double()
    expected = written_out(model, base, tokenizer, beta)
    losses, counts = task.losses(model, encoded.batch(np.arange(len(CASES))))
    assert losses.tolist() == pytest.approx([loss for _, loss in expected], abs=1e-6)
    assert counts.tolist() == [1] * len(CASES)
    margins = [margin for margin, _ in expected]
    assert max(margins) > 1e-2 > -1e-2 > min(margins)  # else nothing was compared
    with torch.inference_mode():
        outputs = task.outputs(model, encoded.batch(np.arange(len(CASES))))
    figures = task.score(encoded, np.arange(len(CASES)), outputs)
    assert figures["margin"] == pytest.approx(np.mean(margins), abs=1e-6)
    assert figures["loss"] == pytest.approx(float(losses.detach().mean()), abs=1e-6)
    assert figures["accuracy"] == np.mean([margin > 0 for margin in margins])
    said = task.predictions(encoded, np.arange(len(CASES)), outputs)
    assert [each.value for each in said] == ["chosen" if margin > 0 else "rejected" for margin in margins]
    assert [each.about["margin"] for each in said] == pytest.approx(margins, abs=1e-6)
    assert [each.probabilities["chosen"] for each in said if each.probabilities] == pytest.approx(
        [1 / (1 + math.exp(-margin)) for margin in margins], abs=1e-6
    )


def test_the_gradient_is_of_the_model_alone(decoder: Path, model: PeftModel) -> None:
    task, encoded = encoded_cases(decoder)
    loss = task.losses(model, encoded.batch([0, 1]))[0].sum()
    loss.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    assert any(float(parameter.grad.abs().max()) > 0 for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_is_that_of_trl(decoder: Path, model: PeftModel, tmp_path: Path, beta: float) -> None:
    trl = pytest.importorskip("trl", reason="pip install trl: then the loss is compared with its own")
    task, encoded = encoded_cases(decoder, beta)
    rows = Dataset.from_list([
        {"prompt": turns("user", asked), "chosen": turns("assistant", better), "rejected": turns("assistant", worse)}
        for asked, better, worse in CASES
    ])  # fmt: skip
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(decoder),  # given an adapter, it would take that as the reference
        peft_config=model.peft_config["default"],
        args=trl.DPOConfig(
            output_dir=str(tmp_path), beta=beta, per_device_train_batch_size=len(CASES), report_to=[], use_cpu=True,
            bf16=False, gradient_checkpointing=False, max_length=None,
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(decoder),
    )  # fmt: skip
    trainer.model.load_state_dict(model.state_dict())
    kept = [trainer.train_dataset[row] for row in range(len(CASES))]
    for row, theirs in enumerate(kept):
        for place, name in enumerate(("chosen_ids", "rejected_ids")):
            item = 2 * row + place
            own = encoded.sequences.tokens[encoded.sequences.offsets[item] : encoded.sequences.offsets[item + 1]]
            assert own.tolist() == [*theirs["prompt_ids"], *theirs[name]]
            assert encoded.sequences.terms[item] == len(theirs[name])
    batch = trainer.data_collator(kept)
    with torch.inference_mode():
        theirs = trainer.compute_loss(trainer.model.eval(), batch)
        losses, counts = task.losses(model.eval(), encoded.batch(np.arange(len(CASES))))
    assert float(losses.sum() / counts.sum()) == pytest.approx(float(theirs), abs=1e-6)
    assert abs(float(theirs) - math.log(2)) > 1e-2


def test_with_its_adapter_off_a_model_is_its_base_and_afterwards_it_is_as_it_was(
    decoder: Path, model: PeftModel
) -> None:
    ids = torch.tensor([[4, 6, 7, 5]])
    base = AutoModelForCausalLM.from_pretrained(decoder)
    model.train()
    frozen = next(parameter for name, parameter in model.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)  # as a method that trains no A
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapted = model(input_ids=ids).logits
    with adapter_off(model):
        assert not model.training
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    assert model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert torch.equal(model(input_ids=ids).logits, adapted)
    assert not torch.allclose(adapted, base(input_ids=ids).logits, atol=1e-3)


def test_both_answers_stand_behind_the_same_prompt_where_it_is_cut(decoder: Path) -> None:
    task, tokenizer = Dpo(0.1, 14), AutoTokenizer.from_pretrained(decoder)
    rows = Dataset.from_dict({
        "prompt": [json.dumps(turns("user", "what is " * 10 + "?"))] * 2,
        "chosen": [json.dumps(turns("assistant", text)) for text in ("red", "so " * 20 + "red")],
        "rejected": [json.dumps(turns("assistant", text)) for text in ("it is blue", "so " * 20 + "blue")],
        CLASS_NUMBER: [0, 0],
    })  # fmt: skip
    encoded = task.encode(rows, np.arange(2), tokenizer, limit=64)
    items = [encoded.sequences.tokens[start:stop].tolist() for start, stop in zip(
        encoded.sequences.offsets[:-1], encoded.sequences.offsets[1:], strict=True)]  # fmt: skip
    terms = encoded.sequences.terms.tolist()
    assert [len(item) for item in items] == [12, 14, 14, 14]
    assert items[0][: 12 - terms[0]] == items[1][: 14 - terms[1]]
    assert encoded.lengths.tolist() == [26, 28]
    assert any("2 of 2 rows are longer than 14 tokens" in note for note in encoded.notes)
    assert any("In 1 of 2 rows both answers are the same as far as they are read" in note for note in encoded.notes)


@pytest.mark.run
def test_a_run_raises_the_margin_and_starts_from_none(decoder: Path, tmp_path: Path) -> None:
    federation = every_federation("dpo", decoder)
    clients = [
        (client, federation.model.initial, rows.test) for client, rows in federation.rows.partition.clients.items()
    ]
    for _, before in evaluate(federation.model, federation.task, federation.encoded, clients, batch_size=8):
        assert before["margin"] == pytest.approx(0, abs=1e-6)
        assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert before["accuracy"] == 0
    summary: Mapping[str, Any] = fedsa.run(federation, tmp_path / "run", progress=False).summary
    for client in ("north", "south"):
        assert summary["per_client"][client]["test"]["margin"] > 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "fedex"}, "algorithm = 'fedex' adds to the base's weights"),
        ({"algorithm": "flora"}, "algorithm = 'flora' adds to the base's weights"),
    ],
)
@pytest.mark.run
def test_where_the_base_would_not_be_the_base_it_is_refused(
    decoder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        every_federation("dpo", decoder, **changes)


def test_a_prompt_that_differs_is_refused(decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} </s> {% endfor %}{{ messages[-1]['content'] }}"
    make: Callable[[], Any] = lambda: Dpo().encode(  # noqa: E731
        Dataset.from_dict({
            "prompt": [json.dumps(turns("user", "what is"))], "chosen": [json.dumps(turns("assistant", "red"))],
            "rejected": [json.dumps(turns("assistant", "blue"))], CLASS_NUMBER: [0],
        }),
        np.arange(1), tokenizer, limit=64,
    )  # fmt: skip
    with pytest.raises(DataError, match="chat template"):
        make()
