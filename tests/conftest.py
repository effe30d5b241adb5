"""A tiny random encoder and tiny files, so that whole federations run in a second; thread counts are fixed."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from fedsa.recipe import Recipe, parse_recipe
from fedsa.system.permissions import VARIABLE
from support.ends import ends  # noqa: F401  # for every test
from support.tiny_rows import FILLER, WORDS, write_rows

if TYPE_CHECKING:
    from support.tiny_runs import TinyRun


# Fixtures that make a run.
RUNS = {"tiny_run", "finished_run", "finished", "trained", "stopped", "federation_of", "run_scripted", "watched_run"}


def pytest_configure() -> None:
    """Let tests' processes hear Ctrl-C, which what a shell runs in the background ignores; time no tried case."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
    settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what makes a run, so that the quick tier can leave it out."""
    for item in items:
        if RUNS & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.run)


def pytest_collection_finish() -> None:
    """Search for garbage seldom, and never again in what is there for good (libraries, thousands of tests)."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of width 16 with a word-level vocabulary, in the hub's own format."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *WORDS["bad"], *WORDS["good"]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        id2label=dict(enumerate(WORDS)),
        label2id={name: number for number, name in enumerate(WORDS)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 rows of three sites."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    write_rows(path, 180, seed=0)
    return path


@pytest.fixture(scope="session")
def tiny_data(tiny_model: Path, tiny_rows: Path) -> dict[str, Any]:
    """Raw recipe data of a federation of three clients that trains in a second."""
    return {
        "rounds": 2,
        "model": {"path": str(tiny_model), "attn_implementation": "eager"},  # not by measurement
        "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]},
        "data": {"path": str(tiny_rows), "partition": {"kind": "column", "column": "site"}},
        "training": {"local_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
        "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
    }


@pytest.fixture(scope="session")
def tiny_recipe(tiny_data: dict[str, Any]) -> Callable[..., Recipe]:
    """Make the tiny recipe with ``key=value`` settings put in."""
    from fedsa.recipe import apply_overrides

    def make(*overrides: str) -> Recipe:
        data = apply_overrides(tiny_data, overrides)
        for name in {"vera": ["lora_alpha"], "ia3": ["lora_alpha", "r"]}.get(data["adapter"].get("variant"), []):
            data["adapter"].pop(name, None)
        return parse_recipe(data)

    return make


@pytest.fixture(scope="session")
def tiny_model_without_dropout(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without dropout, so that a plain computation can repeat its training.

    Its weights are larger, so that the gradients of all layers are well above rounding.
    """
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("no-dropout") / "tiny-bert"
    shutil.copytree(tiny_model, folder)
    config = BertConfig.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3
    )
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyRun]:
    """Run the tiny recipe with ``key=value`` settings put in, once for each list of settings; change nothing in it."""
    from fedsa.engines.simulator import simulate
    from fedsa.federation import Federation
    from fedsa.recipe import dump_recipe
    from fedsa.store import RunFolder
    from support.tiny_runs import TinyRun

    @functools.cache
    def run(*overrides: str) -> TinyRun:
        federation = Federation.from_recipe(tiny_recipe(*overrides))
        path = tmp_path_factory.mktemp("tiny-run") / "run"
        with RunFolder.create(path, dump_recipe(federation.recipe)).locked() as folder:
            summary = simulate(federation, folder)
        return TinyRun(federation, RunFolder.open(path), summary)

    return run


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What stands on standard error beside the lines that tell what is being done (they end in three dots)."""
        return "\n".join(line for line in self.err.splitlines() if not line.endswith(" ..."))


@pytest.fixture
def fedsa_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``fedsa ARGUMENTS`` in this process."""
    from fedsa.cli import main

    def run(*arguments: object) -> Outcome:
        before = os.environ.get(VARIABLE)  # --allow-code is for one command
        monkeypatch.setattr("sys.argv", ["fedsa", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.environ.pop(VARIABLE, None)
            os.environ |= {VARIABLE: before} if before is not None else {}
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def recipe_file(tiny_data: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny recipe, with ``key=value`` settings put in, to ``tiny.toml`` (or another name)."""
    import tomli_w

    from fedsa.recipe import apply_overrides

    def write(*overrides: str, name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(apply_overrides(tiny_data, overrides)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished_run(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe. Copy it before you change it."""
    import fedsa
    from fedsa.recipe import parse_recipe

    path = tmp_path_factory.mktemp("finished") / "run"
    fedsa.run(fedsa.Federation.from_recipe(parse_recipe(tiny_data)), path)
    return path
