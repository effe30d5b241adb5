"""A federation from Python objects: the same strength as the command line."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, VeraConfig
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import fedsa
from fedsa.cli import main
from fedsa.errors import ConfigError, DataError, ModelError, RunFolderError, UserError
from fedsa.models import AdaptedModel
from fedsa.recipe import OBJECTS, ClassificationSettings, dump_recipe
from fedsa.runs.export import export, personal_state
from fedsa.store import RunFolder
from support.tiny_rows import write_rows

pytestmark = pytest.mark.run

SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "training": {"local_steps": 2, "batch_size": 4, "learning_rate": 1e-2},
    "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
}


def attention_by_script(patch: pytest.MonkeyPatch, fastest: str) -> None:
    """Let measuring find an attention the fastest, whatever a clock says."""

    def seconds(model: AdaptedModel, *_: object, **__: object) -> float:
        return 1.0 if model.attention == fastest else 2.0

    patch.setattr("fedsa.client.training.autotune._seconds_of_a_step", seconds)


@pytest.fixture(autouse=True)
def _eager_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    attention_by_script(monkeypatch, "eager")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("objects")
    found = {}
    for number, name in enumerate(("north", "south")):
        write_rows(folder / f"{name}.csv", 60, seed=number)
        found[name] = Dataset.from_csv(str(folder / f"{name}.csv"), cache_dir=str(folder / "cache"))
    return found


def config() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"])


def loaded(tiny_model: Path, **options: Any) -> Any:
    """Return a model that no name gives: its base and its head are changed in memory."""
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


def logits(model: torch.nn.Module, tokenizer: Any) -> torch.Tensor:
    model.eval()
    tokenizer = copy.deepcopy(tokenizer)  # it keeps how it was called
    with torch.inference_mode():
        return model(**tokenizer(["the film was great", "a dull product"], return_tensors="pt", padding=True)).logits


def client_files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("round-*.safetensors"))}


def test_run_from_objects_exports_what_peft_loads(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    federation = fedsa.Federation.from_objects(str(tiny_model), config(), tables, algorithm="fedsa", **SETTINGS)
    result = fedsa.run(federation, tmp_path / "run")
    assert result.report.is_file()
    assert result.summary["clients"] == 2
    assert list(result.summary["per_client"]) == ["north", "south"]
    (folder,) = result.export(tmp_path / "north", client="north")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    PeftModel.from_pretrained(base, folder)
    assert any("lora_B" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_loaded_model_and_name_give_the_same_bytes(
    tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path
) -> None:
    by_name = fedsa.Federation.from_objects(str(tiny_model), config(), tables, **SETTINGS)
    fedsa.run(by_name, tmp_path / "name")
    kernel = by_name.recipe.model.attn_implementation
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2, attn_implementation=kernel)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    by_object = fedsa.Federation.from_objects(model, config(), tables, tokenizer=tokenizer, **SETTINGS)
    fedsa.run(by_object, tmp_path / "object")
    assert client_files(tmp_path / "name") == client_files(tmp_path / "object")


def test_list_of_clients_and_splits_of_their_own(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    clients = [
        DatasetDict(
            train=table.select(range(40)), validation=table.select(range(40, 50)), test=table.select(range(50, 60))
        )
        for table in tables.values()
    ]
    task = ClassificationSettings(text_columns=["text"], label_column="label", labels=["bad", "good"])
    federation = fedsa.Federation.from_objects(str(tiny_model), config(), clients, task=task, **SETTINGS)
    assert federation.clients == ("client-1", "client-2")
    for client, own in zip(federation.clients, clients, strict=True):
        parts = federation.rows.partition.clients[client]
        assert [len(part) for part in parts] == [40, 10, 10]
        for split, part in zip(("train", "validation", "test"), parts, strict=True):
            assert federation.rows.table[part]["text"][:] == own[split]["text"][:], (client, split)


def test_interrupted_run_of_objects_resumes_to_the_same_bytes(
    tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path
) -> None:
    def make() -> fedsa.Federation:
        return fedsa.Federation.from_objects(str(tiny_model), config(), tables, **SETTINGS)

    class Stop(fedsa.Callback):
        def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
            if round == 1:
                raise KeyboardInterrupt

    fedsa.run(make(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedsa.run(make(), tmp_path / "halves", callbacks=[Stop()])
    result = fedsa.resume(make(), tmp_path / "halves")
    assert result.summary["interruptions"] == 1
    assert client_files(tmp_path / "halves") == client_files(tmp_path / "whole")


def test_a_run_of_objects_goes_on_with_what_was_measured_first(
    tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> fedsa.Federation:
        return fedsa.Federation.from_objects(str(tiny_model), config(), tables, **SETTINGS)

    class Stop(fedsa.Callback):
        def on_round_end(self, round: int, lines: Any, validation: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedsa.run(make(), tmp_path / "run", callbacks=[Stop()])
    attention_by_script(monkeypatch, "sdpa")
    monkeypatch.setattr("fedsa.client.training.autotune._budget", lambda *_: 1.0)  # memory for one client only
    other = make()
    assert (other.recipe.model.attn_implementation, other.recipe.training.cohort_size) == ("sdpa", 1)
    result = fedsa.resume(other, tmp_path / "run")
    assert result.summary["interruptions"] == 1
    assert other.model.attention == "eager"
    fedsa.resume(make(), tmp_path / "run")  # it is complete

    def with_training(**more: Any) -> fedsa.Federation:
        given = {**SETTINGS, "training": {**SETTINGS["training"], **more}}
        return fedsa.Federation.from_objects(str(tiny_model), config(), tables, **given)

    fedsa.resume(with_training(cohort_size=1), tmp_path / "run")  # a machine's own setting
    with pytest.raises(RunFolderError, match=r"other settings \(training.weight_decay"):  # an agreed one
        fedsa.resume(with_training(weight_decay=0.5), tmp_path / "run")


def test_resume_refuses_other_settings_and_the_command_line_says_why(
    tiny_model: Path,
    tables: dict[str, Dataset],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fedsa.run(fedsa.Federation.from_objects(str(tiny_model), config(), tables, **SETTINGS), tmp_path / "run")
    other = fedsa.Federation.from_objects(str(tiny_model), config(), tables, algorithm="fedit", **SETTINGS)
    with pytest.raises(RunFolderError, match="other settings"):
        fedsa.resume(other, tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["fedsa", "resume", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "started from Python objects" in capsys.readouterr().err


def test_vera_from_objects(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    vera = VeraConfig(r=4, target_modules=["query", "value"])
    federation = fedsa.Federation.from_objects(str(tiny_model), vera, tables, **SETTINGS)
    result = fedsa.run(federation, tmp_path / "run")
    assert result.summary["variant"] == "vera"
    assert [entry["factor"] for entry in result.summary["sharing_plan"] if entry["sent"]] == ["lambda_d"]


TWO = {"target_modules": ["query", "value"]}
OTHERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "dora": (LoraConfig, {"r": 2, "use_dora": True, "use_rslora": True, **TWO}, {"variant": "dora", "r": 2}),
    "pissa": (
        LoraConfig,
        {
            "r": 2,
            "use_rslora": True,
            "init_lora_weights": "pissa",
            "rank_pattern": {"value": 3},
            "alpha_pattern": {"value": 5},
            "lora_dropout": 0.0,
            **TWO,
        },
        {"variant": "pissa", "r": 2, "dropout": 0.0, "lora_alpha": 8},
    ),
    "olora": (
        LoraConfig,
        {"r": 2, "init_lora_weights": "olora", "rank_pattern": {"value": 3}, **TWO},
        {"variant": "olora", "dropout": 0.0},
    ),
    "lora_xs": (
        LoraConfig,
        {"r": 2, "use_rslora": True, "init_lora_weights": "lora_xs", "rank_pattern": {"value": 3}, **TWO},
        {"variant": "lora_xs", "r": 2, "dropout": 0.0, "lora_alpha": 8},
    ),
    "loha": (LoHaConfig, {"r": 2, "alpha": 4, **TWO}, {"variant": "loha", "r": 2, "lora_alpha": 4}),
    "ia3": (
        IA3Config,
        {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]},
        {"variant": "ia3", "r": 0, "feedforward_modules": ["output.dense"]},
    ),
    "ia3 by PEFT": (
        IA3Config,
        {},
        {
            "variant": "ia3",
            "target_modules": ["key", "output.dense", "value"],
            "feedforward_modules": ["output.dense"],
        },
    ),
}


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA")  # PEFT's, where the config is made
@pytest.mark.parametrize(("kind", "options", "expected"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("merge", [False, True])
def test_other_adapters_from_objects(
    tiny_model: Path,
    tables: dict[str, Dataset],
    tmp_path: Path,
    kind: Any,
    options: dict[str, Any],
    expected: dict[str, Any],
    merge: bool,
) -> None:
    """What is exported fits the base as it was, whatever the config sets."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    settings = {**SETTINGS, "tokenizer": tokenizer, "algorithm": "local"}
    federation = fedsa.Federation.from_objects(loaded(tiny_model), kind(**options), tables, **settings)
    own = federation.recipe.adapter.model_dump()
    assert {name: own[name] for name in expected} == expected
    result = fedsa.run(federation, tmp_path / "run")
    (folder,) = result.export(tmp_path / "north", client="north", round="final", merge=merge)
    again = {"clients": ["north"], "round": "final", "base": loaded(tiny_model), "tokenizer": tokenizer, "merge": merge}
    (other,) = export(result.path, tmp_path / "again", **again)
    for path in folder.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes()
    classifier = AutoModelForSequenceClassification
    model = classifier.from_pretrained(folder) if merge else PeftModel.from_pretrained(loaded(tiny_model), str(folder))
    batch = tokenizer(["the film was great", "a dull product today"], return_tensors="pt", padding=True)
    run = RunFolder.open(result.path)
    federation.model.write(personal_state(run, federation.algorithm, "north", SETTINGS["rounds"]))
    with torch.inference_mode():
        inside = federation.model.model.eval()(**batch).logits
        torch.testing.assert_close(model.eval()(**batch).logits, inside, atol=1e-5, rtol=0)
        assert not torch.allclose(loaded(tiny_model).eval()(**batch).logits, inside, atol=1e-4)


