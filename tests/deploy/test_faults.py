"""Some of the faults of `benchmarks/deploy_faults.py`, once each, with the real commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.extras import NEEDS_NVFLARE
from support.repository import ROOT

pytestmark = [
    pytest.mark.run,
    NEEDS_NVFLARE,
    pytest.mark.skipif(sys.platform != "linux", reason="the fault suite is for Linux"),
]


def test_a_run_whose_worker_and_server_are_killed_ends_and_no_update_counts_twice(tmp_path: Path) -> None:
    said = _suite("shortest", tmp_path)
    assert "| a worker and the server are killed | 1 | ends | held |" in said


@pytest.mark.slow  # two whole federations: minutes
def test_a_run_whose_parties_are_killed_one_after_the_other_ends_in_the_bytes_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    """A worker, the server's command, a whole site, and the engine's job, each with the real commands."""
    said = _suite("short", tmp_path)
    assert "| 1 | ends with the undisturbed run's bytes (" in said
    assert "| held |" in said


def _suite(scenario: str, folder: Path) -> str:
    """Run a scenario of the fault suite, with the real commands, and return what it prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / "deploy_faults.py"), "--only", scenario, "--times", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    suite = subprocess.Popen(
        [*command, "--out", str(folder / "runs")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = suite.communicate()
    finally:
        suite.terminate()  # it then ends its parties, which are sessions of their own
        suite.wait()
    assert suite.returncode == 0, said
    return said
