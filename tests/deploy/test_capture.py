"""All that passes between sites and server in a whole run, recorded: of what a client keeps there is nothing but A."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedsa.recipe import Recipe
from support.extras import NEEDS_NVFLARE
from support.repository import program

pytestmark = [pytest.mark.slow, NEEDS_NVFLARE]  # a whole recorded run, and a search for every number of it

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")


@pytest.fixture(scope="module")
def recorded(tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny recipe whose traffic was recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    program("capture").record(tiny_recipe(*SETTINGS, "training.optimizer_state=keep"), ["north", "south"], folder)
    return folder


def test_every_a_is_found_and_no_b_head_optimiser_state_or_text(recorded: Path) -> None:
    kinds = program("capture").examine(recorded)
    assert {"A", "B", "head", "optimiser's state", "texts of rows"} <= kinds.keys()
    assert all(each.of > 0 for kind, each in kinds.items() if kind != "long words")
    assert len(kinds["A"].found) == kinds["A"].of
    assert {kind for kind, each in kinds.items() if each.found} == {"A"}


def test_a_single_number_of_a_client_that_had_left_would_be_found(recorded: Path, tmp_path: Path) -> None:
    """The search is not blind: a B of which the recording has one window is found, and so is a text."""
    capture = program("capture")
    shutil.copytree(recorded, tmp_path / "copy")
    path = next((tmp_path / "copy" / "states").rglob("round-000002.safetensors"))
    tensors = load_file(path)
    sent = next(value for name, value in tensors.items() if "optimizer|" not in name and ":A:" in name)
    kept = next(name for name in tensors if "optimizer|" not in name and ":B:" in name)
    leaked = torch.rand(64)
    leaked[8:16] = sent.flatten()[:8]
    save_file({**tensors, kept: leaked}, path)
    found = capture.examine(tmp_path / "copy")
    assert len(found["B"].found) == 1
    assert not capture.is_as_it_must_be(found)
