import pytest
import torch
import transformers
from peft import LoraConfig
from transformers import BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from fedsa.errors import ModelError
from fedsa.models import (
    fit_padding,
    load_base,
    load_image_processor,
    load_tokenizer,
    position_limit,
    resolve_compute,
    with_drawn_layers,
)
from fedsa.recipe import ComputeSettings, ModelSettings


def error_of(call, *args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    return str(caught.value)


# -- where it computes ------------------------------------------------------------------------------------------------


def test_auto_is_resolved_once():
    resolved = resolve_compute(ComputeSettings())
    assert resolved.device in ("cpu", "cuda", "mps")
    assert resolved.precision in ("fp32", "bf16")
    assert resolved.threads >= 1
    assert resolve_compute(resolved) == resolved


def test_what_is_given_stays():
    given = ComputeSettings(device="cpu", threads=3, precision="bf16")
    assert resolve_compute(given) == given


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused(device):
    assert error_of(resolve_compute, ComputeSettings(device=device)).startswith(
        f"compute.device = {device!r} cannot be used here: "
    )


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"amx_bf16": True}, "bf16"), ({"avx2": True, "amx_bf16": False}, "fp32"), ({}, "fp32")],
)
def test_bf16_is_chosen_where_the_processor_has_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_compute(ComputeSettings(device="cpu")).precision == precision


# -- loading ----------------------------------------------------------------------------------------------------------


def load(path, *, num_labels: int = 2, auto_model: str = "AutoModelForSequenceClassification", **options):
    model, _ = load_base(
        ModelSettings(path=str(path), **options),
        auto_model=auto_model,
        options={"num_labels": num_labels},
        seed=0,
    )
    return model


def test_a_base_is_loaded_for_evaluation_in_fp32(tiny_model):
    model = load(tiny_model)
    assert not model.training
    assert model.config.num_labels == 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load(tiny_model, attn_implementation="eager").config._attn_implementation == "eager"


def test_a_head_that_the_checkpoint_lacks_is_drawn_from_the_seed(tiny_model, tmp_path):
    BertForSequenceClassification.from_pretrained(tiny_model).bert.save_pretrained(tmp_path)
    one, again = load(tmp_path, num_labels=3), load(tmp_path, num_labels=3)
    assert one.classifier.weight.shape == (3, 16)
    assert torch.equal(one.classifier.weight, again.classifier.weight)


def test_a_checkpoint_with_a_head_of_other_classes_is_refused(tiny_model):
    assert error_of(load, tiny_model, num_labels=3) == (
        f"model.path = {str(tiny_model)!r}: the checkpoint's head has another number of classes than the task; "
        "take the model without that head, mend task.labels, or see if its config.json is that of these weights"
    )


def test_a_model_that_is_not_there_is_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    for what, call in (("model", load), ("tokenizer", lambda path: load_tokenizer(ModelSettings(path=str(path))))):
        text = error_of(call, nowhere)
        assert text.startswith(
            f"model.path = {str(nowhere)!r}: there is no such local folder, and the hub did not give a {what} of that "
            "name ("
        )
        assert text.endswith("); check the name, the network, or the token for a gated model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert error_of(load, tmp_path).startswith(
        f"model.path = {str(tmp_path)!r}: the folder holds no model that transformers can load: "
    )


SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BARE = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SMALL)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    ),
    "deberta": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**SMALL)),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(
            **SMALL, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
        )
    ),
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
    "gpt2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL, num_key_value_heads=1)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
}


@pytest.mark.parametrize("kind", BARE)
def test_a_folder_without_its_tokenizer_is_refused(tmp_path, kind):
    """Transformers makes a tokenizer without words: BERT would learn from [UNK] alone, and GPT-2 from nothing."""
    BARE[kind]().save_pretrained(tmp_path)
    text = error_of(lambda path: load_tokenizer(ModelSettings(path=str(path))), tmp_path)
    assert text.startswith(f"model.path = {str(tmp_path)!r}: ")
    assert "its tokenizer knows no words" in text or "the folder holds no tokenizer" in text
    assert "tokenizer.save_pretrained(FOLDER)" in text
    assert len(text) < 600 + len(str(tmp_path))
    assert ":;" not in text


