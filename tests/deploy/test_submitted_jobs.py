"""Jobs that somebody submits to an NVFlare that runs already: fedsa writes them, and starts nothing of NVFlare."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedsa.deploy import carrier, frames, worker
from fedsa.deploy.nvflare import party_command
from fedsa.deploy.parties import free_port, kept_programs
from fedsa.deploy.preflight import no_other_authority
from fedsa.deploy.provision import ADMINISTRATOR, provision, write_policy
from fedsa.deploy.submitted_jobs import run_worker, wait_for_jobs
from fedsa.errors import UserError
from support.extras import NEEDS_NVFLARE

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]

ECHO = """
import os, sys
from pathlib import Path
from fedsa.deploy.worker import SOCKET, serve
serve(lambda request: request + sys.argv[1].encode(), Path(os.environ[SOCKET]))
"""
SECONDS = 120


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path, for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_job_is_written_and_its_connection_is_taken(place: Path) -> None:
    told: list[str] = []
    with wait_for_jobs(place / "jobs", ["north", "south"], tell=told.append) as carry:
        answers = carry({"north": b"a question"}, SECONDS)
        found: list[tuple[str, bytes]] = []
        asking = threading.Thread(target=lambda: found.extend(answers))
        asking.start()
        with socket.socket(socket.AF_UNIX) as job:
            _connect(job, place / "jobs" / "carrier")
            end = time.monotonic() + SECONDS
            while carry.generation == 0:
                assert time.monotonic() < end
                threading.Event().wait(0.05)
            frames.send(job, {"generation": 1})
            note, body = frames.receive(job)
            assert (note["site"], body) == ("north", b"a question")
            frames.send(job, {"answer": note["request"]}, b"an answer")
            asking.join(SECONDS)
        assert found == [("north", b"an answer")]
    written = place.resolve() / "jobs" / "job-1"
    assert f"waiting for a job: nvflare job submit -j {written}" in told
    assert f"FEDSA_CARRIER={place.resolve() / 'jobs' / 'carrier'}" in told[0]
    assert json.loads((written / "meta.json").read_text())["deploy_map"] == {"app": ["server", "north", "south"]}
    assert not [path for path in written.rglob("*") if path.suffix == ".py"], "settings only, no code"
    assert (place / "jobs").stat().st_mode & 0o077 == 0


def test_a_worker_answers_where_nvflare_will_look_for_it(place: Path) -> None:
    (place / "echo.py").write_text(ECHO, encoding="utf-8")
    told: list[str] = []
    command = [sys.executable, str(place / "echo.py"), "north"]
    with run_worker("north", command, place / "worker", logs=place / "logs", tell=told.append):
        assert worker.ask(place / "worker", b"to ", given_up=lambda: False) == b"to north"
    assert told == [
        f"NVFlare's client must have been started with FEDSA_WORKER={place / 'worker'} in its environment",
    ]


def test_a_path_that_no_socket_can_have_is_told(place: Path) -> None:
    with (
        pytest.raises(UserError, match=r"is too long for a socket: a path of at most 100 bytes"),
        wait_for_jobs(place / ("病" * 40), ["north"], tell=print),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"is not there: make it, for this user alone, or give another path"),
        run_worker("north", [], place / "none" / "worker", logs=place, tell=print),
    ):
        pass


@pytest.mark.slow
def test_nvflares_own_command_submits_a_job_to_an_nvflare_that_somebody_else_started(place: Path) -> None:
    (place / "echo.py").write_text(ECHO, encoding="utf-8")
    kits = provision(place / "kits", "elsewhere", "localhost", free_port(), ["north"])
    told: list[str] = []
    with ExitStack() as stack:
        for kit, variable, path in (
            (kits["server"], carrier.SOCKET, place / "jobs" / "carrier"),
            (kits["north"], worker.SOCKET, place / "worker"),
        ):
            write_policy(kit)
            variables = {variable: str(path.resolve()), **no_other_authority(kit)}
            stack.enter_context(kept_programs(place, {kit.party: (party_command(kit), variables)}))
        command = [sys.executable, str(place / "echo.py"), "north"]
        stack.enter_context(run_worker("north", command, place / "worker", logs=place, tell=print))
        carry = stack.enter_context(wait_for_jobs(place / "jobs", ["north"], tell=told.append))
        end = time.monotonic() + SECONDS
        while not any("job submit" in line for line in told):
            assert time.monotonic() < end
            threading.Event().wait(0.2)
        words = told[-1].partition(": ")[2].split()
        while subprocess.run(
            [sys.executable, "-m", "nvflare.cli", *words[1:], "--startup-kit", str(kits[ADMINISTRATOR].path)],
            env={**os.environ, "HOME": str(place), **no_other_authority(kits[ADMINISTRATOR])},
            capture_output=True,
            check=False,
        ).returncode:
            assert time.monotonic() < end, (place / "server.log").read_text()[-2000:]
        assert dict(carry({"north": b"to "}, SECONDS)) == {"north": b"to north"}


def _connect(job: socket.socket, path: Path) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            return job.connect(str(path))
        except OSError:
            assert time.monotonic() < end
            threading.Event().wait(0.05)
