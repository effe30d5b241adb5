"""A cohort comes to what one client at a time comes to: for every variant, kind of model and setting."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, VeraConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedsa.errors import TrainingError
from fedsa.models import AdaptedModel
from fedsa.recipe import TrainingSettings
from fedsa.tasks.classification import Classification, TokenRows
from fedsa.training import cohort, sequential
from fedsa.training.jobs import Job

WORDS = 40
TASK = Classification(("text",), ("a", "b", "c"))
SIZES = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
COMMON = {"num_labels": 3, "pad_token_id": 0}


def bert(**options):
    config = BertConfig(**SIZES, **COMMON, intermediate_size=32, max_position_embeddings=40, **NO_DROPOUT | options)
    return BertForSequenceClassification(config), ["query", "value"]


def roberta():
    config = RobertaConfig(**SIZES, **COMMON, intermediate_size=32, max_position_embeddings=44, **NO_DROPOUT)
    return RobertaForSequenceClassification(config), ["query", "value"]


def distilbert():
    config = DistilBertConfig(
        **COMMON, vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    return DistilBertForSequenceClassification(config), ["q_lin", "v_lin"]


def llama():
    config = LlamaConfig(
        **SIZES, **COMMON, intermediate_size=32, num_key_value_heads=1, max_position_embeddings=40
    )  # fmt: skip
    return LlamaForSequenceClassification(config), ["q_proj", "v_proj"]


def gpt2():
    config = GPT2Config(
        **COMMON, vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config), ["c_attn"]


def modernbert():
    config = ModernBertConfig(
        **SIZES, **COMMON, intermediate_size=32, max_position_embeddings=40, local_attention=128, cls_token_id=1,
        sep_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ModernBertForSequenceClassification(config), ["Wqkv"]


MODELS = {each.__name__: each for each in (bert, roberta, distilbert, llama, gpt2, modernbert)}


def config_of(variant: str, targets: list[str], dropout: float = 0.0, saved: list[str] | None = None):
    common = {"r": 4, "target_modules": targets, "task_type": "SEQ_CLS", "modules_to_save": saved}
    if variant == "vera":
        return VeraConfig(**common, vera_dropout=dropout, d_initial=0.5)
    return LoraConfig(**common, lora_alpha=8, lora_dropout=dropout, use_rslora=variant == "rslora")


def adapted(name="bert", variant="lora", *, dtype=torch.float64, saved=None, dropout=0.0, precision="fp32"):
    """A tiny random model with larger weights, so that every layer's gradient is well above rounding."""
    torch.manual_seed(0)
    base, targets = MODELS[name]()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    # Some models' eager attention sums in fp32 whatever they compute in, and in packed rows in another order.
    base.config._attn_implementation = "sdpa" if name in ("llama", "modernbert") else "eager"
    model = AdaptedModel(base.eval(), config_of(variant, targets, dropout, saved), seed=0, precision=precision)
    if dtype is torch.float64:
        model.model.double()
    return model


def token_rows(count=60, seed=0, longest=24) -> TokenRows:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest, count)
    tokens = rng.integers(5, WORDS, lengths.sum()).astype(np.int32)
    return TokenRows(tokens, None, np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, 3, count), pad=0)


def jobs_of(model: AdaptedModel, sizes=(7, 20, 12), *, round=2, trained=None, states=None) -> list[Job]:
    """Clients with tensors of their own, some of them not zero where they begin at zero."""
    generator = torch.Generator().manual_seed(3)
    jobs, start = [], 0
    for number, size in enumerate(sizes):
        tensors = {
            key: parameter + 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            for key, parameter in model.read(model.keys).items()
        }
        keys = tuple(key for key in model.keys if trained is None or trained(key))
        state = states[number] if states else {}
        jobs.append(Job(f"c{number}", round, 4, 0, tensors, keys, keys[:2], state, np.arange(start, start + size)))
        start += size
    return jobs


def both(model, jobs, settings, *, pack=False, rows=None):
    """The clients one at a time, and all at once."""
    encoded = rows or token_rows()
    options = {"model": model, "task": TASK, "encoded": encoded, "settings": settings}
    return [sequential.train(job, **options) for job in jobs], cohort.train(jobs, **options, pack=pack)


def largest_difference(alone, together) -> float:
    assert len(alone) == len(together)
    differences = []
    for one, other in zip(alone, together, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert one.optimizer_state.keys() == other.optimizer_state.keys()
        assert one.metrics["steps"] == other.metrics["steps"]
        differences.append(abs(one.metrics["loss"] - other.metrics["loss"]))
        differences += [float((one.tensors[key] - other.tensors[key]).abs().max()) for key in one.tensors]
        differences += [
            float((one.optimizer_state[key] - other.optimizer_state[key]).abs().max()) for key in one.optimizer_state
        ]
    return max(differences)


def moved(jobs, results) -> float:
    """The smallest, over clients and trained tensors, of the largest change."""
    return min(
        float((result.tensors[key] - job.tensors[key]).abs().max())
        for job, result in zip(jobs, results, strict=True)
        for key in job.trained
    )


TWENTY = TrainingSettings(local_steps=20, batch_size=4, learning_rate=2e-3)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("variant", ["lora", "rslora", "vera"])
@pytest.mark.parametrize("name", MODELS)
def test_after_twenty_steps_of_adamw_in_float64(name, variant, pack):
    model = adapted(name, variant, dropout=0.1)
    jobs = jobs_of(model)
    alone, together = both(model, jobs, TWENTY, pack=pack)
    assert moved(jobs, alone) > 1e-3
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("variant", ["lora", "rslora", "vera"])
def test_after_twenty_steps_of_adamw_in_fp32(variant, pack):
    model = adapted("bert", variant, dtype=torch.float32, dropout=0.1)
    alone, together = both(model, jobs_of(model), TWENTY, pack=pack)
    assert largest_difference(alone, together) <= 1e-5


SETTINGS = {
    "epochs": TrainingSettings(local_epochs=2, batch_size=4),
    "epochs in large batches": TrainingSettings(local_epochs=1, batch_size=50),
    "accumulation": TrainingSettings(local_epochs=1, batch_size=3, gradient_accumulation_steps=3),
    "head at a rate of its own": TrainingSettings(local_steps=4, head_learning_rate=0.1),
    "schedule and decay": TrainingSettings(
        local_steps=5, schedule="cosine", warmup_fraction=0.3, weight_decay=0.1, batch_size=2
    ),
    "no clipping": TrainingSettings(local_steps=4, max_grad_norm=None),
    "clipping at a small norm": TrainingSettings(local_steps=4, max_grad_norm=0.01, optimizer="sgd"),
    "proximal": TrainingSettings(local_steps=4, proximal_mu=3.0, optimizer="sgd"),
    "momentum": TrainingSettings(local_steps=4, optimizer="sgd", momentum=0.9, weight_decay=0.01),
    "kept AdamW": TrainingSettings(local_steps=4, optimizer_state="keep"),
    "kept momentum": TrainingSettings(local_steps=4, optimizer="sgd", momentum=0.9, optimizer_state="keep"),
}


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
    first = jobs_of(model, (9,))[0]
    twin = Job("another", *[getattr(first, name) for name in first.__dataclass_fields__][1:])
    same = Job("c0", *[getattr(first, name) for name in first.__dataclass_fields__][1:])
    once = TrainingSettings(local_steps=1, batch_size=9, optimizer="sgd", max_grad_norm=None)  # all rows, any order
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
