"""A short round of `benchmarks/fuzz.py`, with fixed seeds: the long one has 100,000 inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import ROOT

pytestmark = [pytest.mark.run, pytest.mark.skipif(sys.platform == "win32", reason="it forks")]


def test_no_mutated_input_ends_in_a_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/fuzz.py", "--inputs", "400", "--seed", "77", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.search(r"\n\d+ inputs from seed 77, 0 failed", done.stdout)
    assert not (tmp_path / "kept").exists() or not list((tmp_path / "kept").rglob("why.txt"))
