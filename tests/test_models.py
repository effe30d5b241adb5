import re

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig
from transformers import BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from fedsa.adapters.factors import VARIANT_FACTORS, key_of
from fedsa.errors import ModelError
from fedsa.models import (
    AdaptedModel,
    fit_padding,
    load_base,
    load_tokenizer,
    peft_config_of,
    position_limit,
    resolve_compute,
    variant_of,
    with_drawn_layers,
)
from fedsa.recipe import AdapterSettings, ComputeSettings, ModelSettings
from fedsa.types import Factor, Key

QUERY = "bert.encoder.layer.0.attention.self.query"
TARGETS = ["query", "value"]


@pytest.fixture
def base(tiny_model):
    return BertForSequenceClassification.from_pretrained(tiny_model)


def lora(**options) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": TARGETS, "task_type": "SEQ_CLS", **options})


def error_of(call, *args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    return str(caught.value)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"{QUERY}.lora_A.default.weight", Key(QUERY, Factor.A)),
        (f"{QUERY}.lora_B.default.weight", Key(QUERY, Factor.B)),
        (f"{QUERY}.lora_A.other.weight", Key(QUERY, Factor.A, "other")),
        ("embeddings.word.lora_embedding_A.default", Key("embeddings.word", Factor.A)),
        ("embeddings.word.lora_embedding_B.default", Key("embeddings.word", Factor.B)),
        (f"{QUERY}.vera_lambda_d.default", Key(QUERY, Factor.LAMBDA_D)),
        (f"{QUERY}.vera_lambda_b.default", Key(QUERY, Factor.LAMBDA_B)),
        ("classifier.modules_to_save.default.weight", Key("classifier.weight", Factor.HEAD)),
        ("classifier.modules_to_save.default.dense.bias", Key("classifier.dense.bias", Factor.HEAD)),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_key_of_an_adapters_tensor(name, key, trained):
    assert key_of(f"base_model.model.{name}", trained=trained) == key


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{QUERY}.base_layer.weight",
        f"base_model.model.{QUERY}.base_layer.bias",
        f"base_model.model.{QUERY}.vera_A.default",
        "base_model.model.classifier.original_module.weight",
        "base_model.model.lora_A_lookalike.weight",
        "base_model.vera_B.default",
    ],
)
def test_what_belongs_to_the_base_has_no_key(name):
    assert key_of(name, trained=False) is None


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{QUERY}.lora_magnitude_vector.default.weight",
        f"base_model.model.{QUERY}.hada_w1_a.default",
        f"base_model.model.{QUERY}.base_layer.bias",
        f"base_model.model.{QUERY}.ia3_l.default",
        f"base_model.model.{QUERY}.lora_A.default.bias",
    ],
)
def test_a_trained_tensor_of_unknown_role_is_an_error(name):
    assert error_of(key_of, name, trained=True) == (
        f"the adapter trains {name!r}, whose role is not known to fedsa (A side, B side or head), so it cannot be "
        "shared or kept by rule; known variants: lora, rslora, vera"
    )


@pytest.mark.parametrize("variant", VARIANT_FACTORS)
def test_a_model_has_exactly_the_factors_of_its_variant(base, variant):
    config = peft_config_of(AdapterSettings(variant=variant, r=2, target_modules=TARGETS), task_type="SEQ_CLS", seed=3)
    model = AdaptedModel(base, config, seed=0)
    assert model.variant == variant_of(config) == variant
    assert {key.factor for key in model.keys} == set(VARIANT_FACTORS[variant])
    assert len([key for key in model.keys if key.factor is Factor.HEAD]) == 2
    assert len(model.keys) == 2 + 2 * 4
    assert {str(key) for key in model.keys} == {str(Key.parse(str(key))) for key in model.keys}
    trained = {key_of(name, trained=True) for name, value in model.model.named_parameters() if value.requires_grad}
    assert trained == set(model.keys)


# -- configs ----------------------------------------------------------------------------------------------------------


def test_a_config_in_the_recipes_words():
    lora_config = peft_config_of(
        AdapterSettings(r=4, lora_alpha=12, dropout=0.1, target_modules=TARGETS), task_type="SEQ_CLS", seed=0
    )
    assert (lora_config.r, lora_config.lora_alpha, lora_config.lora_dropout) == (4, 12, 0.1)
    assert lora_config.use_rslora is False
    assert peft_config_of(AdapterSettings(variant="rslora"), task_type="SEQ_CLS", seed=0).use_rslora is True
    assert peft_config_of(AdapterSettings(), task_type="SEQ_CLS", seed=0).r == 8
    vera = peft_config_of(
        AdapterSettings(variant="vera", modules_to_save=["score"]), task_type="SEQ_CLS", seed=2**31 + 5
    )
    assert isinstance(vera, VeraConfig)
    assert (vera.r, vera.projection_prng_key, vera.modules_to_save) == (256, 5, ["score"])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            lora(bias="lora_only"),
            "bias = 'lora_only' is not supported: it trains biases of the shared base model; use 'none'",
        ),
        (
            VeraConfig(r=2, bias="all"),
            "bias = 'all' is not supported: it trains biases of the shared base model; use 'none'",
        ),
        (
            lora(use_dora=True),
            "use_dora = True is not supported: the role of DoRA's magnitude is not defined here yet",
        ),
        (
            lora(init_lora_weights="pissa"),
            "init_lora_weights = 'pissa' is not supported: it changes the base weights, which all clients share; "
            "use True or 'gaussian'",
        ),
        (
            IA3Config(target_modules=TARGETS, feedforward_modules=[]),
            "adapter type 'IA3' is not supported; supported: LORA (also with use_rslora) and VERA",
        ),
    ],
    ids=["bias", "vera-bias", "dora", "pissa", "ia3"],
)
def test_what_cannot_be_federated_is_refused_with_the_reason(base, config, text):
    assert error_of(variant_of, config) == text
    before = {name: value.clone() for name, value in base.state_dict().items()}
    assert error_of(AdaptedModel, base, config, seed=0) == text
    assert base.state_dict().keys() == before.keys(), "nothing was put into the model"


