"""What is wrong with certificates, a clock or a port is told in one line before anything is started."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedsa.deploy.preflight import PACKAGES, Kit, PreflightError, check_kit, check_server, no_other_authority, read_kit
from fedsa.errors import MissingExtraError
from support.certificates import Signed, make_certificate, write_kit
from support.extras import NEEDS_NVFLARE

pytestmark = [pytest.mark.run, NEEDS_NVFLARE]


@pytest.fixture(scope="module")
def authority() -> Signed:
    return make_certificate("a federation", None)


@pytest.fixture(scope="module")
def other_authority() -> Signed:
    return make_certificate("another federation", None)


@pytest.fixture(scope="module")
def north(authority: Signed) -> Signed:
    return make_certificate("north", authority)


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[[Kit], int]]:
    """Start a server that asks for its clients' certificates, and return its port."""
    listeners = []

    def begin(kit: Kit) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(kit.authority)
        context.load_cert_chain(kit.certificate, kit.key)
        listener = socket.create_server(("localhost", 0))
        listeners.append(listener)

        def answer() -> None:
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            except OSError:
                pass  # what the client makes of it is looked at

        threading.Thread(target=answer, daemon=True).start()
        return int(listener.getsockname()[1])

    yield begin
    for listener in listeners:
        listener.close()


def test_a_good_kit_and_a_good_server(
    tmp_path: Path, authority: Signed, north: Signed, listen: Callable[[Kit], int]
) -> None:
    server = write_kit(tmp_path / "server", "server", authority, make_certificate("localhost", authority))
    check_kit(server)
    kit = write_kit(tmp_path / "north", "site", authority, north, listen(server))
    assert read_kit(tmp_path / "north") == kit
    check_kit(kit)
    check_server(kit)


@pytest.mark.parametrize(
    ("begin", "end", "text"),
    [(2, 9, "client.crt is valid from .*, and this machine's clock says .*: set the clock"), (-9, -1, "has expired")],
)
def test_a_certificate_out_of_its_time(tmp_path: Path, authority: Signed, begin: int, end: int, text: str) -> None:
    kit = write_kit(tmp_path / "north", "site", authority, make_certificate("north", authority, begin=begin, end=end))
    with pytest.raises(PreflightError, match=text):
        check_kit(kit)


def test_files_of_two_federations(tmp_path: Path, other_authority: Signed, north: Signed) -> None:
    kit = write_kit(tmp_path / "north", "site", other_authority, north)
    with pytest.raises(PreflightError, match=r"client.crt was not issued by rootCA.pem beside it"):
        check_kit(kit)


@pytest.mark.parametrize("name", ["two words", "it's", "number#1"])
def test_a_folder_from_which_no_job_starts(tmp_path: Path, authority: Signed, north: Signed, name: str) -> None:
    kit = write_kit(tmp_path / name, "site", authority, north)
    with pytest.raises(PreflightError, match=f"where a path has spaces, quotes or a #: move .*{name}"):
        check_kit(kit)


def test_the_key_of_another_certificate(tmp_path: Path, authority: Signed, north: Signed) -> None:
    kit = write_kit(tmp_path / "north", "site", authority, (north[0], authority[1]))
    with pytest.raises(PreflightError, match=r"client.key is missing, or not the key of client.crt"):
        check_kit(kit)


def test_a_file_that_is_missing_or_no_certificate(tmp_path: Path, authority: Signed, north: Signed) -> None:
    kit = write_kit(tmp_path / "north", "site", authority, north)
    kit.authority.write_text("nothing", encoding="utf-8")
    with pytest.raises(PreflightError, match=r"rootCA.pem is missing or no certificate"):
        check_kit(kit)
    note = json.loads((kit.path / "fedsa.json").read_text(encoding="utf-8"))
    for name, value in (("kind", ["site"]), ("port", {}), ("versions", 3)):
        (kit.path / "fedsa.json").write_text(json.dumps({**note, name: value}), encoding="utf-8")
        with pytest.raises(PreflightError, match=rf"fedsa\.json, {name}"):
            read_kit(kit.path)
    (kit.path / "fedsa.json").unlink()
    with pytest.raises(PreflightError, match="no startup kit"):
        read_kit(kit.path)


