"""The wheel carries what a run needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.repository import ROOT

pytestmark = pytest.mark.run


def test_wheel_carries_recipes_and_template(tmp_path: Path) -> None:
    pytest.importorskip("pip")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in (ROOT / "src" / "fedsa").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("fedsa-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "recipes/quickstart.toml",
        "runs/report/report.html.jinja",
        "runs/compare/compare.html.jinja",
        "runs/pages/style.css.jinja",
        "runs/pages/sort.js",
        "runs/export/card.md.jinja",
        "py.typed",
        "algorithms/fedsa.py",
    ):
        assert f"fedsa/{name}" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
