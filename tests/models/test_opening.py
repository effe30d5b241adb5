"""A model's files may be a stranger's: only safetensors inside its folder are read, and no code of theirs runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from fedsa.errors import ModelError
from fedsa.models import empty_model, load_base, load_tokenizer
from fedsa.models.opening import no_pickle
from fedsa.recipe import AdapterSettings, ModelSettings
from fedsa.system.permissions import HOW_TO_ALLOW, VARIABLE

pytestmark = pytest.mark.run

CLASSES: dict[str, Any] = {"auto_model": "AutoModelForSequenceClassification", "options": {"num_labels": 2}}


def loaded(folder: Path) -> None:
    load_base(ModelSettings(path=str(folder)), seed=0, **CLASSES)


def planned(folder: Path) -> None:
    adapter = AdapterSettings(r=2, target_modules=["query"])
    empty_model(ModelSettings(path=str(folder)), adapter, task_type="SEQ_CLS", **CLASSES)


def refusal(call: Callable[[Path], None], folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        call(folder)
    text = str(caught.value)
    assert text.startswith(f"model.path = {str(folder)!r}")
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


class Witness:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


NAMED = {
    "pickle": "pytorch_model.bin",
    "pickle by another ending": "weights.pt",
    "outside": "../elsewhere.safetensors",
    "absolute": "/tmp/elsewhere.safetensors",  # noqa: S108
    "in a folder": "shards/model.safetensors",
    "no name": 3,
    "empty": "",
    "a list": ["pytorch_model.bin"],
}


@pytest.mark.parametrize("call", [loaded, planned])
@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("where", ["index", "config"])
def test_weights_are_safetensors_inside_the_folder(
    folder: Path, where: str, name: Any, call: Callable[[Path], None]
) -> None:
    witness = folder.parent / "was-run"
    if where == "index":
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    for file in ("pytorch_model.bin", "weights.pt"):
        (folder / file).write_bytes(pickle.dumps(Witness(witness)))
    text = refusal(call, folder)
    assert "no safetensors file inside the model's folder" in text
    assert "save_pretrained" in text
    assert not witness.exists()


def test_adapter_model_bin_that_a_config_names_is_refused(folder: Path) -> None:
    """It is the one pickle that transformers lets a config name."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    assert "'adapter_model.bin'" in refusal(loaded, folder)


@pytest.mark.parametrize("index", [[], "x", {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "a"}])
def test_an_index_that_is_none_is_refused(folder: Path, index: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in refusal(loaded, folder)


def test_a_folder_with_a_pickle_alone_says_what_to_do(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "has pytorch_model.bin and no model.safetensors" in refusal(loaded, folder)


def test_nothing_is_unpickled_while_a_model_is_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="would be opened by pickle"), no_pickle("a/model"):
        torch.load(tmp_path / "x.bin")
    assert torch.equal(torch.load(tmp_path / "x.bin")["a"], torch.ones(1))  # and as ever afterwards


# -- code that comes with a model ----------------------------------------------------------------------------------


@pytest.fixture
def with_code(folder: Path) -> Path:
    """A model that says that its classes are in a file beside it, which leaves a file behind when it is run."""
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M", "AutoTokenizer": ["own.T", None]}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of-their-own", "auto_map": own}))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(folder / 'was-run')!r}).touch()\n")
    return folder


def tokenized(folder: Path) -> None:
    load_tokenizer(ModelSettings(path=str(folder)))


@pytest.mark.parametrize("call", [loaded, planned, tokenized])
def test_code_of_a_model_is_not_run_and_nobody_is_asked(
    with_code: Path, call: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    if call is tokenized:
        config = json.loads((with_code / "tokenizer_config.json").read_text())
        config = {**config, "tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own.T", None]}}
        (with_code / "tokenizer_config.json").write_text(json.dumps(config))
    assert refusal(call, with_code).endswith(HOW_TO_ALLOW)
    assert not (with_code / "was-run").exists()


def test_code_of_a_model_runs_where_the_user_allows_it(with_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refusal(loaded, with_code)  # its classes are not there
    assert (with_code / "was-run").exists()


def test_a_kernel_that_a_config_names_on_the_hub_is_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    assert refusal(loaded, folder).endswith(HOW_TO_ALLOW)


# -- adapters, and configs that make no sense ----------------------------------------------------------------------


@pytest.mark.parametrize("call", [loaded, planned])
@pytest.mark.parametrize("whole", [False, True], ids=["the adapter alone", "beside a model"])
def test_an_adapter_as_a_model_is_refused_with_its_base(
    folder: Path, whole: bool, call: Callable[[Path], None]
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    if not whole:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    text = refusal(call, folder)
    assert "is an adapter" in text
    assert "('some/base')" in text
    assert "--merge" in text


VALUES: list[Any] = [0, -1, 10**9, 2**70, 1.5, "x", None, [], {}, True, [1], {"a": 1}]
KEYS = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "model_type"),
    *("max_position_embeddings", "layer_norm_eps", "hidden_act", "type_vocab_size", "pad_token_id", "architectures"),
    *("id2label", "dtype", "attn_implementation", "quantization_config", "transformers_weights", "auto_map"),
}


@pytest.mark.filterwarnings("ignore")
def test_a_config_that_makes_no_sense_is_told_in_a_line(folder: Path) -> None:
    """Of each setting and each value: it is loaded as it is, or refused; nothing else comes, and nothing large."""
    good, told = json.loads((folder / "config.json").read_text()), []
    for config in [[], "x", 3, None, *({**good, key: value} for key in sorted(KEYS) for value in VALUES)]:
        (folder / "config.json").write_text(json.dumps(config))
        try:
            loaded(folder)
        except ModelError as error:
            told.append(str(error))
    assert len(told) > 100
    assert all(len(text) < 700 and "\n" not in text for text in told)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x00"])
def test_a_config_that_is_no_json_is_told_in_a_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    for call in (loaded, planned):
        refusal(call, folder)


@pytest.mark.parametrize("kept", [0, 4, 7, 8, 100, -1])
def test_truncated_weights_are_told_in_a_line(folder: Path, kept: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:kept])
    for call in (loaded, planned):
        if not (call is planned and kept == -1):
            refusal(call, folder)


def test_a_good_folder_is_loaded(folder: Path) -> None:
    """In several files too, with an index."""
    model = BertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    assert (folder / "model.safetensors.index.json").exists()
    loaded(folder)
    planned(folder)