def test_mistakes_in_objects(tiny_model: Path, tables: dict[str, Dataset]) -> None:
    make = fedsa.Federation.from_objects
    with pytest.raises(ConfigError, match="2 mistakes"):
        make(str(tiny_model), config(), tables, rounds=0, algorithm="fedsaa")
    with pytest.raises(DataError, match="no clients"):
        make(str(tiny_model), config(), {}, **SETTINGS)
    with pytest.raises(DataError, match="every client one Dataset"):
        make(str(tiny_model), config(), {"a": tables["north"], "b": DatasetDict(train=tables["north"])}, **SETTINGS)
    with pytest.raises(DataError, match="b has no 'test' rows"):
        make(str(tiny_model), config(), {"b": {"train": tables["north"], "validation": tables["south"]}}, **SETTINGS)
    with pytest.raises(DataError, match="clients without rows: empty"):
        make(str(tiny_model), config(), {"full": tables["north"], "empty": tables["north"].select([])}, **SETTINGS)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_model, num_labels=3))
    with pytest.raises(DataError, match="give tokenizer"):
        make(model, config(), tables, **SETTINGS)
    with pytest.raises(DataError, match="3 classes"):
        make(model, config(), tables, tokenizer=AutoTokenizer.from_pretrained(tiny_model), **SETTINGS)
    with pytest.raises(ModelError, match="rank_dropout"):
        make(str(tiny_model), LoHaConfig(rank_dropout=0.1, target_modules=["query"]), tables, **SETTINGS)
    with pytest.raises(ConfigError, match=r"fedsa does not go with adapter\.variant = 'ia3'"):
        make(str(tiny_model), IA3Config(target_modules=["key"], feedforward_modules=[]), tables, **SETTINGS)