@pytest.mark.parametrize("name", PACKAGES)
def test_another_version(tmp_path: Path, authority: Signed, north: Signed, name: str) -> None:
    kit = write_kit(tmp_path / "north", "site", authority, north)
    kit = replace(kit, versions={**kit.versions, name: "17.0.0"})
    with pytest.raises(PreflightError, match=rf"the federation was made with 17.0.0: pip install '{name}==17.0.0'"):
        check_kit(kit)


def test_without_the_extra(tmp_path: Path, authority: Signed, north: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsa\[nvflare\]'"):
        check_kit(Kit(tmp_path, "north", "site", "a project", "localhost", 1, {}))


def test_a_closed_port(tmp_path: Path, authority: Signed, north: Signed) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    kit = write_kit(tmp_path / "north", "site", authority, north, port)
    with pytest.raises(
        PreflightError, match=rf"localhost:{port} cannot be reached \(.*\): is the server running there"
    ):
        check_server(kit)


def test_a_port_where_nobody_answers(tmp_path: Path, authority: Signed, north: Signed) -> None:
    with socket.create_server(("localhost", 0)) as listener:  # it takes the connection, and says nothing
        kit = write_kit(tmp_path / "north", "site", authority, north, listener.getsockname()[1])
        with pytest.raises(PreflightError, match="has ended the TLS handshake"):
            check_server(kit, seconds=0.1)


def test_a_name_of_no_machine(tmp_path: Path, authority: Signed, north: Signed) -> None:
    kit = replace(write_kit(tmp_path / "north", "site", authority, north), host="no-such-machine.invalid")
    with pytest.raises(PreflightError, match=r"no machine is called 'no-such-machine.invalid'"):
        check_server(kit)


def test_a_server_of_another_authority(
    tmp_path: Path, authority: Signed, other_authority: Signed, north: Signed, listen: Callable[[Kit], int]
) -> None:
    own = make_certificate("localhost", other_authority)
    server = write_kit(tmp_path / "server", "server", other_authority, own)
    kit = write_kit(tmp_path / "north", "site", authority, north, listen(server))
    with pytest.raises(PreflightError, match=r"certificate of another authority than rootCA\.pem"):
        check_server(kit)


def test_a_site_of_another_authority(
    tmp_path: Path, authority: Signed, other_authority: Signed, listen: Callable[[Kit], int]
) -> None:
    server = write_kit(tmp_path / "server", "server", authority, make_certificate("localhost", authority))
    stranger = make_certificate("north", other_authority)
    kit = write_kit(tmp_path / "north", "site", authority, stranger, listen(server))
    with pytest.raises(PreflightError, match=r"does not accept the certificate of north \(unknown ca\)"):
        check_server(kit)


@pytest.mark.parametrize(
    ("name", "begin", "end", "text"),
    [
        ("localhost", -9, -1, "certificate of the server at .* has expired"),
        ("localhost", 1, 9, "certificate of the server at .* is not valid yet: this machine's clock says"),
        ("elsewhere", -1, 9, "certificate for another name"),
    ],
)
def test_a_server_whose_certificate_does_not_fit(
    tmp_path: Path,
    authority: Signed,
    north: Signed,
    listen: Callable[[Kit], int],
    name: str,
    begin: int,
    end: int,
    text: str,
) -> None:
    own = make_certificate(name, authority, begin=begin, end=end)
    server = write_kit(tmp_path / "server", "server", authority, own)
    kit = write_kit(tmp_path / "north", "site", authority, north, listen(server))
    with pytest.raises(PreflightError, match=text):
        check_server(kit)


def test_what_answers_speaks_no_tls(tmp_path: Path, authority: Signed, north: Signed) -> None:
    with socket.create_server(("localhost", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
                connection.recv(10_000)

        threading.Thread(target=answer, daemon=True).start()
        kit = write_kit(tmp_path / "north", "site", authority, north, listener.getsockname()[1])
        with pytest.raises(PreflightError, match="does not speak TLS as a server of this federation does"):
            check_server(kit)


def test_an_engines_process_trusts_the_federations_authority_alone(
    tmp_path: Path, authority: Signed, north: Signed
) -> None:
    """NVFlare makes its context so, and would take a server of any authority that the system trusts."""
    kit = write_kit(tmp_path / "north", "site", authority, north)
    code = "import ssl; print([one['subject'][0][0][1] for one in ssl.create_default_context().get_ca_certs()])"
    environment = {**os.environ, **no_other_authority(kit)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a federation']"
