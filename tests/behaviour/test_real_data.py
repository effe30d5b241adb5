"""Real files, where a folder with them is at hand ($FEDSA_DATA)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsa.data.rows import deal_rows
from fedsa.recipe import Recipe


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
