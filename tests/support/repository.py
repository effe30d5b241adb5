"""Where the repository is, for tests of its documents, its wheel and its programs."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def program(name: str) -> ModuleType:
    """Import a program in benchmarks, which may import its neighbours."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
