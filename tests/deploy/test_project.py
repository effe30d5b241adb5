"""What is refused of a federation across machines before its kits are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsa.errors import ConfigError, UserError
from fedsa.recipe import Recipe
from support.extras import NEEDS_NVFLARE
from support.tiny_rows import WORDS

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]

SETTINGS = ("training.trainer=sequential", "compute.threads=1", "model.attn_implementation=eager", "rounds=2")


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Recipe]) -> Recipe:
    return tiny_recipe(*SETTINGS, f"task.labels={json.dumps(sorted(WORDS))}")


def test_the_classes_must_be_named_and_the_folder_new(
    tiny_recipe: Callable[..., Recipe], recipe: Recipe, tmp_path: Path
) -> None:
    from fedsa.deploy.project import begin_project

    with pytest.raises(ConfigError, match=r"task.labels: nobody sees all rows"):
        begin_project(tiny_recipe(*SETTINGS), ["a", "b"], tmp_path / "new", host="localhost", port=1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        begin_project(recipe, ["a", "b"], tmp_path / "old", host="localhost", port=1)
