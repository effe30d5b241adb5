"""Code that a recipe or a run folder names runs where it is installed, imported already, or allowed by the user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedsa.algorithms import find_algorithm
from fedsa.callbacks import check_callbacks
from fedsa.errors import UserError
from fedsa.recipe import parse_toml
from fedsa.system.permissions import VARIABLE
from fedsa.tasks import make_task
from support.repository import ROOT
from support.run_folders import resealed

pytestmark = pytest.mark.run

CODE = """
import pathlib
pathlib.Path("ran").touch()
from fedsa import Callback
from fedsa.algorithms.fedsa import FedSA
from fedsa.tasks.classification import Classification
class Method(FedSA): pass
class Listener(Callback): pass
class Kind(Classification): pass
"""
NAMED = {"algorithm": "stranger:Method", "callbacks": ["stranger:Listener"], "task": {"kind": "stranger:Kind"}}
VERBS = {
    "run": ["run", "RECIPE", "--out", "out"],
    "plan": ["plan", "RECIPE"],
    "data": ["data", "RECIPE"],
    "sweep": ["sweep", "SWEEP", "--out", "out", "--tables-only"],
    "algorithms": ["algorithms", "stranger:Method"],
    "resume": ["resume", "RUN"],
    "export": ["export", "RUN", "--all", "--to", "out"],
    "analyze": ["analyze", "RUN", "--to", "out"],
    "adapt": ["adapt", "RUN", "--data", "ROWS", "--steps", "1"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which has a module in it that leaves a file ``ran`` when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "stranger.py").write_text(CODE, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("stranger", None)


def words(verb: str, here: Path, named: dict[str, Any], data: dict[str, Any], finished_run: Path) -> list[str]:
    """Return a command whose recipe or run folder names code."""
    (here / "recipe.toml").write_text(tomli_w.dumps(data | named), encoding="utf-8")
    (here / "sweep.toml").write_text('recipe = "recipe.toml"\nmethods = ["stranger:Method"]\nrates = [1e-2]\n')
    run = Path(shutil.copytree(finished_run, here / "finished"))
    recipe = parse_toml((run / "recipe.toml").read_text(encoding="utf-8"), "recipe")
    if "task" in named:
        named = {"task": {**recipe["task"], **named["task"]}}
    resealed(run, lambda folder, _: folder.write_recipe(tomli_w.dumps(recipe | named)))
    places = {"RECIPE": "recipe.toml", "SWEEP": "sweep.toml", "RUN": "finished", "ROWS": data["data"]["path"]}
    return [places.get(word, word) for word in VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", NAMED)
def test_no_verb_runs_code_of_the_current_folder(
    here: Path,
    fedsa_command: Callable[..., Any],
    tiny_data: dict[str, Any],
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    verb: str,
) -> None:
    monkeypatch.setattr("fedsa.commands.analyze._write", lambda *_: [])  # the pictures take long
    outcome = fedsa_command(*words(verb, here, {what: NAMED[what]}, tiny_data, finished_run))
    assert not (here / "ran").exists(), "it ran"
    assert "stranger" not in sys.modules
    assert "Traceback" not in outcome.err
    assert outcome.code in (0, 2), outcome  # 0: a verb that has no use for it, as export has none for a callback
    if verb in ("run", "plan") and what != "task":
        assert f"'stranger:{'Method' if what == 'algorithm' else 'Listener'}' is code of the current" in outcome.error
        assert str(here / "stranger.py") in outcome.error
        assert "--allow-code" in outcome.error


@pytest.mark.parametrize("how", ["before the verb", "after the verb", "environment"])
def test_the_user_allows_it(
    here: Path, fedsa_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv(VARIABLE, "1")
    words = {
        "before the verb": ["--allow-code", "algorithms", "stranger:Method"],
        "after the verb": ["algorithms", "stranger:Method", "--allow-code"],
        "environment": ["algorithms", "stranger:Method"],
    }
    assert fedsa_command(*words[how]).code == 0
    assert (here / "ran").exists()
    sys.modules.pop("stranger")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert fedsa_command(*words["environment"]).code == 2, "it was allowed for one command"


def test_a_recipe_does_not_allow_itself(here: Path, fedsa_command: Callable[..., Any]) -> None:
    (here / ".env").write_text(f"{VARIABLE}=1\n")
    for recipe in ("allow_code = true\n", f'{VARIABLE} = "1"\n'):
        (here / "mine.toml").write_text(f"{recipe}algorithm = 'stranger:Method'\n", encoding="utf-8")
        assert "is code of the current folder" in fedsa_command("plan", "mine.toml").error
    assert not (here / "ran").exists()


@pytest.mark.parametrize("entry", ["", ".", "HERE"])
def test_the_current_folder_on_pythons_path_is_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.syspath_prepend(str(here) if entry == "HERE" else entry)
    with pytest.raises(UserError, match="is code of the current folder"):
        find_algorithm("stranger:Method")
    (mistake,) = check_callbacks({"callbacks": ["stranger:Listener"]})
    assert "is code of the current folder" in mistake.what
    assert not (here / "ran").exists()


@pytest.mark.parametrize("shape", ["package", "folder without __init__", "compiled"])
def test_whatever_python_would_import(here: Path, shape: str) -> None:
    import py_compile

    (here / "pack").mkdir()
    if shape == "compiled":
        py_compile.compile(str(here / "stranger.py"), cfile=str(here / "pack.pyc"))
        (here / "pack").rmdir()
    else:
        shutil.copy(here / "stranger.py", here / "pack" / "inner.py")
        if shape == "package":
            shutil.copy(here / "stranger.py", here / "pack" / "__init__.py")
    for name in ("pack:Method", "pack.inner:Method"):
        with pytest.raises(UserError, match="is code of the current folder"):
            find_algorithm(name)
    assert not (here / "ran").exists()


def test_what_is_imported_already_has_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    import stranger  # type: ignore[import-not-found]

    assert find_algorithm("stranger:Method") is stranger.Method


def test_what_is_installed_needs_no_permission(
    here: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Callable[..., Any]
) -> None:
    (here / "site").mkdir()
    (here / "stranger.py").rename(here / "site" / "stranger.py")
    monkeypatch.syspath_prepend(str(here / "site"))
    assert find_algorithm("stranger:Method").__name__ == "Method"
    assert type(make_task(tiny_recipe("task.kind=stranger:Kind").task, ["a", "b"])).__name__ == "Kind"


@pytest.mark.parametrize("layout", [".", "src"])
def test_a_package_that_is_installed_as_it_stands_needs_none(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, layout: str
) -> None:
    about = {"url": here.as_uri(), "dir_info": {"editable": True}}
    for place in (here, tmp_path_factory.mktemp("site")):  # a folder does not vouch for itself
        (place / "stranger-1.dist-info").mkdir()
        (place / "stranger-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
        (place / "stranger-1.dist-info" / "direct_url.json").write_text(json.dumps(about))
        if place == here:
            monkeypatch.syspath_prepend(str(here / layout))
            (here / "src").mkdir()
            shutil.copy(here / "stranger.py", here / "src")
            monkeypatch.chdir(here / layout)
            with pytest.raises(UserError, match="is code of the current folder"):
                find_algorithm("stranger:Method")
        else:
            monkeypatch.syspath_prepend(str(place))
    assert find_algorithm("stranger:Method").__name__ == "Method"


def test_files_beside_the_recipe_are_not_taken_for_libraries(tmp_path: Path) -> None:
    for name in ("json", "numpy", "typing", "signal", "pydantic", "rich", "typer", "__future__", "logging"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} ran')\n")
    source = ROOT / "src"
    outcome = subprocess.run(
        [sys.executable, "-m", "fedsa", "algorithms", "fedsa"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome
    assert "ran" not in outcome.stderr
