"""An error in one's own method, task or callback: where it is is said, and no other traceback is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsa
from fedsa.algorithms import find_algorithm
from fedsa.errors import UserError
from fedsa.testing import check_laws

METHOD = """from fedsa.algorithms.fedsa import FedSA

class Mine(FedSA):
    def plan(self, key, round):
        return {}["no such key"]
"""
TASK = """from fedsa.tasks.classification import Classification

class Mine(Classification):
    def losses(self, model, batch):
        raise ValueError("no loss today")
"""
CALLBACK = """from fedsa.callbacks import Callback

class Mine(Callback):
    def on_round_end(self, round, lines, validation):
        helper()

def helper():
    raise TypeError("a tracker that is not there")
"""
LINES = {METHOD: (5, "plan"), TASK: (5, "losses"), CALLBACK: (8, "helper")}
SETTINGS = {
    METHOD: ["algorithm=NAME:Mine"],
    TASK: ["task.kind=NAME:Mine", "task.label_column=label"],
    CALLBACK: ["callbacks=['NAME:Mine']"],
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write code of one's own into the current folder; it is allowed to run."""
    folder, known = tmp_path / "here", set(sys.modules)
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FEDSA_ALLOW_CODE", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: list[str] = []

    def write(code: str) -> str:
        names.append(f"own_code_{len(known)}_{abs(hash(code))}")
        (folder / f"{names[-1]}.py").write_text(code, encoding="utf-8")
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.run
@pytest.mark.parametrize("code", [METHOD, TASK, CALLBACK], ids=["method", "task", "callback"])
def test_the_command_says_where(
    module: Callable[[str], str], fedsa_command: Callable[..., Any], recipe_file: Callable[..., Path], code: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    name, (line, function) = module(code), LINES[code]
    settings = [setting.replace("NAME", name) for setting in SETTINGS[code]]
    outcome = fedsa_command("run", recipe_file(*settings), "--out", tmp_path / "run")
    assert outcome.code == 1
    assert f'{name}.py", line {line}, in {function}' in outcome.err
    assert "Traceback" not in outcome.err
    assert f"src{'/'}fedsa" not in outcome.err


@pytest.mark.parametrize(
    ("code", "line", "what"),
    [
        ("import numpy\n\nnumpy.no_such_thing\n", 3, "AttributeError"),
        ("\nfrom numpy import no_such_thing\n", 2, "cannot import name"),
        ("import no_such_module_at_all\n", 1, "No module named 'no_such_module_at_all'"),
        ("x = 1\ny = {}['z']\n", 2, "KeyError: 'z'"),
    ],
)
def test_what_happens_while_it_is_imported_is_told_with_its_place(
    module: Callable[[str], str], code: str, line: int, what: str
) -> None:
    name = module(code)
    with pytest.raises(UserError) as told:
        find_algorithm(f"{name}:Mine")
    assert what in str(told.value)
    assert f"{name}.py, line {line}, in <module>" in str(told.value)


def test_a_law_that_a_method_breaks_by_an_error_names_its_line(module: Callable[[str], str]) -> None:
    name = module(METHOD.replace("{}[", "{'A': 1}[").replace("plan(", "plan("))
    with pytest.raises(AssertionError) as told:
        check_laws(find_algorithm(f"{name}:Mine")())
    assert f"{name}.py, line 5, in plan" in str(told.value)


def test_python_shows_the_error_as_it_is(
    module: Callable[[str], str], tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    name = module(CALLBACK)
    federation = fedsa.Federation.from_recipe(tiny_recipe(f"callbacks=['{name}:Mine']", "rounds=1"))
    with pytest.raises(TypeError, match="a tracker that is not there") as told:
        fedsa.run(federation, tmp_path / "run")
    assert told.traceback[-1].path.name == f"{name}.py"
    assert told.traceback[-1].lineno + 1 == 8