def test_global_random_state_is_not_an_input(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    for number in range(2):
        torch.manual_seed(number)
        fedsa.run(fedsa.Federation.from_objects(str(tiny_model), config(), tables, **SETTINGS), tmp_path / str(number))
    assert client_files(tmp_path / "0") == client_files(tmp_path / "1")


# -- loaded models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def of_loaded(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> tuple[fedsa.Federation, fedsa.RunResult]:
    federation = fedsa.Federation.from_objects(
        loaded(tiny_model), config(), tables, tokenizer=AutoTokenizer.from_pretrained(tiny_model), **SETTINGS
    )
    return federation, fedsa.run(federation, tmp_path / "run")


def inside(federation: fedsa.Federation, result: fedsa.RunResult, client: str) -> torch.Tensor:
    """Return the logits of the federation's own model with what the client would use written into it."""
    state = personal_state(RunFolder.open(result.path), federation.algorithm, client, result.summary["chosen_round"])
    federation.model.write(state)
    return logits(federation.model.model, federation.tokenizer)


def test_result_of_a_loaded_model_exports_by_itself(
    of_loaded: tuple[fedsa.Federation, fedsa.RunResult], tiny_model: Path, tmp_path: Path
) -> None:
    federation, result = of_loaded
    assert federation.recipe.model.path == result.summary["model"] == OBJECTS
    merged = result.export(tmp_path / "merged", merge=True)
    adapters = result.export(tmp_path / "adapters")
    for client, folder, whole in zip(federation.clients, adapters, merged, strict=True):
        expected = inside(federation, result, client)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        by_peft = logits(PeftModel.from_pretrained(loaded(tiny_model), folder), tokenizer)
        torch.testing.assert_close(by_peft, expected, atol=1e-5, rtol=0)
        alone = logits(AutoModelForSequenceClassification.from_pretrained(whole), AutoTokenizer.from_pretrained(whole))
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert f"Base model: a local folder named '{tiny_model.name}'" in card
        assert str(tiny_model) not in card


def test_run_of_a_loaded_model_is_exported_later_with_its_base(
    of_loaded: tuple[fedsa.Federation, fedsa.RunResult], tiny_model: Path, tmp_path: Path
) -> None:
    federation, result = of_loaded
    base, tokenizer = loaded(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for missing in ({}, {"base": base}, {"tokenizer": tokenizer}):
        with pytest.raises(UserError, match=r"loaded in Python: use result.export .* base=..., tokenizer=..."):
            export(result.path, tmp_path / "to", **missing)
    assert not (tmp_path / "to").exists()
    before = logits(base, tokenizer)
    for number, source in enumerate((base, lambda: loaded(tiny_model))):
        for merge in (False, True):
            to = tmp_path / f"{number}-{merge}"
            later = export(result.path, to / "later", merge=merge, base=source, tokenizer=tokenizer)
            now = result.export(to / "now", merge=merge)
            for one, other in zip(later, now, strict=True):
                assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
                for path in one.iterdir():
                    assert path.read_text("latin-1") == (other / path.name).read_text("latin-1"), path
    assert torch.equal(logits(base, tokenizer), before)  # the user's own model is as it was
    with pytest.raises(ModelError, match="an adapter already"):
        export(result.path, tmp_path / "to", base=federation.model.model, tokenizer=tokenizer)
    wrong = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_model, num_labels=3))
    with pytest.raises(RunFolderError, match=r"the base model's weights are not those .* put the model back"):
        export(result.path, tmp_path / "to", base=wrong, tokenizer=tokenizer)
    assert not (tmp_path / "to").exists()


