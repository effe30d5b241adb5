"""All that is wrong with a recipe is told at once, and nothing is loaded for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsa.federation.base_models
from fedsa.federation import Examination, examine
from fedsa.recipe import apply_overrides
from support.tiny_rows import write_clients

pytestmark = pytest.mark.run


@pytest.fixture
def look(tiny_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Examination]:
    """Examine the tiny recipe with settings put in; loading weights would fail."""

    def refuse(*what: Any, **more: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(fedsa.federation.base_models, "load_base", refuse)

    def run(*settings: str, without: str = "", on_progress: Callable[[str], None] | None = None) -> Examination:
        data = apply_overrides(tiny_data, settings)
        data.pop(without, None)
        return examine(data, "recipe tiny", on_progress=on_progress)

    return run


@pytest.fixture
def sites(tiny_rows: Path, tmp_path: Path) -> Path:
    """A folder with one file per client."""
    write_clients(tiny_rows, lambda site: [tmp_path / "sites"])
    return tmp_path / "sites"


def told(found: Examination) -> list[tuple[str, str]]:
    return [(fault.part, fault.where) for fault in found.faults]


def test_nothing_is_found_where_nothing_is_wrong(look: Callable[..., Examination]) -> None:
    said: list[str] = []
    found = look(on_progress=said.append)
    assert found.faults == []
    assert said.count("loading the tokenizer") == 1
    assert (found.clients, found.rows, found.not_checked) == (3, 180, {})


def test_settings_model_and_rows_are_told_together(look: Callable[..., Examination]) -> None:
    found = look(
        "training.lr=1",
        "rounds=0",
        "compute.device='cuda:77'",
        'adapter.target_modules=["query", "valu"]',
        "data.partition.column=ward",
    )
    assert told(found) == [
        ("settings", "rounds"),
        ("settings", "training.lr"),
        ("compute", ""),
        ("data", ""),
        ("model", ""),
    ]
    device, column, layer = (fault.what for fault in found.faults[2:])
    assert "cuda:77" in device
    assert "'ward'" in column
    assert "no layer 'valu'" in layer


def test_what_depends_on_wrong_settings_is_named_and_not_looked_at(look: Callable[..., Examination]) -> None:
    found = look("task.label_colum=mood", "model.path=/no/such/model")
    assert told(found) == [("settings", "task.label_colum")]
    assert {name: why for name, why in found.not_checked.items() if "mistakes in task" in why}.keys() == {
        "data",
        "model",
    }
    assert told(look(without="model")) == [("settings", "model")]


def test_every_unreadable_file_of_a_client_is_named(look: Callable[..., Examination], sites: Path) -> None:
    (sites / "empty.csv").write_bytes(b"")
    (sites / "other.csv").write_text("words,label\nfine,good\n", encoding="utf-8")
    found = look(f"data.path={sites.as_posix()}", 'data.partition={kind="files"}')
    assert told(found) == [("data", "empty.csv"), ("data", "other.csv")]
    assert "'text'" in found.faults[1].what
    assert found.clients is None
    with (sites / "site 0.csv").open("a", encoding="utf-8") as file:
        file.write("the film was fine,\n")  # a row without a label, told although other files cannot be read
    found = look(f"data.path={sites.as_posix()}", 'data.partition={kind="files"}')
    assert told(found) == [("data", "empty.csv"), ("data", "other.csv"), ("data", "")]
    assert "site 0.csv, line" in found.faults[2].what


@pytest.mark.parametrize(
    ("settings", "part", "text"),
    [
        pytest.param(
            ["algorithm=flora", "adapter.variant=vera"], "settings", "flora does not go with", id="method, variant"
        ),
        pytest.param(["holdout_clients=0.9"], "data", "leaves none for the federation", id="held out"),
        pytest.param(["adapter.ranks={nobody=1}"], "data", "no client 'nobody'", id="ranks"),
        pytest.param(
            ["personal_state=reconstruct", "algorithm=fedit"], "settings", "keeps nothing at the client", id="personal"
        ),
        pytest.param(["data.path=/no/such/rows.csv"], "data", "no file or folder", id="no rows"),
        pytest.param(
            [
                'adapter.target_modules=["word_embeddings"]',
                "training.trainer=cohort",
            ],
            "model",
            "training.trainer = 'cohort'",
            id="trainer",
        ),
    ],
)
def test_what_a_run_refuses_is_refused(
    look: Callable[..., Examination], settings: list[str], part: str, text: str
) -> None:
    found = look(*settings)
    assert [fault.part for fault in found.faults if text in fault.what] == [part], found.faults


def test_a_model_without_a_tokenizer_is_refused(
    look: Callable[..., Examination], tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model").mkdir(exist_ok=True)
        shutil.copy(tiny_model / name, tmp_path / "model" / name)
    found = look(f"model.path={(tmp_path / 'model').as_posix()}")
    assert told(found) == [("model", "")]
    assert "tokenizer" in found.faults[0].what


def test_the_command_tells_all_and_its_exit_code_says_whether_anything_is_wrong(
    fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path]
) -> None:
    path = recipe_file()
    outcome = fedsa_command("check", path)
    assert (outcome.code, outcome.error) == (0, "")
    assert "nothing wrong was found: 3 clients, 180 rows" in outcome.out
    outcome = fedsa_command("check", path, "--set", "roundz=3", "--set", "data.partition.column=ward")
    assert outcome.code == 2
    assert "2 mistakes" in outcome.out
    assert "did you mean 'rounds'" in outcome.out
    outcome = fedsa_command("check", path, "--set", "roundz=3", "--json")
    assert outcome.code == 2
    found = json.loads(outcome.out)
    assert set(found) == {"recipe", "ok", "mistakes", "notes", "not_checked", "clients", "rows"}
    assert (found["ok"], found["clients"]) == (False, 3)
    (mistake,) = found["mistakes"]
    assert set(mistake) == {"part", "where", "what"}
    assert (mistake["part"], mistake["where"]) == ("settings", "roundz")
