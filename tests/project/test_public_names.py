"""Every module says what it offers, and offers it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import fedsa
from support.extras import NEEDS_FLOWER
from support.repository import ROOT

MODULES = [
    pytest.param(module.name, marks=NEEDS_FLOWER if module.name == "fedsa.deploy.flower" else ())
    for module in pkgutil.walk_packages(fedsa.__path__, "fedsa.")
    if not module.ispkg and module.name != "fedsa.__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_module_lists_its_public_names(name: str) -> None:
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", None)
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name and hasattr(value, "__qualname__")
    }
    if name.startswith("fedsa.algorithms.") and not name.endswith(".base"):
        assert len(own) == 1  # a method's file offers the method
        return
    assert offered is not None
    assert all(hasattr(module, key) for key in offered)
    assert own <= set(offered), f"not in __all__: {own - set(offered)}"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone; the second one would not be run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
