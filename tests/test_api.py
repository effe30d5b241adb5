"""A federation from Python objects: the same strength as the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, VeraConfig
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import fedsa
from conftest import write_rows
from fedsa.cli import main
from fedsa.errors import ConfigError, DataError, ModelError, RunFolderError
from fedsa.recipe import TaskSettings

SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "training": {"local_steps": 2, "batch_size": 4, "learning_rate": 1e-2},
    "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
}


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
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
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
    task = TaskSettings(text_columns=["text"], label_column="label", labels=["bad", "good"])
    federation = fedsa.Federation.from_objects(str(tiny_model), config(), clients, task=task, **SETTINGS)
    assert federation.clients == ("client-1", "client-2")
    sizes = [len(part) for part in federation.rows.partition.clients["client-2"]]
    assert sizes == [40, 10, 10]
    own = [federation.rows.table[int(row)]["text"] for row in federation.rows.partition.clients["client-2"].test]
    assert own == clients[1]["test"]["text"][:]


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
    with pytest.raises(ModelError, match="use_dora"):
        make(str(tiny_model), LoraConfig(use_dora=True, target_modules=["query"]), tables, **SETTINGS)


def test_global_random_state_is_not_an_input(tiny_model: Path, tables: dict[str, Dataset], tmp_path: Path) -> None:
    for number in range(2):
        torch.manual_seed(number)
        fedsa.run(fedsa.Federation.from_objects(str(tiny_model), config(), tables, **SETTINGS), tmp_path / str(number))
    assert client_files(tmp_path / "0") == client_files(tmp_path / "1")
