import copy
import re

import numpy as np
import pytest
import torch
import transformers
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig, get_peft_model
from transformers import BertForSequenceClassification

from fedsa.adapters.factors import VARIANTS, key_of
from fedsa.client.training.autotune import activation_bytes
from fedsa.errors import ModelError
from fedsa.models import (
    AdaptedModel,
    checkpoint_activations,
    compile_blocks,
    peft_config_of,
    plain_state,
    variant_of,
    with_drawn_layers,
)
from fedsa.models.dropout import AdapterDropout, FastDropout
from fedsa.models.lora_xs import frozen_directions
from fedsa.recipe import AdapterSettings
from fedsa.types import Factor, Key, Side
from support.tiers import first_is_quick
from support.tiny_models import (
    BASES,
    FITTING,
    TASK,
    adapt,
    begin,
    bert,
    client_tensors,
    gpt2,
    llama,
    peft_config,
    token_rows,
)
from support.tiny_models import TARGETS as TARGETS_OF

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
        (f"{QUERY}.lora_magnitude_vector.default.weight", Key(QUERY, Factor.MAGNITUDE)),
        (f"{QUERY}.hada_w1_a.default", Key(QUERY, Factor.HADAMARD_B1)),
        (f"{QUERY}.hada_w1_b.default", Key(QUERY, Factor.HADAMARD_A1)),
        (f"{QUERY}.hada_w2_a.other", Key(QUERY, Factor.HADAMARD_B2, "other")),
        (f"{QUERY}.hada_w2_b.default", Key(QUERY, Factor.HADAMARD_A2)),
        (f"{QUERY}.ia3_l.default", Key(QUERY, Factor.SCALE)),
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
        f"base_model.model.{QUERY}.hada_t1.default",
        f"base_model.model.{QUERY}.lokr_w1.default",
        f"base_model.model.{QUERY}.base_layer.bias",
        f"base_model.model.{QUERY}.lora_A.default.bias",
    ],
)
def test_a_trained_tensor_of_unknown_role_is_an_error(name):
    assert error_of(key_of, name, trained=True) == (
        f"the adapter trains {name!r}, whose role is not known to fedsa (A side, B side or head), so it cannot be "
        "shared or kept by rule; known variants: lora, rslora, vera, dora, pissa, olora, loha, ia3, lora_xs"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_has_exactly_the_factors_of_its_variant(base, variant):
    rank = {} if variant == "ia3" else {"r": 2}
    settings = AdapterSettings(variant=variant, target_modules=TARGETS, **rank)
    config = peft_config_of(settings, task_type="SEQ_CLS", seed=3)
    model = AdaptedModel(base, config, seed=0)
    assert model.variant == variant_of(config) == variant
    assert {key.factor for key in model.keys} == set(VARIANTS[variant].factors)
    assert len([key for key in model.keys if key.factor is Factor.HEAD]) == 2
    assert len(model.keys) == 2 + (len(VARIANTS[variant].factors) - 1) * 4
    assert {str(key) for key in model.keys} == {str(Key.parse(str(key))) for key in model.keys}
    trained = {key_of(name, trained=True) for name, value in model.model.named_parameters() if value.requires_grad}
    assert trained == set(model.keys)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_side_that_begins_at_zero_does(base, variant):
    """So the initial update is zero, and whoever freezes that side keeps it so."""
    settings = AdapterSettings(variant=variant, target_modules=TARGETS)
    model = AdaptedModel(base, peft_config_of(settings, task_type="SEQ_CLS", seed=3), seed=0)
    zero = {key.factor.side for key, value in model.initial.items() if not value.any()} - {Side.HEAD}
    one = {key.factor.side for key, value in model.initial.items() if (value == 1).all()} - {Side.HEAD}
    expected = VARIANTS[variant].zero_side
    of_ones = variant == "ia3"  # whose number one leaves an output as it is
    assert zero == (set() if expected is None or of_ones else {expected})
    assert one == ({expected} if of_ones else set())


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
    dora = peft_config_of(AdapterSettings(variant="dora"), task_type="SEQ_CLS", seed=0)
    assert (dora.use_dora, dora.use_rslora, dora.r, dora.lora_dropout) == (True, False, 8, 0.05)
    pissa = peft_config_of(AdapterSettings(variant="pissa", r=3), task_type="SEQ_CLS", seed=0)
    assert (pissa.init_lora_weights, pissa.use_dora, pissa.r) == ("pissa", False, 3)
    loha = peft_config_of(AdapterSettings(variant="loha", lora_alpha=12), task_type="SEQ_CLS", seed=0)
    assert isinstance(loha, LoHaConfig)
    assert (loha.r, loha.alpha, loha.rank_dropout, loha.module_dropout) == (8, 12, 0.0, 0.0)
    for given, expected in (
        ({}, (None, None)),
        ({"target_modules": ["key"]}, ({"key"}, set())),
        ({"target_modules": ["key", "dense"], "feedforward_modules": ["dense"]}, ({"key", "dense"}, {"dense"})),
    ):
        ia3 = peft_config_of(AdapterSettings(variant="ia3", **given), task_type="SEQ_CLS", seed=0)
        assert isinstance(ia3, IA3Config)
        assert (ia3.target_modules, ia3.feedforward_modules) == expected


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
            lora(init_lora_weights="pissa", use_dora=True),
            "init_lora_weights = 'pissa' does not go with use_dora = True: leave one of them out",
        ),
        (
            lora(init_lora_weights="pissa_niter_4"),
            "init_lora_weights = 'pissa_niter_4' is not supported; use True or one of 'gaussian', 'pissa', 'olora', "
            "'lora_xs'",
        ),
        (
            LoHaConfig(rank_dropout=0.1),
            "rank_dropout = 0.1 is not supported: PEFT draws it from one stream for all clients; use 0",
        ),
        (
            LoHaConfig(module_dropout=0.1),
            "module_dropout = 0.1 is not supported: PEFT draws it from one stream for all clients; use 0",
        ),
        (
            IA3Config(target_modules=TARGETS),
            "target_modules and feedforward_modules go together: give both (the second: those of the first whose "
            "input is scaled, not their output; [] for none), or neither for PEFT's choice",
        ),
        (
            LoKrConfig(target_modules=TARGETS),
            "adapter type 'LOKR' is not supported; supported: LORA (also with use_rslora, use_dora or "
            "init_lora_weights 'pissa', 'olora' or 'lora_xs'), VERA, LOHA and IA3",
        ),
    ],
    ids=["bias", "vera-bias", "pissa-dora", "pissa-niter", "loha-rank", "loha-module", "ia3", "lokr"],
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