def test_a_tokenizer_of_bytes_needs_no_files(tmp_path):
    BARE["t5"]().save_pretrained(tmp_path)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(ModelSettings(path=str(tmp_path)))("so")["input_ids"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(tiny_model, tmp_path, damage):
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(damage)
    text = error_of(lambda path: load_tokenizer(ModelSettings(path=str(path))), tmp_path)
    assert text.startswith(f"model.path = {str(tmp_path)!r}: the folder holds no tokenizer")


def test_a_model_that_has_no_head_for_a_task_is_told_so(tmp_path):
    BARE["t5"]().save_pretrained(tmp_path)
    text = error_of(lambda path: load(path, auto_model="AutoModelForMultipleChoice"), tmp_path)
    assert "transformers has no AutoModelForMultipleChoice for a model of this kind (T5)" in text
    assert "take another model, or another task.kind" in text


def test_a_folder_without_an_image_processor_is_told_so(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**{**SMALL, "vocab_size": 1})).save_pretrained(tmp_path)
    text = error_of(lambda path: load_image_processor(ModelSettings(path=str(path))), tmp_path)
    assert "the folder holds no image processor" in text


def test_a_hub_name_is_refused_when_the_hub_cannot_be_asked():
    assert "the hub did not give a model of that name" in error_of(load, "fedsa-test/no-such-model")


def test_a_damaged_model_is_refused(tiny_model, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    assert error_of(load, tmp_path).startswith(f"model.path = {str(tmp_path)!r}: the folder holds no model")


# -- padding and positions --------------------------------------------------------------------------------------------


def test_a_tokenizer_without_padding_pads_with_its_end(tiny_model):
    tokenizer, model = load_tokenizer(ModelSettings(path=str(tiny_model))), load(tiny_model)
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    fit_padding(model, tokenizer)
    assert tokenizer.pad_token == "[SEP]"
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("[SEP]")
    tokenizer.pad_token = tokenizer.eos_token = None
    assert "neither a padding nor an end token" in error_of(fit_padding, model, tokenizer)


def test_roberta_cannot_use_its_first_positions(tiny_model):
    tokenizer = load_tokenizer(ModelSettings(path=str(tiny_model)))
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    model = RobertaForSequenceClassification(config).eval()
    tokenizer.model_max_length = 10**30
    limit = position_limit(model, tokenizer)
    assert limit == 32
    model(input_ids=torch.full((1, limit), 5))  # and one more would not fit
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))
    tokenizer.model_max_length = 20
    assert position_limit(model, tokenizer) == 20


def test_a_checkpoint_that_lacks_more_than_a_head_is_refused(tiny_model, tmp_path):
    model = BertForSequenceClassification.from_pretrained(tiny_model)
    state = {name: value for name, value in model.state_dict().items() if "layer.0" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    assert "lacks more of BertForSequenceClassification than a head" in error_of(load, tmp_path)


def test_a_pooler_that_the_checkpoint_lacks_is_drawn_and_named(tiny_model, tmp_path):
    model = BertForSequenceClassification.from_pretrained(tiny_model)
    state = {name: value for name, value in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    _, drawn = load_base(
        ModelSettings(path=str(tmp_path)),
        auto_model="AutoModelForSequenceClassification",
        options={"num_labels": 2},
        seed=0,
    )
    assert drawn == {"bert.pooler.dense"}
    config = with_drawn_layers(LoraConfig(task_type="SEQ_CLS", target_modules=["query"]), drawn, model)
    assert config.modules_to_save == ["bert.pooler.dense"]
