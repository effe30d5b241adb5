"""The recipe: what contradicts itself is refused, and what is resolved is written out and read again."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsa.adapters.factors import VARIANTS
from fedsa.errors import ConfigError, UserError
from fedsa.federation import Federation
from fedsa.recipe import (
    OBJECTS,
    Recipe,
    apply_overrides,
    dump_recipe,
    parse_recipe,
    refuse_objects,
    with_absolute_paths,
)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param(["adapter={variant='vera', lora_alpha=4}"], ["adapter: lora_alpha", "'vera'"], id="vera's alpha"),
        pytest.param(
            ["adapter={variant='loha', dropout=0.1}"],
            ["adapter: dropout does not go with variant = 'loha', which has no dropout: remove it"],
            id="loha's dropout",
        ),
        pytest.param(
            ["adapter={variant='ia3', r=4, lora_alpha=4, dropout=0.1}", "algorithm=fedit"],
            ["adapter: r does not go with variant = 'ia3', which has no rank", "; lora_alpha does", "; dropout does"],
            id="ia3's rank",
        ),
        pytest.param(
            ["adapter={feedforward_modules=['dense'], target_modules=['dense']}"],
            ["adapter: feedforward_modules goes with variant = 'ia3' only, not with 'lora'"],
            id="lora's feed-forward layers",
        ),
        pytest.param(
            ["adapter={variant='ia3', feedforward_modules=['dense']}"],
            ["adapter: feedforward_modules needs target_modules"],
            id="feed-forward layers alone",
        ),
        pytest.param(
            ["adapter={variant='ia3', feedforward_modules=['dense'], target_modules=['key']}"],
            ["adapter: feedforward_modules: 'dense' is not in target_modules; add it there too"],
            id="feed-forward layers that are not adapted",
        ),
        pytest.param(
            ["adapter={variant='pissa', ranks=[2, 4]}"],
            ["adapter: ranks does not go with variant = 'pissa': the frozen weights have lost"],
            id="pissa's ranks",
        ),
        pytest.param(
            ["adapter={variant='ia3'}", "training.b_learning_rate_ratio=16"],
            ["training.b_learning_rate_ratio: does not go with adapter.variant = 'ia3', which has no A side"],
            id="ia3's B side",
        ),
        pytest.param(
            ["adapter={variant='lora_xs'}", "training.b_learning_rate_ratio=16", "algorithm=fedit"],
            ["training.b_learning_rate_ratio: does not go with adapter.variant = 'lora_xs', which has no A side"],
            id="lora_xs's B side",
        ),
        pytest.param(
            ["training.b_learning_rate_ratio=0"], ["training.b_learning_rate_ratio", "greater than 0"], id="ratio"
        ),
        pytest.param(
            ["data.partition={kind='iid', clients=2, min_examples=20, max_examples=19}"],
            ["data.partition: max_examples = 19 is below min_examples = 20"],
            id="sizes",
        ),
        pytest.param(
            ["data.partition={kind='iid', clients=2, column='site', file='x.json'}"],
            ["`column` goes with kind = 'column' only", "`file` goes with kind = 'saved' only"],
            id="column and file",
        ),
        pytest.param(
            ["data.partition.clients=2"], ["`clients` does not go with kind = 'column'"], id="clients, column"
        ),
        pytest.param(
            ["data.partition={kind='files', clients=2}"], ["`clients` does not go with kind = 'files'"], id="files"
        ),
        pytest.param(
            ["data.partition={kind='saved', file='x', clients=2}"], ["not go with kind = 'saved'"], id="clients, saved"
        ),
        pytest.param(["data.test_split=train"], ["data: split, ", "'train' is named twice"], id="a split twice"),
        pytest.param(
            ["data.validation_split=test", "data.test_split=test"], ["'test' is named twice"], id="an own split twice"
        ),
        pytest.param(["task.labels=['good']"], ["task.labels", "at least two classes"], id="one class"),
        pytest.param(["task.labels=['a', 'b', 'a']"], ["task.labels", "named twice: a;"], id="a class twice"),
        pytest.param(
            ["adapter={variant='vera', lora_alpha=4}", "data.test_split=train", "task.labels=[]", "rounds=0"],
            ["4 mistakes"],
            id="all at once",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tiny_data: dict[str, Any], settings: list[str], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(apply_overrides(tiny_data, settings))
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.run
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resolved_recipe_is_complete_and_reads_back_as_itself(
    tiny_recipe: Callable[..., Recipe], variant: str
) -> None:
    open_recipe = tiny_recipe(f"adapter.variant={variant}", "training={batch_size=4}", "algorithm=fedit")
    resolved = Federation.from_recipe(open_recipe).recipe
    training = resolved.training
    assert training.local_steps == 10
    assert (training.trainer, training.packing) == ("cohort", True)
    assert 1 <= training.cohort_size <= 3
    assert resolved.model.attn_implementation == "eager"  # as given
    assert resolved.model.revision is None  # a folder has none
    again = parse_recipe(tomllib.loads(dump_recipe(resolved)))
    assert again == resolved
    assert Federation.from_recipe(again).recipe == resolved


def test_epochs_need_no_steps(tiny_recipe: Callable[..., Recipe]) -> None:
    resolved = Federation.from_recipe(tiny_recipe("training={local_epochs=1}")).recipe
    assert resolved.training.local_steps is None


def test_the_commit_of_a_hub_model_is_resolved(
    tiny_recipe: Callable[..., Recipe], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is away: its answer is the tiny model, with the commit that transformers writes into the config."""
    from fedsa.models import load_base, load_tokenizer
    from fedsa.recipe import ModelSettings

    here = ModelSettings(path=str(tiny_model))

    def load(settings: ModelSettings, **more: Any) -> Any:
        base, drawn = load_base(here, **more)
        base.config._commit_hash = "0123abcd"
        return base, drawn

    monkeypatch.setattr("fedsa.federation.base_models.load_base", load)
    monkeypatch.setattr("fedsa.federation.base_models.load_tokenizer", lambda settings: load_tokenizer(here))
    assert Federation.from_recipe(tiny_recipe("model.path=someone/tiny")).recipe.model.revision == "0123abcd"


def test_local_paths_are_made_absolute_in_python_too(
    tiny_recipe: Callable[..., Recipe], tiny_model: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert Federation.from_recipe(tiny_recipe(f"model.path={tiny_model.name}")).recipe.model.path == str(tiny_model)
    monkeypatch.chdir(tiny_rows.parent)
    assert Federation.from_recipe(tiny_recipe(f"data.path={tiny_rows.name}")).recipe.data.path == str(tiny_rows)


def test_objects_are_no_path(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / OBJECTS).mkdir()
    recipe = tiny_recipe(f"model.path='{OBJECTS}'", f"data.path='{OBJECTS}'")
    assert with_absolute_paths(recipe) == recipe


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_recipe_of_objects_cannot_be_run(
    tiny_recipe: Callable[..., Recipe],
    fedsa_command: Callable[..., Any],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    key: str,
) -> None:
    with pytest.raises(UserError, match="mine was started from Python objects"):
        refuse_objects(tiny_recipe(f"{key}.path='{OBJECTS}'"), "mine")
    with pytest.raises(UserError, match="the recipe was started from Python objects"):
        Federation.from_recipe(tiny_recipe(f"{key}.path='{OBJECTS}'"))
    outcome = fedsa_command("run", recipe_file(f"{key}.path='{OBJECTS}'"), "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "tiny.toml was started from Python objects" in outcome.error
    assert not (tmp_path / "run").exists()
