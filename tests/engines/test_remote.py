"""A server without rows or a model, and sites without a server: they end in the simulator's bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsa.recipe import Recipe
from fedsa.types import Key
from processes import run_federation

SEQUENTIAL = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=3")


@pytest.mark.parametrize("algorithm", ["fedsa", pytest.param("fedit", marks=pytest.mark.slow)])
def test_processes_with_nothing_but_messages_between_them_end_in_the_simulators_bytes(
    tiny_recipe: Callable[..., Recipe], tiny_run: Callable[..., Any], tmp_path: Path, algorithm: str
) -> None:
    settings = (f"algorithm={algorithm}", *SEQUENTIAL)
    recipe = tiny_recipe(*settings)
    sites = {"north": ["site 0", "site 2"], "south": ["site 1"]}
    outcome = run_federation(recipe.model_dump(exclude_none=True), sites, tmp_path)
    simulated = tiny_run(*settings)
    assert outcome["heavy"] == [], "the server imports neither transformers nor peft nor datasets"
    tensors, *_ = simulated.folder.load_server(3)
    assert {str(key) for key in tensors} == set(outcome["tensors"])
    for key, tensor in tensors.items():
        assert tensor.numpy().tobytes() == outcome["tensors"][str(key)].tobytes(), key
    lines = [json.loads(line) for line in (simulated.folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert outcome["validation"] == [(line["round"], line["client"], line["validation"]) for line in lines]
    assert outcome["chosen"] == simulated.summary["chosen_round"]
    for site, clients in sites.items():
        for client in clients:
            (path,) = sorted((tmp_path / site / "clients").glob(f"*{client[-1]}/round-000003.safetensors"))
            mine = simulated.folder.load_client(client, 3)
            theirs = tensors_of(path)
            assert set(theirs) == set(mine.tensors)
            assert all(torch.equal(theirs[key], value) for key, value in mine.tensors.items())


def tensors_of(path: Path) -> dict[Key, torch.Tensor]:
    from safetensors.torch import load_file

    return {Key.parse(name): value for name, value in load_file(path).items() if not name.startswith("optimizer|")}
