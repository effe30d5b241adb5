"""Real processes of NVFlare on this machine, with TLS on both sides, carry bytes to workers that echo them."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from fedsa.deploy.authority import Authority
from fedsa.deploy.carrier import Carrier
from fedsa.deploy.certificates import add_key, make_request, take_renewed
from fedsa.deploy.parties import run_local, run_server, run_site
from fedsa.deploy.preflight import PreflightError, UnreachableError, check_server, read_kit
from fedsa.deploy.provision import ADMINISTRATOR, provision
from fedsa.engines.roster import Roster
from support.extras import NEEDS_NVFLARE

pytestmark = [
    pytest.mark.run,
    NEEDS_NVFLARE,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

SITES = ("north", "south")
SECONDS = 120  # for one answer: a new job takes a few, and more on a busy machine

# Answers with the request and its own name. South says nothing the first time it is asked to be silent.
WORKER = """
import os, signal, sys
from pathlib import Path
from fedsa.deploy.worker import SOCKET, serve
name, heard = sys.argv[1], Path(sys.argv[2])
def handle(request):
    if request == b"be silent" and name == "south" and not heard.exists():
        heard.touch()
        signal.pause()
    return request + name.encode()
serve(handle, Path(os.environ[SOCKET]))
"""


@dataclass
class Running:
    """A federation that runs: what carries requests, the lines it has told, and its folder."""

    carry: Carrier
    told: list[str]
    folder: Path

    def ask(self, body: bytes, deadline: float = SECONDS) -> dict[str, bytes]:
        return dict(self.carry(dict.fromkeys(SITES, body), deadline))

    def echo(self, body: bytes) -> None:
        assert self.ask(body) == {site: body + site.encode() for site in SITES}


@contextmanager
def federation(folder: Path) -> Iterator[Running]:
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    commands = {site: [sys.executable, str(folder / "worker.py"), site, str(folder / "heard")] for site in SITES}
    told: list[str] = []
    with run_local(folder / "federation", commands, tell=told.append) as carry:
        yield Running(carry, told, folder / "federation")


def processes(words: Sequence[str] = ()) -> list[psutil.Process]:
    """Processes that come from this one, guards left out, whose command has all words."""
    commands = {one: command_of(one) for one in psutil.Process().children(recursive=True)}
    return [one for one, text in commands.items() if text and "guard.py" not in text and all(w in text for w in words)]


def command_of(process: psutil.Process) -> str:
    """The command of a process; empty where it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill(*words: str) -> None:
    (one,) = processes(words)
    one.kill()


@pytest.mark.slow
def test_bytes_are_carried_whatever_is_killed(tmp_path: Path) -> None:
    with federation(tmp_path) as running:
        running.echo(b"\x00\xff" * 75_000)
        running.echo(b"")
        engine = processes(["nvflare.private"])
        assert len(engine) == 6, "a server and two sites, each with a process of its own and one of the job"
        assert not [one for one in engine if "libtorch" in Path(f"/proc/{one.pid}/maps").read_text()]

        assert running.ask(b"be silent", deadline=10) == {"north": b"be silentnorth"}, "the deadline ends the wait"
        kill("worker.py", "south")
        running.echo(b"after the worker was killed")

        before = running.carry.generation
        kill("server.runner_process")
        running.echo(b"after the server's job was killed")
        assert running.carry.generation == before + 1
        assert any("the engine's job has ended; the next one goes on" in line for line in running.told)

        kit = read_kit(running.folder / "kits" / "north")
        check_server(kit)
        stranger = replace(kit, path=tmp_path / "stranger")
        (stranger.path / "startup").mkdir(parents=True)
        for name in ("client.crt", "client.key"):
            (stranger.path / "startup" / name).write_bytes((kit.path / "startup" / name).read_bytes())
        stranger.authority.write_bytes(kit.certificate.read_bytes())  # any certificate that has not signed the server's
        with pytest.raises(PreflightError, match=r"a certificate of another authority than rootCA\.pem"):
            check_server(stranger)
        all_of_them = processes()
    assert not [one for one in all_of_them if one.is_running()]


@pytest.mark.matrix
def test_parties_apart_with_a_key_that_was_made_at_its_site(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    request = make_request(tmp_path / "mine", "north")
    kits = provision(tmp_path, "apart", "localhost", port, ["north"], requests={"north": request})
    add_key(kits["north"], request.with_suffix(".key"))
    command = [sys.executable, str(tmp_path / "worker.py"), "north", str(tmp_path / "heard")]
    server = read_kit(kits["server"].path.rename(tmp_path / "elsewhere"))
    early = run_site(kits["north"], command, logs=tmp_path)
    with pytest.raises(UnreachableError, match="is the server running there"):
        early.__enter__()
    with (
        run_server(server, kits[ADMINISTRATOR], ["north"], logs=tmp_path) as carry,
        run_site(kits["north"], command, logs=tmp_path, patience=SECONDS),
    ):
        assert dict(carry({"north": b"bytes "}, SECONDS)) == {"north": b"bytes north"}


@pytest.mark.matrix
@pytest.mark.parametrize(
    "words",
    [("client.worker_process", "-c south"), ("client.client_train", "uid=south"), ("server.server_train",)],
    ids=["a site's job", "a site's process", "the server's process"],
)
def test_a_process_of_the_engine_that_is_killed_is_followed_by_another(words: Sequence[str], tmp_path: Path) -> None:
    with federation(tmp_path) as running:
        running.echo(b"before")
        before = running.carry.generation
        kill(*words)
        answers = running.ask(b"after")
        assert answers == {site: b"after" + site.encode() for site in SITES}
        assert running.carry.generation > before


@pytest.mark.matrix
def test_a_site_joins_a_running_server_and_another_one_is_shut_out(tmp_path: Path) -> None:
    """The server and the new site have renewed certificates, the others those of before."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "all").mkdir()
    authority = Authority(tmp_path / "all", "localhost", port, 2)
    kits = {name: replace(kit, path=kit.path.rename(tmp_path / name)) for name, kit in authority.make(SITES).items()}
    files = authority.renew(Roster.begun("run", SITES, {}), ["server"])
    assert take_renewed(files["server"].parent, "server", [kits["server"], kits[ADMINISTRATOR]])
    kits["west"] = authority.make_one("west")

    def site(name: str) -> AbstractContextManager[None]:
        command = [sys.executable, str(tmp_path / "worker.py"), name, str(tmp_path / "heard")]
        return run_site(kits[name], command, logs=tmp_path / "logs", patience=SECONDS)

    def echoed(carry: Carrier, *names: str) -> bool:
        return dict(carry(dict.fromkeys(names, b"x"), SECONDS)) == {name: b"x" + name.encode() for name in names}

    with (
        run_server(kits["server"], kits[ADMINISTRATOR], SITES, logs=tmp_path / "logs") as carry,
        site("north"),
        site("south"),
    ):
        assert echoed(carry, *SITES)
        carry.sites.admit("west")
        with site("west"):
            assert echoed(carry, *SITES, "west")
            carry.sites.dismiss("south")
            assert echoed(carry, "north", "west")
            kill("client_train", "uid=south")  # it is started again, and wants in again
            end, log = time.monotonic() + SECONDS, tmp_path / "logs" / "server.log"
            while "Reject disabled client registration: south" not in log.read_text():
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.2)
            assert echoed(carry, "north", "west")
    disabled = kits["server"].path / "disabled_clients.json"
    assert json.loads(disabled.read_text()) == {"disabled_clients": ["south"]}, "it is shut out the next time too"
