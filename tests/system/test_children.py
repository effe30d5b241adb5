"""Processes that end with the one that started them, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from fedsa.system.children import Child, KeptChild, stop_all

pytestmark = pytest.mark.run

# Tells its id in a pipe, then starts a grandchild in a session of its own, which tells its id too and ignores SIGTERM.
DEEP = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def tell():
    with open(sys.argv[1], "w") as pipe:
        pipe.write(f"{os.getpid()}\\n")
if len(sys.argv) == 2:
    child = subprocess.Popen([sys.executable, __file__, sys.argv[1], "again"], start_new_session=True)
    tell()
else:
    tell()
signal.pause()
"""


@pytest.fixture
def deep(tmp_path: Path) -> list[str]:
    """A command that starts another process, and tells of both in the pipe `told` beside it."""
    script = tmp_path / "deep.py"
    script.write_text(DEEP, encoding="utf-8")
    os.mkfifo(tmp_path / "told")
    return [sys.executable, str(script), str(tmp_path / "told")]


def told_by(folder: Path, count: int) -> list[psutil.Process]:
    """Wait until so many processes have told their ids."""
    found: list[psutil.Process] = []
    while len(found) < count:
        found += [psutil.Process(int(line)) for line in (folder / "told").read_text("utf-8").split()]
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes in a session of their own are not found")
def test_nothing_of_a_stopped_command_is_left(deep: list[str], tmp_path: Path) -> None:
    child = Child(deep, tmp_path / "log", grace=0.1)
    processes = told_by(tmp_path, 2)
    assert child.is_running
    child.stop()
    assert not child.is_running
    assert not any(process.is_running() for process in processes)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes in a session of their own are not found")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_commands_end_with_a_process_that_is_killed(how: signal.Signals, deep: list[str], tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import signal, sys
        from pathlib import Path
        from fedsa.system.children import Child
        child = Child(sys.argv[2:], Path(sys.argv[1]), grace=0.1)
        signal.pause()
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "log"), *deep], stderr=subprocess.DEVNULL)
    try:
        processes = told_by(tmp_path, 2)
        owner.send_signal(how)
        owner.wait()
    finally:
        owner.kill()
        owner.wait()
    assert gone(processes)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a command outlives its guard")
def test_a_command_ends_with_its_guard(deep: list[str], tmp_path: Path) -> None:
    child = Child(deep, tmp_path / "log")
    processes = told_by(tmp_path, 2)
    guard = next(one for one in psutil.Process().children() if "guard.py" in " ".join(one.cmdline()))
    (command,) = guard.children()
    guard.kill()
    child.wait()
    assert gone([command])
    for process in {*processes} - {command}:
        process.kill()  # what has left the process group of a command whose guard was killed


def test_output_and_status_are_kept(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('said'); raise SystemExit(7)"], tmp_path / "logs" / "log")
    assert child.wait() == 7
    assert (tmp_path / "logs" / "log").read_text("utf-8") == "said\n"


def test_a_kept_command_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "told")
    program = "import os, signal, sys; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); signal.pause()"
    with KeptChild([sys.executable, "-c", program, str(tmp_path / "told")], tmp_path / "log") as kept:
        (first,) = told_by(tmp_path, 1)
        first.kill()
        (second,) = told_by(tmp_path, 1)
        assert second.pid != first.pid
        stop_all([kept])
        assert gone([first, second])
