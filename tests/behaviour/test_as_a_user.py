"""The user: folders of sites' CSVs as they come, looked at, trained on, exported, and loaded by a plain pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from transformers import AutoModel, AutoTokenizer, pipeline

import fedsa
from support.tiny_rows import FILLER, WORDS

pytestmark = pytest.mark.run

CLASSES = {"good": WORDS["good"], "bad": WORDS["bad"], "so so": FILLER[5:9]}


@pytest.fixture(scope="module")
def encoder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model folder without a head."""
    folder = tmp_path_factory.mktemp("user") / "encoder"
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def rows(count: int) -> list[tuple[str, str]]:
    labels = list(CLASSES)
    return [
        (f"{FILLER[number % 10]} {CLASSES[label][number // 3 % 4]} {FILLER[number // 7 % 10]} {number}", label)
        for number in range(count)
        for label in [labels[number % 3]]
    ]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three usable files and one that is too small, each with faults of its own."""
    folder = tmp_path_factory.mktemp("user-data") / "sites"
    folder.mkdir()
    north, south, west = rows(60), rows(66)[6:], rows(72)[12:]
    north[4] = north[1]  # the same row twice
    lines = ["text;label", *(f"{text} café;{label}" for text, label in north)]
    (folder / "north.csv").write_bytes("\n".join(lines).encode("latin-1"))
    west[3], west[7] = ("None", west[3][1]), ("n/a", west[7][1])  # texts, not empty cells
    west += [("", "good")]  # an empty cell
    (folder / "west.csv").write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in west)]) + "\n")
    south[2] = (south[2][0], south[2][1].upper())
    south[5] = (south[5][0], f"{south[5][1]} ")
    (folder / "south.csv").write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in south)]) + "\n")
    (folder / "tiny.csv").write_text("text,label\nfine,good\nsad,bad\n")
    return folder


@pytest.fixture
def recipe(sites: Path, encoder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(f"""
algorithm = "fedsa"
rounds = 2
model.path = "{encoder}"
adapter = {{r = 2, target_modules = ["query", "value"]}}
task = {{text_columns = ["text"], label_column = "label"}}
data = {{path = "{sites}", drop_empty = true, partition = {{kind = "files", leave_out_small = true}}}}
training = {{local_steps = 4, batch_size = 8, learning_rate = 0.02}}
compute = {{device = "cpu", threads = 1, precision = "fp32"}}
""")
    return path


def test_from_dirty_files_to_a_pipeline(
    recipe: Path, sites: Path, tmp_path: Path, fedsa_command: Callable[..., Any]
) -> None:
    refused = fedsa_command("data", recipe, "--set", "data.drop_empty=false")
    assert refused.code == 2
    assert "west.csv, line 62" in refused.err

    seen = fedsa_command("data", recipe)
    assert seen.code == 0, seen
    for told in (
        "north.csv: cells are separated by semicolons (found by looking",
        "north.csv: not UTF-8, so read as cp1252",
        "1 of 183 train rows have an empty cell and are left out",
        "Labels that differ by blanks or capitals alone are classes of their own: 'SO SO'",
        "Clients left out (data.partition.leave_out_small): tiny (2 rows",
        "Equal rows (in 'text' and the label): 1 of 180 rows repeat another one of their client",
        "18 of 36 test rows have the text of a row that is trained on",
        "those are rows of other clients",
    ):
        assert told in seen.out

    # the labels are mended, as the note says, by the user
    text = (sites / "south.csv").read_text()
    mended = re.sub(r",(.*)$", lambda found: f",{found[1].strip().lower()}", text, flags=re.MULTILINE)
    (sites / "south.csv").write_text(mended)
    run = fedsa_command("run", recipe, "--out", tmp_path / "run")
    assert run.code == 0, run
    assert "round 2" in run.out

    exported = fedsa_command("export", tmp_path / "run", "--all", "--to", tmp_path / "adapters")
    folders = [Path(line) for line in exported.out.splitlines()]
    assert [folder.name[6:] for folder in folders] == ["north", "south", "west"]
    said = pipeline("text-classification", model=str(folders[1]), top_k=None)(["the film was great", "a dull product"])
    assert [{entry["label"] for entry in each} for each in said] == [set(CLASSES)] * 2
    card = (folders[1] / "README.md").read_text()
    assert "The text of column `text`" in card
    assert str(sites) not in card


def test_the_same_from_python(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clients = {}
    for name, count in (("north", 60), ("south", 48)):
        table = Dataset.from_dict(dict(zip(("text", "label"), map(list, zip(*rows(count), strict=True)), strict=True)))
        clients[name] = DatasetDict(train=table.select(range(12, count)), test=table.select(range(12)))
    federation = fedsa.Federation.from_objects(
        str(encoder),
        LoraConfig(r=2, target_modules=["query", "value"]),
        clients,
        rounds=1,
        task={"label_column": "label"},
        compute={"device": "cpu", "threads": 1, "precision": "fp32"},
    )
    assert any("no validation rows" in note for note in federation.notes)
    capsys.readouterr()
    result = fedsa.run(federation, tmp_path / "run", progress=True)
    assert "round 1  train loss" in capsys.readouterr().err
    (folder,) = result.export(tmp_path / "north", client="north")
    (said,) = pipeline("text-classification", model=str(folder))(["the film was great"])
    assert said["label"] in CLASSES
