"""What a run refuses before any rows are read and any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsa.callbacks.trackers
import fedsa.models.early as early
from fedsa.errors import UserError
from fedsa.federation import Federation, check_early
from fedsa.recipe import Recipe

CONFIG = "{model_type='bert', vocab_size=23, hidden_size=16, num_hidden_layers=1, num_attention_heads=2}"


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*what: Any, **named: Any) -> None:
        raise AssertionError("rows or weights were loaded")

    for place in ("federation.deal_rows", "base_models.load_base", "base_models.load_tokenizer"):
        monkeypatch.setattr(f"fedsa.federation.{place}", loaded)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Act as if packages were not installed."""
    found = early.find_spec
    for module in (early, fedsa.callbacks.trackers):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in packages else found(name))


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            ["adapter.target_modules=['querry']"],
            "adapter.target_modules: the model has no layer 'querry'; did you",
        ),
        (["adapter.target_modules=['query', 'uery']"], "no layer 'uery'"),
        (["adapter.target_modules='query'"], "no layer's whole name matches this regular expression"),
        (["adapter.target_modules='(query'"], "is no regular expression"),
        (["adapter.modules_to_save=['classifierr']"], "adapter.modules_to_save: the model has no layer 'classifierr'"),
        ([f"model={{path='not/here', config={CONFIG}}}", "adapter.target_modules=['q_proj']"], "no layer 'q_proj'"),
        (["task={kind='regression', answer='x'}", "adapter.target_modules=['valeu']"], "did you mean 'value'?"),
        (["callbacks=['tensorbord']"], "did you mean 'tensorboard'?"),
        (["callbacks=['no.such.module:Thing']"], "callbacks: "),
    ],
)
def test_names_that_are_not_there_are_told_first(
    tiny_recipe: Callable[..., Recipe], settings: list[str], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        Federation.from_recipe(tiny_recipe(*settings))
    assert text in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [
        (["callbacks=['tensorboard']"], "tensorboard", "track"),
        (["model.quantization=nf4"], "bitsandbytes", "bnb"),
        (["task={kind='image_classification'}"], "PIL", "vision"),
        (["model.path='part:smollm2-135m-instruct'"], "gguf", "gguf"),
    ],
)
def test_missing_extras_are_told_first(
    tiny_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    package: str,
    extra: str,
) -> None:
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path))  # no part is here
    without(monkeypatch, package)
    with pytest.raises(UserError, match=rf"pip install 'fedsa\[{extra}\]'"):
        Federation.from_recipe(tiny_recipe(*settings))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["adapter.target_modules='.*(query|value)'"],
        ["adapter.target_modules=all-linear"],
        ["adapter.modules_to_save=['classifier']"],
        ["model.path=someone/not-in-the-cache", "adapter.target_modules=['q_proj']"],
        ["model.path='part:all-minilm-l6-v2'", "adapter.target_modules=['q_proj']"],  # fetched, and then looked at
    ],
    ids=str,
)
def test_what_is_right_or_not_here_goes_on(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path))
    check_early(tiny_recipe(*settings))
    assert not list(tmp_path.iterdir())  # nothing is fetched
