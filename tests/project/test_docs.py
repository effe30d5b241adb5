"""The docs say what the code says."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsa.algorithms import check_algorithm, make_algorithm
from fedsa.commands.shared.methods import describe_all
from fedsa.commands.shared.methods_shown import as_markdown
from fedsa.commands.shared.settings import describe_settings
from fedsa.errors import ConfigError
from fedsa.types import Factor, Key
from support.repository import ROOT


def test_docs_list_every_setting() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page.endswith(describe_settings() + "\n"), "write `fedsa recipes --settings` into docs/recipes.md"


def test_docs_list_every_method() -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    expected = as_markdown(describe_all(only_built_in=True)) + "\n"
    assert page == expected, "write `fedsa algorithms --markdown` into docs/algorithms.md"


def test_docs_justify_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    names = {re.split(r"[<>=\[]", name)[0] for name in [*project["dependencies"], *extras]} - {"fedsa"}
    table = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    missing = [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", table)]
    assert not missing


def test_links_of_the_docs_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_the_site_has_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    listed = re.findall(r"\S+\.md$", nav, flags=re.MULTILINE)
    assert sorted(pages) == sorted(listed), "put each page into `nav` of mkdocs.yml, once"


@pytest.mark.run
def test_method_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    method, test = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "sparing.py").write_text(method, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("FEDSA_ALLOW_CODE", "1")
    sparing = make_algorithm("sparing:Sparing", {"every": 3})
    assert [sparing.plan(Key("layer", Factor.A), round).sent for round in range(1, 7)] == [False, False, True] * 2
    (mistake,) = check_algorithm({"algorithm": "sparing:Sparing", "adapter": {"variant": "vera"}})
    assert "nothing to spare" in mistake.what
    with pytest.raises(ConfigError, match="greater than 0"):
        make_algorithm("sparing:Sparing", {"every": 0})
    names: dict[str, Callable[[], None]] = {}
    exec(test, names)  # noqa: S102  # the reader's test
    names["test_sparing_obeys_the_laws"]()
    del sys.modules["sparing"]
