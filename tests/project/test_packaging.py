"""The wheel carries what a run needs, and the files of constraints can be installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


@pytest.mark.parametrize("path", sorted(ROOT.glob("constraints*.txt")), ids=lambda path: path.name)
def test_no_pin_of_a_file_of_constraints_is_outside_what_another_package_needs(path: Path) -> None:
    """As far as the packages are installed here: pip finds no answer where two of them want different versions."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pins = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}
    extras = ["flower"] if "flower" in path.name else []
    waiting, seen, wrong, missing = [("fedsa", extra) for extra in ["dev", *extras]], set(), [], []
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        for need in needs:
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(need.name)
            waiting += [(needed, more) for more in ["", *need.extras]]
            if needed == "fedsa":
                continue
            if needed not in pins:
                missing.append(f"{needed} (for {name})")
            elif not need.specifier.contains(pins[needed], prereleases=True) and _same_version(name, pins):
                wrong.append(f"{needed} {pins[needed]}, but {name} needs {need.specifier}")
    assert not wrong
    assert not missing


def _same_version(name: str, pins: Mapping[str, str]) -> bool:
    """Whether a package is installed here in the version that is pinned: then what it says here holds there."""
    return name == "fedsa" or version(name).split("+")[0] == pins.get(name)
