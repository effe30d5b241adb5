"""Real files, where a folder with them is at hand ($FEDSA_DATA)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import fedsa
from fedsa.data.rows import deal_rows
from fedsa.packages.parts import is_cached
from fedsa.recipe import Recipe, parse_recipe, read_recipe
from support.repository import ROOT


@pytest.fixture
def glue() -> Path:
    folder = os.environ.get("FEDSA_DATA")
    if not folder or not (Path(folder) / "glue").is_dir():
        pytest.skip("FEDSA_DATA names no folder with GLUE files")
    return Path(folder) / "glue"


def test_pairs_of_rte_are_shared_out_with_equal_label_mix(glue: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(
        f"data.path={glue / 'RTE' / 'train.tsv'}",
        'task.text_columns=["sentence1", "sentence2"]',
        "data.partition={kind='dirichlet', clients=3, dirichlet_alpha=0.5}",
    )
    rows = deal_rows(recipe)
    assert set(rows.label_names) == {"entailment", "not_entailment"}
    assert sum(parts.num_examples for parts in rows.partition.clients.values()) == 2490
    for parts in rows.partition.clients.values():
        shares = [float((rows.labels[part] == 0).mean()) for part in parts]
        assert max(shares) - min(shares) < 0.03  # one row of the smallest split, for each label


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mapping[str, Any]]:
    """Return what runs one of the recipes whose rows benchmarks/instruction_folders.py writes."""
    folder = Path(os.environ.get("FEDSA_DATA") or "nowhere")
    if not (folder / "gsm8k").is_dir() or not (folder / "tinyshakespeare").is_dir():
        pytest.skip("FEDSA_DATA names no folder with gsm8k and tinyshakespeare")
    if not is_cached("smollm2-135m-instruct"):
        pytest.skip("the model of the recipes is not in the cache: fedsa run gsm8k-small fetches it")
    program = ROOT / "benchmarks" / "instruction_folders.py"
    subprocess.run([sys.executable, program, "--out", tmp_path / "data"], check=True)
    monkeypatch.setenv("FEDSA_DATA", str(tmp_path / "data"))

    def run(name: str) -> Mapping[str, Any]:
        wanted, _ = read_recipe(name)
        wanted |= {"rounds": 2, "compute": {"threads": 1}}
        federation = fedsa.Federation.from_recipe(parse_recipe(wanted))
        return fedsa.run(federation, tmp_path / "run", progress=False).summary

    return run


@pytest.mark.slow
def test_each_client_learns_to_answer_more_likely(small: Callable[..., Mapping[str, Any]]) -> None:
    summary = small("instructions-small")
    for client, figures in summary["per_client"].items():
        assert figures["test"]["log_likelihood"] > figures["before"], client


@pytest.mark.slow
def test_dpo_raises_the_margin(small: Callable[..., Mapping[str, Any]]) -> None:
    summary = small("dpo-small")
    assert all(figures["before"] == 0 for figures in summary["per_client"].values())
    margins = [figures["test"]["margin"] for figures in summary["per_client"].values()]
    assert sum(margins) / len(margins) > 0