def test_model_without_a_name_is_exported(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_model, num_labels=2))
    model.config._name_or_path = model.name_or_path = ""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    federation = fedsa.Federation.from_objects(model, config(), tables, tokenizer=tokenizer, **SETTINGS)
    result = fedsa.run(federation, tmp_path / "run")
    (folder,) = result.export(tmp_path / "north", client="north")
    assert "Base model: a model that was loaded in Python" in (folder / "README.md").read_text(encoding="utf-8")
    (whole,) = result.export(tmp_path / "whole", client="south", merge=True)
    torch.testing.assert_close(
        logits(AutoModelForSequenceClassification.from_pretrained(whole), tokenizer),
        inside(federation, result, "south"),
        atol=1e-5,
        rtol=0,
    )


def test_tokenizer_beside_a_name_is_exported(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["umlaut"])
    federation = fedsa.Federation.from_objects(str(tiny_model), config(), tables, tokenizer=tokenizer, **SETTINGS)
    result = fedsa.run(federation, tmp_path / "run")
    (live,) = result.export(tmp_path / "live", client="north")
    (given,) = export(result.path, tmp_path / "given", clients=["north"], tokenizer=tokenizer)
    for folder in (live, given):
        assert "umlaut" in AutoTokenizer.from_pretrained(folder).get_vocab()