# -- adapters that start from the base weights -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_alpha": 3, "rank_pattern": {"value": 5}}])
@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_the_first_values_are_pefts(tiny_model, variant, options):
    config = {"r": 3, "init_lora_weights": variant, **options}
    model = AdaptedModel(BertForSequenceClassification.from_pretrained(tiny_model), lora(**config), seed=0)
    assert model.variant == variant
    assert model.config.init_lora_weights == variant
    peft = get_peft_model(BertForSequenceClassification.from_pretrained(tiny_model), lora(**config))
    expected = dict(peft.named_parameters())
    for name, value in model.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    plain = BertForSequenceClassification.from_pretrained(tiny_model)
    assert not torch.allclose(
        model.model.get_submodule(f"base_model.model.{QUERY}").base_layer.weight, plain.get_submodule(QUERY).weight
    )


def test_the_first_values_of_transposed_layers_are_of_their_transpose():
    for variant in ("pissa", "olora"):
        torch.manual_seed(1)
        base = gpt2()
        before = base.transformer.h[0].attn.c_attn.weight.detach().clone()
        model = AdaptedModel(base, peft_config(variant, ["c_attn"]), seed=0)
        path = "transformer.h.0.attn.c_attn"
        a, b = model.initial[Key(path, Factor.A)], model.initial[Key(path, Factor.B)]
        assert (a.shape, b.shape) == ((4, 16), (48, 4))
        rest = model.model.get_submodule(f"base_model.model.{path}").base_layer.weight
        torch.testing.assert_close(rest + (model.scaling[path] * (b @ a)).T, before)