@pytest.mark.parametrize("init", [True, "gaussian"])
def test_initialisations_that_leave_the_base_alone_are_taken(init):
    assert variant_of(lora(init_lora_weights=init)) == "lora"


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (["qeury"], "adapter.target_modules: the model has no layer 'qeury'; did you mean 'query'?"),
        (["query", "valeu"], "adapter.target_modules: the model has no layer 'valeu'; did you mean 'value'?"),
        (
            ["q_proj", "v_proj"],
            "adapter.target_modules: the model has no layer 'q_proj'; known: classifier, dense, key, query, value\n"
            "adapter.target_modules: the model has no layer 'v_proj'; known: classifier, dense, key, query, value",
        ),
    ],
)
def test_an_unknown_target_is_refused(base, targets, text):
    assert error_of(AdaptedModel, base, lora(target_modules=targets), seed=0) == text


@pytest.mark.parametrize("targets", [["ery"], ["self"], ["attention.self"]])
def test_a_part_of_a_name_is_no_target(base, targets):
    assert error_of(AdaptedModel, base, lora(target_modules=targets), seed=0).startswith("adapter.target_modules: ")


@pytest.mark.parametrize(
    ("targets", "count"), [(["self.query"], 2), ([QUERY], 1), (r".*layer\.1.*(query|key)", 2), ("all-linear", 13)]
)
def test_targets_by_ending_by_name_and_by_pattern(base, targets, count):
    model = AdaptedModel(base, lora(target_modules=targets), seed=0)
    assert len([key for key in model.keys if key.factor is Factor.A]) == count


def test_a_pattern_without_a_match_is_refused(base):
    text = error_of(AdaptedModel, base, lora(target_modules=".*nothing"), seed=0)
    assert re.match(r"the adapter does not fit the model: .*\.\*nothing", text)


# -- tensors in and out -----------------------------------------------------------------------------------------------


def test_the_initial_tensors_depend_on_the_seed_alone(tiny_model):
    def initial(seed: int):
        return AdaptedModel(BertForSequenceClassification.from_pretrained(tiny_model), lora(), seed=seed).initial

    one, again, other = initial(1), initial(1), initial(2)
    for key in one:
        assert torch.equal(one[key], again[key])
        assert torch.equal(one[key], other[key]) is (key.factor is not Factor.A), key


def test_what_is_written_is_read_and_the_rest_stays(base):
    model = AdaptedModel(base, lora(), seed=0)
    key, *others = model.keys
    value = torch.full_like(model.initial[key], 0.5)
    model.write({key: value})
    assert torch.equal(model.read([key])[key], value)
    assert all(torch.equal(tensor, model.initial[name]) for name, tensor in model.read(others).items())
    value.zero_()
    assert model.read([key])[key].min() == 0.5, "what was written is a copy"
    copy = model.read([key])[key]
    copy.zero_()
    assert model.read([key])[key].min() == 0.5, "what is read is a copy"


def test_what_does_not_fit_is_not_written(base):
    model = AdaptedModel(base, lora(), seed=0)
    key = Key(QUERY, Factor.A)
    assert error_of(model.write, {key: torch.zeros(3, 16)}) == (
        f"tensor {QUERY}:A:default of shape (3, 16) does not fit the model, where it is of shape (2, 16)"
    )
    assert error_of(model.write, {Key("nowhere", Factor.A): torch.zeros(1)}) == (
        "tensor nowhere:A:default of shape (1,) does not fit the model, where it is absent"
    )


def test_only_what_is_wanted_is_trained(base):
    model = AdaptedModel(base, lora(), seed=0)
    wanted = [key for key in model.keys if key.factor is Factor.B]
    assert list(model.train_only(reversed(wanted))) == wanted
    trained = {name for name, value in model.model.named_parameters() if value.requires_grad}
    assert len(trained) == len(wanted)
    assert all(".lora_B." in name for name in trained)


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


def load(path, *, num_labels: int = 2, **options):
    model, _ = load_base(
        ModelSettings(path=str(path), **options),
        auto_model="AutoModelForSequenceClassification",
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
        "take the model without that head, or mend task.labels"
    )


def test_a_model_that_is_not_there_is_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    for call in (load, lambda path: load_tokenizer(ModelSettings(path=str(path)))):
        text = error_of(call, nowhere)
        assert text.startswith(
            f"model.path = {str(nowhere)!r}: there is no such local folder, and the hub did not give a model of that "
            "name ("
        )
        assert text.endswith("); check the name, the network, or the token for a gated model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert error_of(load, tmp_path).startswith(
        f"model.path = {str(tmp_path)!r}: the folder holds no model that transformers can load: "
    )


def test_a_hub_name_is_refused_when_the_hub_cannot_be_asked():
    assert "the hub did not give a model of that name" in error_of(load, "fedsa-test/no-such-model")


def test_a_damaged_model_is_refused(tiny_model, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    assert error_of(load, tmp_path).startswith(f"model.path = {str(tmp_path)!r}: the folder holds no model")


def test_the_initial_tensors_are_no_parameters(base):
    model = AdaptedModel(base, lora(), seed=0)
    assert not any(tensor.requires_grad for tensor in model.initial.values())


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
    assert with_drawn_layers(lora(), drawn).modules_to_save == ["bert.pooler.dense"]