def test_command_line_says_what_a_loaded_model_needs(
    of_loaded: tuple[fedsa.Federation, fedsa.RunResult], fedsa_command: Any, tmp_path: Path
) -> None:
    _, result = of_loaded
    outcome = fedsa_command("export", result.path, "--all", "--to", tmp_path / "to")
    assert outcome.code == 2
    assert "loaded in Python" in outcome.error
    assert not (tmp_path / "to").exists()
    assert fedsa_command("run", result.path / "recipe.toml", "--out", tmp_path / "again").code == 2


def test_layers_outside_a_loaded_base_are_trained_and_exported(
    tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path
) -> None:
    """DeBERTa's pooler lies beside its base, and most checkpoints lack it."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=len(tokenizer), **shape))
    chosen = LoraConfig(r=2, target_modules=["query_proj"])
    federation = fedsa.Federation.from_objects(model, chosen, tables, tokenizer=tokenizer, **SETTINGS)
    assert "pooler.dense.weight" in {key.module for key in federation.model.keys if key.factor.value == "head"}
    (folder,) = fedsa.run(federation, tmp_path / "run").export(tmp_path / "north", client="north")
    assert any("pooler" in name for name in load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_loaded_model_keeps_its_attention(
    tiny_model: Path, tables: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    attention_by_script(monkeypatch, "sdpa" if kernel == "eager" else "eager")
    model, tokenizer = loaded(tiny_model, attn_implementation=kernel), AutoTokenizer.from_pretrained(tiny_model)
    federation = fedsa.Federation.from_objects(model, config(), tables, tokenizer=tokenizer, **SETTINGS)
    assert federation.model.attention == federation.recipe.model.attn_implementation == kernel


@pytest.mark.parametrize("adapter", [config(), VeraConfig(r=4, target_modules=["query"])], ids=["lora", "vera"])
def test_a_loaded_model_in_bf16_is_merged_in_fp32(
    tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path, adapter: Any
) -> None:
    settings = {**SETTINGS, "compute": {**SETTINGS["compute"], "precision": "bf16"}}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    federation = fedsa.Federation.from_objects(loaded(tiny_model), adapter, tables, tokenizer=tokenizer, **settings)
    result = fedsa.run(federation, tmp_path / "run")
    (whole,) = result.export(tmp_path / "whole", client="north", merge=True)
    (folder,) = result.export(tmp_path / "north", client="north")
    merged, parts = (load_file(next(path.glob("*.safetensors"))) for path in (whole, folder))
    assert {value.dtype for value in (*merged.values(), *parts.values())} == {torch.float32}
    rounded = loaded(tiny_model).bfloat16().float()
    expected = PeftModel.from_pretrained(rounded, folder).merge_and_unload().state_dict()
    for name, value in merged.items():
        torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-6)
    assert torch.bfloat16 in {parameter.dtype for parameter in federation.model.model.parameters()}


def test_half_precision_is_cast_to_fp32(tiny_model: Path, tables: dict[str, Dataset]) -> None:
    model, tokenizer = loaded(tiny_model, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(tiny_model)
    federation = fedsa.Federation.from_objects(model, config(), tables, tokenizer=tokenizer, **SETTINGS)
    assert {parameter.dtype for parameter in federation.model.model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in federation.model.initial.values()} == {torch.float32}


@pytest.mark.parametrize("adapter", [config(), VeraConfig(r=4, target_modules=["query"])], ids=["lora", "vera"])
def test_model_serves_one_federation(tiny_model: Path, tables: dict[str, Dataset], adapter: Any) -> None:
    make, tokenizer = fedsa.Federation.from_objects, AutoTokenizer.from_pretrained(tiny_model)
    model = loaded(tiny_model)
    first = make(model, adapter, tables, tokenizer=tokenizer, **SETTINGS)
    with pytest.raises(ModelError, match="an adapter already: load it afresh for each federation"):
        make(model, adapter, tables, tokenizer=tokenizer, **SETTINGS)
    del model.peft_config
    with pytest.raises(ModelError, match="an adapter already"):
        make(model, adapter, tables, tokenizer=tokenizer, **SETTINGS)
    with pytest.raises(ModelError, match="an adapter already"):
        make(first.model.model, adapter, tables, tokenizer=tokenizer, **SETTINGS)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_that_the_objects_rule_out(tiny_model: Path, tables: dict[str, Dataset]) -> None:
    make, name = fedsa.Federation.from_objects, str(tiny_model)
    with pytest.raises(ConfigError) as caught:
        make({"pathh": name}, config(), tables, rounds=0, data={"path": "x"}, adapter={"r": 4})
    message = str(caught.value)
    assert message.startswith("5 mistakes in Federation.from_objects")
    assert "data: comes from the objects; give `partition=`" in message
    assert "adapter: comes from the objects; give it in peft_config" in message
    assert "model.path: is missing" in message
    with pytest.raises(ConfigError, match=r"data\.partition: .*'iid'"):
        make(name, config(), tables, partition="iid", **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="task: "):
        make(name, config(), tables, task="sentiment", **SETTINGS)  # type: ignore[arg-type]


def test_settings_of_model_and_partition_are_used(tiny_model: Path, tables: dict[str, Dataset]) -> None:
    saved = LoraConfig(r=2, target_modules=["query"], modules_to_save=["pooler"])
    federation = fedsa.Federation.from_objects(
        {"path": str(tiny_model), "attn_implementation": "eager"},
        saved,
        tables,
        partition={"max_examples": 20, "test_fraction": 0.5},
        **SETTINGS,
    )
    assert federation.model.model.config._attn_implementation == "eager"
    assert federation.recipe.model.attn_implementation == "eager"
    assert federation.recipe.adapter.modules_to_save == ["pooler"]
    assert [len(parts.test) for parts in federation.rows.partition.clients.values()] == [10, 10]
    assert 'kind = "files"' in dump_recipe(federation.recipe)


@pytest.mark.parametrize(
    ("partition", "text"), [({"kind": "iid", "clients": 2}, "the clients bring their own rows"), (5, "partition")]
)
def test_the_split_of_objects_is_not_dealt_anew(
    tiny_model: Path, tables: dict[str, Dataset], partition: Any, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        fedsa.Federation.from_objects(str(tiny_model), config(), tables, partition=partition, **SETTINGS)


def test_train_and_test_alone_are_enough(tiny_model: Path, tables: dict[str, Dataset]) -> None:
    given = {}
    for name, table in tables.items():
        test = range(0, len(table), 4)
        train = [row for row in range(len(table)) if row % 4]
        given[name] = DatasetDict(train=table.select(train), test=table.select(test))
    federation = fedsa.Federation.from_objects(str(tiny_model), config(), given, **SETTINGS)
    for name, rows in federation.rows.partition.clients.items():
        assert len(rows.test) == len(given[name]["test"])
        assert len(rows.train) + len(rows.validation) == len(given[name]["train"])
        assert len(rows.validation) > 0
        assert not {*rows.train.tolist()} & {*rows.validation.tolist()}
    assert [note for note in federation.notes if "no validation rows" in note]
    one = next(iter(given))
    given[one]["validation"] = given[one]["test"]
    with pytest.raises(DataError, match="has no 'validation' rows: give every client train, validation and test rows"):
        fedsa.Federation.from_objects(str(tiny_model), config(), given, **SETTINGS)


@pytest.mark.parametrize(
    ("asked", "terminal", "shown"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_progress_of_a_run(
    tiny_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: bool | None,
    terminal: bool,
    shown: bool,
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda console: terminal))
    federation = fedsa.Federation.from_recipe(tiny_recipe("rounds=1"))
    federation = dataclasses.replace(federation, notes=("A \x1b[31mnote.",))
    fedsa.run(federation, tmp_path / "run", progress=asked)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("round 1  train loss" in err) is shown
    assert ("note: A \\x1b[31mnote." in err) is shown
