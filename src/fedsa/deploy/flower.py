"""Flower as the engine, experimental: what its processes run, with no torch, and how they run on one machine."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tomli_w
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsa.deploy import carrier, frames, worker
from fedsa.deploy.parties import free_port, kept_programs, socket_folder
from fedsa.errors import FedsaError
from fedsa.system.children import Child

__all__ = ["client", "run_local_flower", "server"]

_HOST, _PROGRAMS, _START_SECONDS, _LOOK_SECONDS, _BODY = "127.0.0.1", Path(sys.executable).parent, 120.0, 0.2, "body"
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_STRICT = ("--enable-supernode-auth", "--disable-runtime-dependency-installation")
server = ServerApp()
client = ClientApp()


@contextmanager
def run_local_flower(
    folder: Path, commands: Mapping[str, Sequence[str]], *, tell: Callable[[str], None] = lambda line: None
) -> Iterator[carrier.Carrier]:
    """Run a whole federation on this machine with Flower, as `fedsa.deploy.parties.run_local` does with NVFlare.

    Args: as there. Raises: FedsaError where Flower's server does not start.
    """
    tell("the engine flower is experimental: use it on a machine that nobody else uses")
    place, logs, port = folder.resolve() / "flower", folder / "logs", free_port()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, mode=0o700)
    authority, ca, pem = trustme.CA(), f"{place}/ca.crt", f"{place}/server.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert(_HOST).private_key_and_cert_chain_pem.write_to_path(pem)
    connection = {"address": f"{_HOST}:{port}", "root-certificates": ca}
    (place / "config.toml").write_text(tomli_w.dumps({"superlink": {"fedsa": connection}}), encoding="utf-8")
    path = f"{_PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"  # where Flower looks for its own programs
    common = {**_QUIET, "PATH": path, "FLWR_HOME": str(place)}
    runs = _Runs(place, {**os.environ, **common}, logs / "run.log")
    with socket_folder() as sockets, ExitStack() as stack:
        here = {**common, carrier.SOCKET: f"{sockets}/carrier"}
        tls = [f"--ssl-ca-certfile={ca}", f"--ssl-certfile={pem}", f"--ssl-keyfile={pem}"]
        link = [f"{_PROGRAMS}/flower-superlink", *tls, f"--port={port}", f"--database={place}/state.db", *_STRICT]
        stack.enter_context(kept_programs(logs, {"server": (link, here)}))
        for number, (site, command) in enumerate(commands.items()):
            runs.admit(site)
            there = {**common, worker.SOCKET: f"{sockets}/{number}"}
            keys = [f"--root-certificates={ca}", f"--auth-supernode-private-key={place}/{site}.key"]
            node = [f"{_PROGRAMS}/flower-supernode", *keys, f"--superlink={_HOST}:{port}", f"--port={free_port()}"]
            stack.enter_context(
                kept_programs(logs, {f"{site}-engine": (node, there), f"{site}-worker": (command, there)})
            )
        yield stack.enter_context(carrier.Carrier(runs, Path(here[carrier.SOCKET]), commands, tell=tell))


class _Runs:
    """Flower's runs, as the carrier starts them. Sites may come and go while a run lasts: all count as connected."""

    def __init__(self, place: Path, environment: Mapping[str, str], log: Path) -> None:
        self._place, self._environment, self._log = place, environment, log
        self._sites: dict[str, str] = {}
        self._run: Child | None = None

    def admit(self, site: str) -> None:
        """Make a site's keys, and register them with Flower's server under its name, as soon as it is there."""
        key, public = ec.generate_private_key(ec.SECP384R1()), self._place / f"{site}.pub"
        public.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        command = [f"{_PROGRAMS}/flwr", "supernode", "register", str(public), "fedsa", f"--name={site}"]
        end, self._sites[site] = time.monotonic() + _START_SECONDS, site
        while (done := subprocess.run(command, env=self._environment, capture_output=True, text=True)).returncode:  # noqa: S603
            if time.monotonic() > end:
                raise FedsaError(f"Flower's server does not admit {site}: {done.stdout}{done.stderr}")
            time.sleep(_LOOK_SECONDS)

    def connected(self) -> Mapping[str, str]:
        return self._sites

    def begin(self, generation: int, sites: Iterable[str]) -> None:
        about = {"name": "fedsa", "version": "1.0.0", "description": "carries bytes", "license": "Apache-2.0"}
        parts = {f"{side}app": f"{__name__}:{side}" for side in ("server", "client")}
        app = {"publisher": "fedsa", "components": parts, "config": {"generation": generation}}
        path = self._place / f"app-{generation}" / "pyproject.toml"
        path.parent.mkdir()
        path.write_text(tomli_w.dumps({"project": about, "tool": {"flwr": {"app": app}}}), encoding="utf-8")
        command = [f"{_PROGRAMS}/flwr", "run", str(path.parent), "fedsa", "--stream"]  # it ends when the run ends
        self._run = Child(command, self._log, environment=self._environment)

    def has_ended(self) -> bool:
        return self._run is None or not self._run.is_running

    def end(self) -> None:
        if self._run is not None:
            self._run.stop()  # the command; the run itself ends when the carrier has closed its connection


def _carry(grid: Any, context: Any) -> None:
    """Take requests from the carrier, push each to its site's node, and bring the answers, until the carrier leaves."""
    waiting: dict[str, int] = {}  # Flower's id of a message -> number of the request
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[carrier.SOCKET])
        frames.send(connection, {"generation": context.run_config["generation"]})
        while True:
            while select.select([connection], [], [], _LOOK_SECONDS)[0]:
                try:
                    note, body = frames.receive(connection)
                except OSError:
                    return
                nodes = {node.name: node.node_id for node in grid.get_nodes()}
                if note.get("site") in nodes:
                    content = RecordDict({_BODY: ConfigRecord({_BODY: body})})
                    (sent,) = grid.push_messages([Message(content, nodes[note["site"]], "query")])
                    waiting[sent] = note["request"]
                elif "site" in note:  # else an answer is to be forgotten: the carrier drops it when it comes
                    frames.send(connection, {"answer": note["request"], "failed": "it is not connected"})
            for reply in grid.pull_messages(list(waiting)) if waiting else ():
                about: dict[str, Any] = {"answer": waiting.pop(reply.metadata.reply_to_message_id)}
                if reply.has_error():
                    about["failed"] = str(reply.error.reason)[:1000]
                frames.send(connection, about, b"" if reply.has_error() else reply.content[_BODY][_BODY])


def _answer(message: Any, context: Any) -> Any:
    """Have the worker answer a request. What is raised here, Flower tells the server in its own error reply."""
    request, path = message.content[_BODY][_BODY], Path(os.environ[worker.SOCKET])
    message.content[_BODY][_BODY] = worker.ask(path, request, given_up=lambda: False)
    return Message(message.content, reply_to=message)


server.main()(_carry)
client.query()(_answer)