@pytest.mark.parametrize("name", first_is_quick(BASES))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_adapted_model_starts_from_what_the_base_gives(name, variant):
    if (name, variant) not in FITTING:
        assert error_of(adapt, BASES[name], variant).startswith("the adapter does not fit the model: ")
        return
    torch.manual_seed(0)
    make = BASES[name]
    base = make().eval()
    batch = token_rows().batch(np.arange(5))
    with torch.no_grad():
        expected = TASK.outputs(base, batch)
        model = AdaptedModel(base, peft_config(variant, TARGETS_OF[make]), seed=0)
        if variant == "vera":  # PEFT's lambda_b begins at zero, and the tiny models' config is another
            model.write(
                {key: torch.zeros_like(value) for key, value in model.initial.items() if key.factor is Factor.LAMBDA_B}
            )
        torch.testing.assert_close(TASK.outputs(model.model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_the_first_values_depend_on_the_base_alone(tiny_model, variant):
    found = []
    for seed, threads in ((0, 1), (1, 2)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        base = BertForSequenceClassification.from_pretrained(tiny_model)
        found.append(AdaptedModel(base, lora(init_lora_weights=variant), seed=seed))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    one, other = (model.initial for model in found)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_weights_are_rounded_after_the_adapter_took_its_part(tiny_model, variant):
    one, other = (
        AdaptedModel(
            BertForSequenceClassification.from_pretrained(tiny_model),
            lora(init_lora_weights=variant),
            seed=0,
            precision=precision,
        )
        for precision in ("fp32", "bf16")
    )
    weights = [model.model.get_submodule(f"base_model.model.{QUERY}").base_layer.weight for model in (one, other)]
    assert torch.equal(weights[0].bfloat16(), weights[1])


def test_what_has_no_directions_to_give_is_refused(base):
    assert error_of(AdaptedModel, base, lora(r=17, init_lora_weights="pissa"), seed=0) == (
        f"adapter.r = 17 is more than {QUERY}, of shape (16, 16), has directions: with adapter.variant = 'pissa' it "
        "can be 16 at most"
    )


def test_an_embedding_is_no_start(base):
    config = lora(init_lora_weights="olora", target_modules=["query", "word_embeddings"])
    assert error_of(AdaptedModel, base, config, seed=0) == (
        "adapter.variant = 'olora' takes its first values from the weights of linear layers: take "
        "bert.embeddings.word_embeddings (Embedding) out of adapter.target_modules"
    )


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA")  # PEFT's, where the config is made
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_alpha": 3}])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_lora_xs_trains_r_between_frozen_singular_directions(make, options):
    torch.manual_seed(1)
    base = make()
    before = {name: value.detach().clone() for name, value in base.state_dict().items()}
    own = {"r": 4, "init_lora_weights": "lora_xs", "target_modules": TARGETS_OF[make], "task_type": "SEQ_CLS"}
    ranks = {TARGETS_OF[make][-1]: 5}
    model = AdaptedModel(base, LoraConfig(**own, **options, rank_pattern=ranks), seed=0)
    middles = [key for key in model.keys if key.factor is Factor.MIDDLE]
    assert len(middles) == len(TARGETS_OF[make]) * 2
    model.write({key: torch.randn(value.shape) for key, value in model.read(middles).items()})
    plain, merged = plain_state(model.model), copy.deepcopy(model).merge().state_dict()
    for key, middle in model.read(middles).items():
        stored = before[f"{key.module}.weight"]
        weight = (stored.T if make is gpt2 else stored).double()
        rank = ranks.get(key.module.rpartition(".")[2], 4)
        assert middle.shape == (rank, rank)
        a, br = (plain[f"base_model.model.{key.module}.lora_{side}.default.weight"].double() for side in "AB")
        # W = U·Σ·Vᵀ by the eigenvectors of W·Wᵀ, whose signs are free: those of A are taken
        values, vectors = torch.linalg.eigh(weight @ weight.T)
        u = vectors.flip(1)[:, :rank]
        u = u * (u * (weight @ a.T)).sum(dim=0).sign()
        update = model.scaling[key.module] * u @ middle.double() @ (u.T @ weight)
        torch.testing.assert_close(a, u.T @ weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.square().sum(dim=1), values.flip(0)[:rank], rtol=1e-4, atol=0)
        torch.testing.assert_close(model.scaling[key.module] * br @ a, update, rtol=0, atol=1e-5)
        after = merged[f"{key.module}.weight"].double()
        torch.testing.assert_close(after, stored + (update.T if make is gpt2 else update), rtol=0, atol=1e-5)
        layer = model.model.get_submodule(f"base_model.model.{key.module}")
        assert torch.equal(layer.base_layer.weight, stored), "nothing is taken from the base"


def test_each_of_several_lora_xs_adapters_has_an_r_of_its_own():
    model = adapt(bert, "lora_xs", method={"adapters": ("default", "local")})
    assert {(key.factor, key.adapter) for key in model.keys if key.factor is not Factor.HEAD} == {
        (Factor.MIDDLE, "default"),
        (Factor.MIDDLE, "local"),
    }
    for key in model.initial:
        if key.adapter == "local":
            layer = model.model.get_submodule(f"base_model.model.{key.module}")
            weight = layer.base_layer.weight.detach().double()
            a, b = zip(*(frozen_directions(layer, name) for name in model.adapters), strict=True)
            together = torch.cat(b, dim=1).double()
            torch.testing.assert_close(together.T @ together, torch.eye(8).double(), rtol=0, atol=1e-5)
            sizes = torch.stack([part.double().norm(dim=1) for part in a], dim=1)  # (directions of one, adapters)
            values = torch.linalg.svdvals(weight)
            torch.testing.assert_close(sizes.flatten(), values[:8], rtol=1e-4, atol=1e-6)


# -- tensors in and out -----------------------------------------------------------------------------------------------


def test_the_initial_tensors_depend_on_the_seed_alone(tiny_model):
    def initial(seed: int):
        return AdaptedModel(BertForSequenceClassification.from_pretrained(tiny_model), lora(), seed=seed).initial

    one, again, other = initial(1), initial(1), initial(2)
    for key in one:
        assert torch.equal(one[key], again[key])
        assert torch.equal(one[key], other[key]) is (key.factor is not Factor.A), key


def test_the_initial_tensors_are_no_parameters(base):
    model = AdaptedModel(base, lora(), seed=0)
    assert not any(tensor.requires_grad for tensor in model.initial.values())


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


# -- precision --------------------------------------------------------------------------------------------------------


def dtypes(named) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in named}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("make", "targets", "head"),
    first_is_quick([(bert, ["query", "value"], "classifier"), (llama, ["q_proj", "v_proj"], "score")]),
)
def test_with_bf16_frozen_weights_are_bf16_and_what_is_trained_is_fp32(make, targets, head, variant):
    config = peft_config(variant, targets)
    model = AdaptedModel(make(), config, seed=0, precision="bf16")
    for name, dtype in dtypes(model.model.named_parameters(remove_duplicate=False)).items():
        trained = key_of(name, trained=False) is not None
        assert dtype == (torch.float32 if trained else torch.bfloat16), name
    assert any(f"{head}.original_module" in name for name, _ in model.model.named_parameters())
    assert {value.dtype for value in model.initial.values()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    buffers = dtypes(model.model.named_buffers(remove_duplicate=False))
    projections = {name for name in buffers if "vera_A" in name or "vera_B" in name}
    assert bool(projections) is (variant == "vera")
    for name, dtype in buffers.items():
        if dtype.is_floating_point:
            assert dtype == (torch.bfloat16 if name in projections else torch.float32), name
    assert make is not llama or any("inv_freq" in name for name in buffers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_fp32_everything_is_fp32(variant):
    base = llama().bfloat16()
    base.float()
    model = AdaptedModel(base, peft_config(variant, ["q_proj"]), seed=0)
    everything = [*model.model.named_parameters(), *model.model.named_buffers()]
    assert {dtype for dtype in dtypes(everything).values() if dtype.is_floating_point} == {torch.float32}
    assert model.dtype == torch.float32


def base_of(seed: int):
    torch.manual_seed(seed)
    return bert()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_initial_tensors_are_the_same_in_every_precision(variant):
    one, other = (
        AdaptedModel(base_of(3), peft_config(variant, TARGETS), seed=5, precision=precision).initial
        for precision in ("fp32", "bf16")
    )
    adapter = [key for key in one if key.factor is not Factor.HEAD]  # the head is the base's
    assert adapter
    assert all(torch.equal(one[key], other[key]) for key in adapter)


# -- dropout and attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("loha", "ia3")])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_every_adapted_layer_has_dropout_with_a_stream_of_its_own(variant, p):
    model = AdaptedModel(bert(), peft_config(variant, TARGETS, dropout=p), seed=0)
    own = [module for module in model.model.modules() if isinstance(module, AdapterDropout)]
    assert len(own) == 4
    assert {module.p for module in own} == {p}
    assert {module.layer for module in own} == set(range(4))
    assert model.streams.layers == 4
    assert all(module.streams is model.streams for module in own)
    tables = (
        getattr(module, f"{'vera' if variant == 'vera' else 'lora'}_dropout", None) for module in model.model.modules()
    )
    assert sum(len(table) for table in tables if table is not None) == 4, "PEFT's own is nowhere"


def test_loha_draws_nothing_in_training():
    """PEFT's layer throws a coin, from the one stream of all clients, even where nothing is dropped."""
    model = adapt(bert, "loha")
    batch = begin(model, token_rows(), [range(4)])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with model.training():
        outputs = TASK.outputs(model.model, batch)
        assert all(module.training for module in model.model.modules() if type(module).__name__ == "SteadyLoha")
    assert torch.equal(torch.get_rng_state(), before)
    outputs.sum().backward()
    kept = [value.grad for name, value in model.model.named_parameters() if "hada_w2_b" in name]
    assert len(kept) == 4
    assert all(gradient.any() for gradient in kept)
    assert copy.deepcopy(model).obstacles() == []


def test_attention_is_switched_if_the_model_has_it():
    model = AdaptedModel(bert(), peft_config("lora", TARGETS), seed=0)
    model.set_attention("eager")
    assert model.attention == "eager"
    assert model.set_attention("sdpa")
    assert model.attention == "sdpa"
    assert not model.set_attention("no such attention")
    assert model.attention == "sdpa"


# -- activations computed again, compiled blocks ----------------------------------------------------------------------


def gradients(model: AdaptedModel, *, pack: bool) -> dict:
    """Return the gradients of two clients' tensors with all dropout on."""
    rows, clients = token_rows(), client_tensors(model, 2)
    with model.stack(2, model.keys) as stack, model.training(), FastDropout.on(model.device):
        for place, tensors in enumerate(clients):
            stack.load(place, tensors)
        batch = begin(model, rows, [range(9), range(9, 12)], pack=pack)
        torch.manual_seed(0)
        TASK.losses(model.model, batch)[0].sum().backward()
    return {key: value.grad for key, value in stack.values.items()}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("make", first_is_quick(BASES.values()), ids=BASES)
def test_activations_computed_again_are_the_same(make, pack):
    """Dropout among them: the base's, and each client's own."""
    base = {"hidden_dropout_prob": 0.3} if make is bert else {}
    model = adapt(make, base=base, dropout=0.3)
    kept, few = gradients(model, pack=pack), activation_bytes(model, TASK, token_rows(), np.arange(8), pack)
    checkpoint_activations(model)
    again, fewer = gradients(model, pack=pack), activation_bytes(model, TASK, token_rows(), np.arange(8), pack)
    assert fewer < 0.5 * few
    for key, gradient in kept.items():
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(again[key], gradient, rtol=1e-9, atol=1e-12)


def test_parts_of_layers_without_an_adapter_are_compiled(monkeypatch):
    model, compiled = adapt(bert, target_modules=["query", "output.dense"]), []

    def note(forward, **options):
        compiled.append(next(name for name, module in model.model.named_modules() if module is forward.__self__))
        return forward

    monkeypatch.setattr(torch, "compile", note)
    compile_blocks(model)
    assert [name.partition("encoder.")[2] for name in compiled] == ["layer.0.intermediate", "layer.1.intermediate"]


@pytest.mark.parametrize(
    ("auto_model", "task_type"),
    [
        ("AutoModelForTokenClassification", "TOKEN_CLS"),
        ("AutoModelForQuestionAnswering", None),
        ("AutoModelForSequenceClassification", "SEQ_CLS"),
    ],
)
@pytest.mark.parametrize("variant", ["lora", "pissa", "loha"])
def test_all_linear_leaves_the_head_out(tiny_model, auto_model, task_type, variant):
    base = getattr(transformers, auto_model).from_pretrained(tiny_model, num_labels=2)
    settings = AdapterSettings(variant=variant, r=2, target_modules="all-linear")
    config = peft_config_of(settings, task_type=task_type, seed=0)
    model = AdaptedModel(base, with_drawn_layers(config, set(), base), seed=0)
    adapted = {key.module for key in model.keys if key.factor.side is not Side.HEAD}
    heads = {key.module for key in model.keys if key.factor.side is Side.HEAD}
    assert len([name for name in adapted if ".layer." in name]) == 12
    assert not adapted & heads
    assert heads
