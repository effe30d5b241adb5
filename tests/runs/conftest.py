"""Finished runs of every kind of task, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

import fedsa
from support.every_task import ON, every_federation
from support.tiny_decoder import write_decoder
from support.tiny_vision import write_vit


@pytest.fixture(scope="session")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each sort, without a head."""
    folder = tmp_path_factory.mktemp("models")
    AutoModel.from_pretrained(tiny_model).save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "encoder")
    return {
        "encoder": folder / "encoder",
        "decoder": write_decoder(folder / "decoder"),
        "vision": write_vit(folder / "vision"),
    }


@pytest.fixture(scope="session")
def run_of(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], fedsa.RunResult]:
    """A finished run of a kind of task; change nothing in it."""
    made: dict[str, fedsa.RunResult] = {}

    def make(name: str) -> fedsa.RunResult:
        if name not in made:
            path = tmp_path_factory.mktemp("runs") / name
            made[name] = fedsa.run(every_federation(name, models[ON[name]]), path, progress=False)
        return made[name]

    return make
